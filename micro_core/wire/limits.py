"""All limits for data that a peer sends: the value with its unit, its effect, and the reason for the number.

Pure constants.
"""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Size of one message: a request, a response, or an item of a stream. A larger message raises TooLarge before anything is
sent; send large data as a stream of items. The default of gRPC is 4 MiB, too."""

MAX_FRAME_BODY_BYTES = 64 * 1024
"""Size of the body of one frame. Larger messages are split into several frames. Other calls wait until a frame is sent, which
takes 0.5 ms for 64 KiB at 1 Gbit/s."""

MAX_HEADER_BYTES = 16 * 1024
"""Size of the header of a frame with all metadata. nginx, Node.js and Tomcat allow 8 to 16 KiB of HTTP headers."""

MAX_METADATA_ENTRIES = 64
"""Number of metadata entries of one call. It limits the cost of copying them at each hop."""

MAX_FRAME_BYTES = 12 + MAX_HEADER_BYTES + MAX_FRAME_BODY_BYTES
"""Size of a frame, which a decoder buffers. If the announced length is greater, the connection is closed without reading the
frame."""

MAX_STREAMS_PER_CONNECTION = 4_096
"""Number of open calls on one connection. Further calls are refused with Overloaded. HTTP/2 servers allow 100 to 1,000 streams,
but the connection of a node carries the calls of many clients."""

STREAM_WINDOW_BYTES = 256 * 1024
"""Credit of one direction of a call: the maximum number of bytes that the receiver buffers if it stops reading."""

MAX_CONNECTION_BUFFER_BYTES = 16 * 1024 * 1024
"""Bytes queued for writing on one connection. Above this limit, new calls are refused with Overloaded; calls in progress are
limited by their credit."""

MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Bytes queued for writing on one connection. Above this limit, calls in progress end with Overloaded, too, so that a peer
that opened many calls and stopped reading cannot use the credit of all of them."""

MAX_HELD_ANSWER_BYTES = 256 * 1024 * 1024
"""Total size of the responses that a service stores until their callers grant credit. Above this limit, the next large response
is replaced by Overloaded. Without a limit, 4,096 calls with responses of 4 MiB would need 16 GiB."""

MAX_HOPS = 32
"""Number of nodes that a frame may pass, and that the path of a route may contain. In random networks of 1,000 nodes with three
links each, the cheapest paths pass up to 26."""

MAX_TIMEOUT_S = 3_600.0
"""Longest timeout that is accepted from a peer: one hour."""

DEFAULT_TIMEOUT_S = 5.0
"""Timeout of a call if the caller does not set one, as in go-micro."""

MAX_NESTING = 32
"""Nesting depth of decoded values (msgpack, JSON). Deeper values are refused before they exhaust the stack."""

MAX_ITEMS = 100_000
"""Number of elements of one decoded array or map. The header of an array has five bytes and can announce 2**32 elements."""

MAX_MULTICAST_BYTES = 64 * 1024
"""Size of one multicast or broadcast message of the tunnel."""

MAX_MUX_FRAME_BYTES = 16 * 1024
"""Size of one piece of the data of a session. On links with a single lane, a small call waits until one piece is sent."""

MAX_HANDSHAKE_BYTES = 4 * 1024
"""Bytes that are buffered for an unauthenticated peer."""

HANDSHAKE_TIMEOUT_S = 5.0
"""Time after which the link of a peer that has not completed the handshake is closed."""

MAX_SESSIONS_PER_LINK = 1_024
"""Number of tunnel sessions on one link. Further sessions are refused."""

SESSION_WINDOW_BYTES = 1024 * 1024
"""Credit of one direction of a tunnel session."""

LINK_WINDOW_BYTES = 16 * 1024 * 1024
"""Credit of one direction of a link: the maximum number of bytes that the receiver buffers for all its sessions."""

MAX_OFFERS_PER_NEIGHBOUR = 200_000
"""Number of services of other origins that are accepted from one neighbour. Further ones are refused and counted. BGP routers have
such a limit, too (maximum prefix)."""

MAX_ORIGINS_PER_NEIGHBOUR = 10_000
"""Number of origins, i.e. of nodes that offer services, for which one neighbour may advertise a route. Ten times the number of
nodes that the routing plane is made for."""

MAX_ORIGINS = 40_000
"""Number of origins that a router remembers: those with a route, those that have left within two minutes, and those whose routes
were refused. Announcements of further ones are refused and counted, so that a neighbour cannot fill the memory with new names."""

MAX_EVENTS_PER_ADVERT = 1_000
"""Number of route events in one advert. Longer lists are split into several adverts."""

MAX_ADVERT_BYTES = 512 * 1024
"""Size of one advert."""

MAX_EVENT_AGE_MS = 600_000
"""Maximum age of a copy of a message that is sent again, in milliseconds. Nodes keep messages for less than a minute."""

MAX_PEERS_PER_MESSAGE = 1_000
"""Number of peers in one peer message of the network graph."""

MAX_TOPICS_PER_INSTANCE = 256
"""Number of subscriptions that one instance may register."""
