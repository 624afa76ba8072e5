"""The tunnel role: plugins supply *links*, core adds handshake, identity, sessions, flow control and priorities.

For authors of drivers: `LinkDriver` (dial, listen), `Link` and `LinkReceiver`. For users of the tunnel: `Tunnel`,
`Sessions` (the part of it that other processes can use, too), `Session` (a `Socket`), `ChannelListener`, `LinkInfo` and
`LinkEvent`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract.errors import MicroError
from micro_core.contract.transport import Listener, Socket


class Priority(enum.IntEnum):
    """The order in which data is sent on a link; also the lane number on links that have four lanes."""

    CONTROL = 0
    CALLS = 1
    EVENTS = 2
    BULK = 3

    __hash__ = int.__hash__  # priorities are used in keys on the hot path, and the hash of Enum is slow


class LinkReceiver(Protocol):
    """Receives the data of a link. The methods are called in the event loop and must not block."""

    def data_received(self, lane: int, data: bytes) -> None:
        """Receive bytes of one lane, in order within the lane. Chunk boundaries carry no meaning."""
        ...

    def lane_writable(self, lane: int) -> None:
        """Note that `buffered_bytes(lane)` has fallen below the low-water mark after it had been above it."""
        ...

    def link_lost(self, error: MicroError) -> None:
        """Note the end of the link. Called exactly once, with Closed, Ended or LinkLost."""
        ...


class Link(Protocol):
    """One encrypted connection between two nodes that carries ordered lanes of bytes.

    A link has `lane_count` lanes: 4 (one per Priority, so that no lane waits behind a large transfer) or 1 (core then
    interleaves). A driver does not authenticate the peer: the handshake of core does that on lane 0, before it sends
    anything else.
    """

    lane_count: int
    local: str
    remote: str
    driver: str
    """Name of the driver, e.g. `quic`."""

    channel_binding: bytes
    """At least 32 bytes that are equal at both ends of this connection and that a machine in the middle cannot
    reproduce: the SHA-256 digest of the server certificate in DER (RFC 5929, `tls-server-end-point`)."""

    def start(self, receiver: LinkReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        ...

    def write(self, lane: int, data: bytes) -> None:
        """Queue bytes without blocking. They are sent at the latest at the end of the current event loop iteration."""
        ...

    def buffered_bytes(self, lane: int) -> int:
        """Return how many bytes `write` has accepted and the driver has not yet handed to the network."""
        ...

    def transport_rtt_s(self) -> float | None:
        """Return the smoothed round-trip time in seconds that the protocol below measures, or None."""
        ...

    async def close(self) -> None:
        """Send queued data for at most one second, then close the connection. Safe to call twice."""
        ...


class LinkDriver(Protocol):
    """A tunnel driver: dials links and listens for them."""

    scheme: str
    """The scheme of its addresses without `://`, e.g. `quic`."""

    async def start(self) -> None:
        """Acquire what the driver needs. Called once, before `dial` and `listen`."""
        ...

    async def close(self) -> None:
        """Release everything. Safe to call twice."""
        ...

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Connect to `host:port`, with or without `scheme://`. Raises Unreachable."""
        ...

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen at `host:port` (empty host: every interface; port 0: any). Raises Conflict when the port is in use.

        `accept` is called for each link once its encryption is established; `accept` then calls `start` on the link.
        """
        ...


class DialMode(enum.Enum):
    """The receivers of what is sent on a channel."""

    UNICAST = "unicast"
    """One peer. Both ends can send."""
    MULTICAST = "multicast"
    """Every linked peer that listens on the channel at the time of sending. One-way; messages arrive whole."""
    BROADCAST = "broadcast"
    """Every linked peer. Peers that do not listen on the channel drop the message and count it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """A link as `Tunnel.links()` shows it. Both ends agree on `link_id` and `generation`."""

    peer: str
    """Node id of the other end."""
    peer_name: str
    site: str
    """Site of the other end."""
    link_id: str
    generation: int
    """Number of the link among the links with this peer. A newer link replaces the older one."""
    driver: str
    local: str
    remote: str
    dialed: bool
    dialed_address: str = ""
    """The address as it was passed to dial; empty for an accepted link."""
    why: str = ""
    """Why this path was chosen among several, for people, e.g. `quic gave no answer in 0.4 s`."""
    rtt_s: float | None
    rtt_variance_s: float | None
    loss: float | None
    queue_delay_s: float
    bytes_in: int
    bytes_out: int
    sessions: int
    up_since: float
    """When the handshake completed, in seconds of `Clock.now`."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A handshake completed: a first link to the peer, or one that replaces a link that no longer works."""

    link: LinkInfo


@dataclass(frozen=True, slots=True)
class LinkMoved:
    """A link over another driver replaced a link that still works.

    Open sessions continue on the old link for a few seconds; new sessions are opened on the new link.
    """

    link: LinkInfo


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The last link to a peer ended. Not sent for a link that was replaced."""

    link: LinkInfo
    error: MicroError


@dataclass(frozen=True, slots=True)
class DialFailed:
    """All paths to an address that the tunnel keeps linked failed; the tunnel tries again by itself."""

    address: str
    error: MicroError


LinkEvent = LinkUp | LinkMoved | LinkDown | DialFailed

LinkEventHandler = Callable[[LinkEvent], None]
"""Receives link events in the event loop, in the order in which they happen."""


class Session(Socket, Protocol):
    """A socket over a link, bound to one peer. When its link ends, the session ends immediately with an error."""

    channel: str
    peer: str
    """Node id of the other end; empty for multicast and broadcast."""


class ChannelListener(Protocol):
    """A channel on which this node listens."""

    channel: str

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        ...


MessageReceiver = Callable[[str, bytes], None]
"""Called with (node id of the peer, payload) for each multicast or broadcast message of a channel."""


class Sessions(Protocol):
    """The part of the tunnel that opens and accepts sessions; the links may be those of another process.

    Each end of a link may dial and listen, whichever end dialled the link.
    """

    node_id: str

    def links(self) -> list[LinkInfo]:
        """Return the current links, at most one per peer."""
        ...

    async def unlink(self, peer: str) -> None:
        """Close the link to `peer`, if there is one."""
        ...

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        """Open a unicast session to `peer` without waiting. A refusal arrives as `socket_lost`.

        Raises Unreachable when there is no link to the peer, Overloaded when the link has too many open sessions.
        """
        ...

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        """Accept unicast sessions on `channel`. Raises Conflict when the channel has a listener already."""
        ...

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver all later link events to `handler`, the only subscriber.

        The code that assembles a node sets it once and passes events on to the components. Links that are up already
        are in `links()`. Raises Conflict when a handler is set already.
        """
        ...


class Tunnel(Sessions, Protocol):
    """The links to other nodes, the sessions on named channels over them, and messages to many peers."""

    def address(self) -> list[str]:
        """Return the addresses at which this tunnel listens, with schemes."""
        ...

    async def connect(self) -> None:
        """Start the drivers and listen. Raises Conflict when a listen address is in use."""
        ...

    async def close(self) -> None:
        """Close sessions, links and listeners within a few seconds. Safe to call twice."""
        ...

    async def link_to(self, address: str, *, timeout_s: float) -> LinkInfo:
        """Dial a node and complete the handshake.

        Raises Unreachable, or Unauthorized when the token or the network name differs or the node dialled itself.
        """
        ...

    def send(self, channel: str, payload: bytes, *, mode: DialMode, priority: Priority = Priority.CONTROL) -> int:
        """Send one message to many peers and return the number of links it was sent on.

        Raises TooLarge above `limits.MAX_MULTICAST_BYTES`, BadRequest with DialMode.UNICAST (use `dial`).
        """
        ...

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        """Receive the multicast and broadcast messages of `channel`, each exactly once per `send` of a peer."""
        ...
