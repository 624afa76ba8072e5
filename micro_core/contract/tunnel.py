"""The tunnel role: plugins provide *links*; core adds handshake, identity, sessions, flow control and priorities.

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
    """The order in which data is sent on a link, lowest value first. It is also the lane number on links with four lanes."""

    CONTROL = 0
    """Handshake, pings, flow control and adverts."""
    CALLS = 1
    """Calls and their responses."""
    EVENTS = 2
    """Messages of topics."""
    BULK = 3
    """Large transfers."""

    __hash__ = int.__hash__  # priorities are used in keys on the hot path, and the hash of Enum is slow


class LinkReceiver(Protocol):
    """Receives the data of a link. The methods are called in the event loop and must not block."""

    def data_received(self, lane: int, data: bytes) -> None:
        """Receive bytes of one lane, in order within the lane. Chunk boundaries carry no meaning."""
        ...

    def lane_writable(self, lane: int) -> None:
        """Handle a lane whose `buffered_bytes` has fallen to the low-water mark of the driver after it had exceeded it."""
        ...

    def link_lost(self, error: MicroError) -> None:
        """Handle the end of the link. Called exactly once, after all received data has been delivered.

        Args:
            error: `Closed` (this side closed the link), `Ended` (the other side closed it) or `LinkLost` (it failed).
        """
        ...


class Link(Protocol):
    """One encrypted connection between two nodes that carries ordered lanes of bytes.

    A link has `lane_count` lanes: 4 (one per Priority, so that no lane waits behind a large transfer) or 1 (core then
    interleaves). A driver does not authenticate the peer: the handshake of core does that on lane 0, before it sends
    anything else. A link may also have the methods of `ReportsLoss`, `ReportsSilence` and `ReportsAcknowledgements`.
    """

    lane_count: int
    """4 or 1."""
    local: str
    """The address of this end, for display."""
    remote: str
    """The address of the other end, for display."""
    driver: str
    """Name of the driver, e.g. `quic`."""

    channel_binding: bytes
    """At least 32 bytes that are equal at both ends of this connection and that a machine in the middle cannot reproduce.

    With TLS, this is the SHA-256 digest of the server certificate in DER (RFC 5929, section 4, `tls-server-end-point`)."""

    def start(self, receiver: LinkReceiver) -> None:
        """Start to deliver data to `receiver`, including data that arrived before this call. Called once."""
        ...

    def write(self, lane: int, data: bytes) -> None:
        """Queue `data` and return immediately. It is sent at the latest at the end of the current event loop iteration.

        Does not raise: `link_lost` reports errors, and later data is ignored. Receivers are never called from within `write`.

        Args:
            lane: Number of the lane, from 0 to `lane_count - 1`.
            data: Bytes to send, of any length.
        """
        ...

    def buffered_bytes(self, lane: int) -> int:
        """Return the number of bytes that `write` has accepted and the driver has not yet passed to the network."""
        ...

    def transport_rtt_s(self) -> float | None:
        """Return the smoothed round-trip time in seconds that the protocol of the link measures, or None."""
        ...

    async def close(self) -> None:
        """Send queued data for at most one second, then close the connection. Safe to call twice, and before `start`.

        `link_lost` is called with `Closed` at this end, and with `Ended` at the other end after the data.
        """
        ...


class LinkDriver(Protocol):
    """A tunnel driver: dials links and listens for them. No method blocks the event loop."""

    scheme: str
    """The scheme of its addresses without `://`, e.g. `quic`."""

    async def start(self) -> None:
        """Acquire resources, e.g. create a key and a certificate. Called once, before `dial` and `listen`.

        Raises:
            ConfigError: The options cannot be used, e.g. because a certificate file is missing.
        """
        ...

    async def close(self) -> None:
        """Close all links and listeners, and release all resources. Safe to call twice."""
        ...

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Connect to a node, and return the link when its encryption is established.

        A cancelled call leaves no open connection.

        Args:
            address: `host:port`, with or without `scheme://`.
            timeout_s: Maximum time in seconds, greater than 0.

        Raises:
            Unreachable: No connection is established within the timeout; the detail contains the reason.
            BadRequest: The address is invalid. A driver may raise Unreachable instead.
        """
        ...

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen for links, and return the listener.

        Args:
            address: `host:port`, with or without `scheme://`. An empty host means all interfaces; port 0 means a free port.
            accept: Called in the event loop for each link when its encryption is established. It calls `start` on the
                link, immediately or later.

        Raises:
            Conflict: The port is in use, or this host cannot listen on the address.
            BadRequest: The address is invalid.
        """
        ...


class DialMode(enum.Enum):
    """The receivers of data that is sent on a channel."""

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
    """Display name of the other end."""
    site: str
    """Site of the other end."""
    link_id: str
    """Id of the link, which both ends derive from the handshake."""
    generation: int
    """Number of the link among the links with this peer. A link with a higher generation replaces the previous one."""
    driver: str
    """Name of the driver, e.g. `quic`."""
    local: str
    """The address of this end, for display."""
    remote: str
    """The address of the other end, for display."""
    dialed: bool
    """Whether this end dialled the link."""
    dialed_address: str = ""
    """The address as it was passed to dial; empty for an accepted link."""
    why: str = ""
    """Why this path was chosen among several, for display, e.g. `quic did not answer within 0.4 s`."""
    rtt_s: float | None
    """Smoothed round-trip time in seconds (RFC 6298); None before the first measurement."""
    rtt_variance_s: float | None
    """Mean deviation of the round-trip time in seconds (RFC 6298); None before the first measurement."""
    path_rtt_s: float | None = None
    """Smallest round-trip time of the last few seconds, for routing; None before the first measurement.

    It follows a change of the path within four seconds. Delays of a busy event loop at either end do not count."""
    loss: float | None
    """Moving average of the share of lost packets that this end sent, from 0 to 1, over about ten seconds.

    The share of unanswered pings if the driver does not measure the loss of packets; None if nothing is measured."""
    queue_delay_s: float
    """Moving average of the round-trip time above `path_rtt_s`, in seconds: the delay in queues on the path."""
    is_suspect: bool = False
    """Whether something is unanswered for so long that the peer may be unreachable, until something arrives; or `is_closing`."""
    is_closing: bool = False
    """Whether one of the two nodes gives up this link on purpose, e.g. for a link to a nearer node. It ends within 28 s."""
    bytes_in: int
    """Bytes received since the link was established."""
    bytes_out: int
    """Bytes sent since the link was established."""
    sessions: int
    """Number of open sessions."""
    up_since: float
    """Time at which the handshake completed, in seconds of `Clock.now`."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A handshake was completed: the link is the first one to the peer, or it replaces a link that no longer works."""

    link: LinkInfo


@dataclass(frozen=True, slots=True)
class LinkMoved:
    """A link over another driver replaced a link that still works.

    Open sessions continue on the old link for a few seconds; new sessions are opened on the new link.
    """

    link: LinkInfo


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """The first round trip of a link is known, about one round trip after `LinkUp` or `LinkMoved`. Sent once per link."""

    link: LinkInfo


@dataclass(frozen=True, slots=True)
class LinkSuspect:
    """The peer of a link may be unreachable, or it is reachable again.

    A link becomes suspect when a ping is unanswered for about 1.25 s, and nothing else has arrived meanwhile; with QUIC, when any
    data is unacknowledged for three round trips and at least 0.3 s. Prefer other links for new work until something arrives
    (`is_suspect` is then False) or the link ends. It is also sent when a link is given up on purpose (`link.is_closing`).
    """

    link: LinkInfo
    is_suspect: bool


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The only link to a peer ended. Not sent for a link that was replaced.

    If the link was given up on purpose (`link.is_closing`), its open sessions continue for a while.
    """

    link: LinkInfo
    error: MicroError


@dataclass(frozen=True, slots=True)
class DialSucceeded:
    """The dial of an address ended, and the node there is linked.

    Each dial, and each further attempt for an address that is kept linked, ends in exactly one `DialSucceeded` or
    `DialFailed`. If the dial made the link, `LinkUp` comes first.
    """

    address: str
    """The address as it was passed to dial."""
    peer: str
    """Id of the node at the address."""
    was_linked: bool
    """Whether the node was linked by other means: it dialled this node, or it was dialled at another address."""


@dataclass(frozen=True, slots=True)
class DialFailed:
    """The dial of an address ended: all paths have failed. An address that is kept linked is dialled again later."""

    address: str
    error: MicroError


LinkEvent = LinkUp | LinkMoved | LinkMeasured | LinkSuspect | LinkDown | DialSucceeded | DialFailed

LinkEventHandler = Callable[[LinkEvent], None]
"""Receives link events in the event loop, in the order in which they happen."""


class Session(Socket, Protocol):
    """A socket over a link, bound to one peer. When its link ends, the session ends immediately with an error."""

    channel: str
    """Name of the channel."""
    peer: str
    """Node id of the other end; empty for multicast and broadcast."""


class ChannelListener(Protocol):
    """A channel on which this node listens."""

    channel: str
    """Name of the channel."""

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        ...


MessageReceiver = Callable[[str, bytes], None]
"""Called with (node id of the peer, payload) for each multicast or broadcast message of a channel."""


class Sessions(Protocol):
    """Opens and accepts sessions. The links may be those of another process.

    Both ends of a link can dial and listen for sessions, regardless of which end dialled the link.
    """

    node_id: str
    """Id of this node."""

    def links(self) -> list[LinkInfo]:
        """Return the current links, at most one per peer."""
        ...

    def link(self, peer: str) -> LinkInfo | None:
        """Return the current link to `peer`, or None. Its cost does not depend on the number of links."""
        ...

    async def unlink(self, peer: str, error: MicroError | None = None) -> None:
        """End the link to `peer` and its sessions with `error`. Does nothing if there is no link."""
        ...

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        """Open a unicast session without waiting for the peer. If the peer refuses it, `socket_lost` is called.

        Args:
            channel: Name of the channel.
            peer: Node id of the other end.
            priority: Priority of the data of the session.

        Raises:
            Unreachable: There is no link to the peer.
            Overloaded: The link has too many open sessions.
        """
        ...

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        """Accept unicast sessions on a channel.

        Args:
            channel: Name of the channel.
            accept: Called in the event loop for each session. It calls `start` on the session.

        Raises:
            Conflict: The channel has a listener already.
        """
        ...

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver all later link events to `handler`, the only subscriber.

        The code that assembles a node sets the handler once and passes events on to the components. Links that are
        established already are in `links()`.

        Raises:
            Conflict: A handler is set already.
        """
        ...


class Tunnel(Sessions, Protocol):
    """The links to other nodes, the sessions on named channels over them, and messages to many peers."""

    def address(self) -> list[str]:
        """Return the addresses at which this tunnel listens, with schemes."""
        ...

    async def connect(self) -> None:
        """Start the drivers and listen.

        Raises:
            Conflict: A listen address is in use.
        """
        ...

    async def close(self) -> None:
        """Close sessions, links and listeners within a few seconds. Safe to call twice."""
        ...

    async def link_to(self, address: str, *, timeout_s: float) -> LinkInfo:
        """Dial a node, complete the handshake, and return the link to it, which may be an existing link.

        Args:
            address: Address of the node, e.g. `quic://host:8085`, or several addresses joined by `|`.
            timeout_s: Maximum time in seconds for each path, greater than 0.

        Raises:
            Unreachable: No path leads to the node within the timeout.
            Unauthorized: The token or the name of the network differs, or the node dialled itself.
        """
        ...

    def send(self, channel: str, payload: bytes, *, mode: DialMode, priority: Priority = Priority.CONTROL) -> int:
        """Send one message to many peers, and return the number of links on which it was sent. Does not wait.

        Args:
            channel: Name of the channel.
            payload: The message, at most `limits.MAX_MULTICAST_BYTES`.
            mode: MULTICAST or BROADCAST.
            priority: Priority of the message.

        Raises:
            TooLarge: The payload exceeds the limit.
            BadRequest: The mode is UNICAST, for which `dial` is used.
        """
        ...

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        """Receive the multicast and broadcast messages of a channel, each exactly once per `send` of a peer.

        Args:
            channel: Name of the channel.
            receive: Called in the event loop for each message; must not block.
        """
        ...
