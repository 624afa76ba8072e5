"""The tunnel role. A plugin supplies *links*; core supplies sessions, credit, identity and priorities.

For drivers: `LinkDriver` (dial, listen), `Link`, `LinkReceiver`. For users of the tunnel: `Tunnel`, `Sessions` (its
part that other processes can have), `Session` (which is a `Socket`), `ChannelListener`, `LinkInfo`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract.errors import MicroError
from micro_core.contract.transport import Listener, Socket


class Priority(enum.IntEnum):
    """What goes first on a link; also the number of the lane where a link has four."""

    CONTROL = 0
    CALLS = 1
    EVENTS = 2
    BULK = 3

    __hash__ = int.__hash__  # a part of keys on the hot path; Enum's own hash is interpreted


class LinkReceiver(Protocol):
    """Who reads a link. Called in the event loop; must not block."""

    def data_received(self, lane: int, data: bytes) -> None:
        """Bytes of one lane, in order within the lane. Boundaries mean nothing."""
        ...

    def lane_writable(self, lane: int) -> None:
        """`buffered_bytes(lane)` has fallen below the link's low mark after having been above it."""
        ...

    def link_lost(self, error: MicroError) -> None:
        """The end, called exactly once: Closed, Ended or LinkLost."""
        ...


class Link(Protocol):
    """One encrypted connection between two nodes, carrying ordered byte lanes.

    A link has `lane_count` lanes: 4 (one per Priority: nobody waits behind a large transfer) or 1 (core then
    interleaves). A driver authenticates nobody: core's handshake does, over lane 0, before anything else.
    """

    lane_count: int
    local: str
    remote: str
    driver: str
    """The driver's name, `quic`."""

    channel_binding: bytes
    """32 bytes or more that both ends of this very connection share and a machine in the middle cannot:
    the SHA-256 of the server's certificate in use (RFC 5929 `tls-server-end-point`), in DER."""

    def start(self, receiver: LinkReceiver) -> None:
        """Begin to deliver. Nothing is lost that arrived before."""
        ...

    def write(self, lane: int, data: bytes) -> None:
        """Queue bytes; never blocks; sent at the latest at the end of this turn of the loop."""
        ...

    def buffered_bytes(self, lane: int) -> int:
        """Bytes accepted by `write` and not yet handed to the network."""
        ...

    def transport_rtt_s(self) -> float | None:
        """The smoothed round trip as the protocol below knows it, or None."""
        ...

    async def close(self) -> None:
        """Send what is queued, for at most one second, then end. Safe to call twice."""
        ...


class LinkDriver(Protocol):
    """What a tunnel plugin is: two verbs."""

    scheme: str
    """The word before `://` in its addresses: `quic`."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Connect to `host:port` (with or without `scheme://`). Raises Unreachable."""
        ...

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen at `host:port` (empty host: every interface; port 0: any). Raises Conflict when it is taken.

        `accept` is called for each link whose encryption stands; it calls `start`.
        """
        ...


class DialMode(enum.Enum):
    """To whom a session goes."""

    UNICAST = "unicast"
    """One peer; both ends speak."""
    MULTICAST = "multicast"
    """Every linked peer that listens on the channel, now or later; one-way, each message whole."""
    BROADCAST = "broadcast"
    """Every linked peer, whether it listens or not (those that do not, drop and count)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """A link as `Tunnel.links()` shows it; equal at both ends but for direction."""

    peer: str
    """Node id of the other end."""
    peer_name: str
    site: str
    """The other end's site."""
    link_id: str
    generation: int
    """Counts the links with this peer: a newer one replaces the older."""
    driver: str
    local: str
    remote: str
    dialed: bool
    dialed_address: str = ""
    """The address as it was given to dial; empty for an accepted link."""
    why: str = ""
    """What spoke for this driver where there was a choice, for people: `quic gave no answer in 0.4 s`."""
    rtt_s: float | None
    rtt_variance_s: float | None
    loss: float | None
    queue_delay_s: float
    bytes_in: int
    bytes_out: int
    sessions: int
    up_since: float
    """Clock seconds (`Clock.now`) at which the handshake ended."""


class Session(Socket, Protocol):
    """A socket over a link, bound to the peer. It ends with its link, at once and with an error."""

    channel: str
    peer: str
    """Node id of the other end; empty for multicast and broadcast."""


class ChannelListener(Protocol):
    """A channel that is being listened on."""

    channel: str

    def close(self) -> None: ...


MessageReceiver = Callable[[str, bytes], None]
"""Called with (peer node id, payload) for each multicast or broadcast message of a channel."""


class Sessions(Protocol):
    """Links to other nodes as seen by who only sends sessions over them; the tunnel may be another process's.

    Either side of a link dials or listens.
    """

    node_id: str

    def links(self) -> list[LinkInfo]: ...

    async def unlink(self, peer: str) -> None:
        """Close the link to a peer, if there is one."""
        ...

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        """Open a unicast session to `peer`. Does not wait: a refusal arrives as `socket_lost`.

        Raises Unreachable when no link to the peer stands.
        """
        ...

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        """Accept unicast sessions on `channel`. Raises Conflict when somebody listens already."""
        ...

    def on_link_up(self, callback: Callable[[LinkInfo], None]) -> None:
        """Called after each handshake (again when a newer generation replaces a link), unless `on_link_moved` is."""
        ...

    def on_link_moved(self, callback: Callable[[LinkInfo], None]) -> None:
        """Called when a link over another driver has taken over from one that still works.

        Sessions of the old one go on for a few seconds; new ones are opened on the new one.
        """
        ...

    def on_link_down(self, callback: Callable[[LinkInfo, MicroError], None]) -> None:
        """Called when a peer's last link is gone; not for a link that was replaced."""
        ...


class Tunnel(Sessions, Protocol):
    """Links to other nodes, sessions on named channels over them, and messages to many."""

    def address(self) -> list[str]:
        """Where this tunnel listens, with schemes."""
        ...

    async def connect(self) -> None:
        """Start the drivers, listen."""
        ...

    async def close(self) -> None:
        """Close sessions, links, listeners; bounded to a few seconds."""
        ...

    async def link_to(self, address: str, *, timeout_s: float) -> LinkInfo:
        """Dial a node and shake hands. Raises Unreachable, Unauthorized (token, network name, or oneself)."""
        ...

    def send(self, channel: str, payload: bytes, *, mode: DialMode, priority: Priority = Priority.CONTROL) -> int:
        """Send one message (at most `limits.MAX_MULTICAST_BYTES`) to many; returns to how many links it went.

        With DialMode.UNICAST, raises BadRequest: that is what `dial` is for.
        """
        ...

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        """Receive the multicast and broadcast messages of `channel`, each exactly once per sender's `send`."""
        ...
