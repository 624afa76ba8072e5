"""Every bound on what a peer may send, in one place: name with unit, what it stops, and where the figure comes from.

Pure constants.
"""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""One message (a request, a response, an item of a stream). gRPC's default is the same 4 MiB. Larger things are
sent as a stream of items; a caller that tries otherwise gets TooLarge at once, before anything is sent."""

MAX_FRAME_BODY_BYTES = 64 * 1024
"""One frame's body; larger messages go in several. A frame is what others wait behind: 64 KiB is 0.5 ms at 1 Gbit/s."""

MAX_HEADER_BYTES = 16 * 1024
"""A frame's header with all metadata. nginx, Node.js and Tomcat allow 8 to 16 KiB of HTTP headers."""

MAX_METADATA_ENTRIES = 64
"""Metadata entries of one call: bounds the cost of copying them at each hop."""

MAX_FRAME_BYTES = 12 + MAX_HEADER_BYTES + MAX_FRAME_BODY_BYTES
"""What a decoder may have to buffer for one frame. A longer announced length ends the connection unread."""

MAX_STREAMS_PER_CONNECTION = 4_096
"""Open calls on one connection; one more is refused with Overloaded. HTTP/2 servers allow 100 to 1,000, but a node's
connection stands for many clients."""

STREAM_WINDOW_BYTES = 256 * 1024
"""Credit of one direction of one call: what a receiver that has stopped reading can be made to hold."""

MAX_CONNECTION_BUFFER_BYTES = 16 * 1024 * 1024
"""Bytes queued for writing on one connection. Above this limit, new calls are refused with Overloaded; calls in progress are
limited by their credit."""

MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Bytes queued for writing on one connection above which calls in progress end with Overloaded, too: a peer that opened
many calls and stopped reading must not use the credit of all of them."""

MAX_HELD_ANSWER_BYTES = 256 * 1024 * 1024
"""Whole answers that a service holds until their callers grant credit, all calls together; above it the next large
answer is Overloaded. 4,096 calls that are answered with 4 MiB each would be 16 GiB."""

MAX_HOPS = 16
"""Nodes that a frame may pass. Paths longer than this exist only in loops (RIP's bound is 16 too)."""

MAX_TIMEOUT_S = 3_600.0
"""The longest deadline believed from a peer: one hour."""

DEFAULT_TIMEOUT_S = 5.0
"""A call's deadline when the caller names none, as in the original."""

MAX_NESTING = 32
"""Depth of decoded values (msgpack, JSON): deeper ones are refused before they exhaust the stack."""

MAX_ITEMS = 100_000
"""Elements of one decoded array or map: an array header of five bytes may announce 2**32 of them."""

MAX_MULTICAST_BYTES = 64 * 1024
"""One multicast or broadcast message of the tunnel."""

MAX_MUX_FRAME_BYTES = 16 * 1024
"""One piece of a session on a lane: on links with a single lane, what a small call waits behind."""

MAX_HANDSHAKE_BYTES = 4 * 1024
"""All that an unauthenticated peer can make us buffer."""

HANDSHAKE_TIMEOUT_S = 5.0
"""How long an unauthenticated peer may hold a link."""

MAX_SESSIONS_PER_LINK = 1_024
"""Tunnel sessions on one link; one more is refused."""

SESSION_WINDOW_BYTES = 1024 * 1024
"""Credit of one direction of one tunnel session, in bytes."""

LINK_WINDOW_BYTES = 16 * 1024 * 1024
"""Credit of one direction of a whole link: the sum of what its sessions can make us hold."""

MAX_ROUTES_PER_NEIGHBOUR = 100_000
"""Routes believed from one neighbour (BGP's max-prefix practice); those beyond are refused and counted."""

MAX_EVENTS_PER_ADVERT = 1_000
"""Route events in one advert message; longer lists go in several."""

MAX_ADVERT_BYTES = 512 * 1024
"""One advert message."""

MAX_PEERS_PER_MESSAGE = 1_000
"""Peers in one peer message of the graph."""

MAX_TOPICS_PER_INSTANCE = 256
"""Subscriptions that one instance may register."""
