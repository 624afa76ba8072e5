"""What a visitor at the tunnel's door is once its request was granted: a session, a listener, a watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from micro_core.contract.errors import Malformed, MicroError, Overloaded
from micro_core.contract.tunnel import Session
from micro_core.standalone.tunnel import protocol as wire
from micro_core.standalone.tunnel.protocol import Kind

if TYPE_CHECKING:
    from micro_core.standalone.tunnel.ipc_server import TunnelDoor, Visitor

MAX_UNREAD_EVENTS = 1_000
"""Changes that wait for a watcher that does not read; one more ends it, and it comes back for the whole."""


class Guest(Protocol):
    """Called in the event loop; must not block. A MicroError raised for a message ends the visit."""

    def message_received(self, kind: Kind, payload: bytes) -> None: ...

    def visitor_paused(self) -> None:
        """The visitor reads too slowly: send nothing that can wait."""
        ...

    def visitor_resumed(self) -> None: ...

    def visitor_gone(self) -> None:
        """The visit is over; may be told twice."""
        ...


class Carried:
    """A session of the tunnel and the socket of a visitor, each the other's other half; a `SocketReceiver`."""

    def __init__(self, door: TunnelDoor, visitor: Visitor, session: Session) -> None:
        self._door = door
        self._visitor = visitor
        self._session = session
        self._is_over = False
        visitor.send(wire.encode_map(Kind.OPEN, {"peer": session.peer, "remote": session.remote}))
        session.start(self)

    # From the session

    def data_received(self, data: bytes) -> None:
        self._visitor.send(wire.encode_data(data))

    def socket_lost(self, error: MicroError) -> None:
        self._is_over = True
        self._visitor.end(error)

    def pause_writing(self) -> None:
        """The session is full: the visitor is not heard until there is room."""
        self._visitor.socket.pause_reading()

    def resume_writing(self) -> None:
        self._visitor.socket.resume_reading()

    # From the visitor

    def message_received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.DATA:
            self._session.write(payload)
        elif kind is Kind.END:
            self._visitor.end(None)
            self.visitor_gone()
        else:
            raise Malformed(f"tunnel door: a {kind.name} within a session")

    def visitor_paused(self) -> None:
        self._session.pause_reading()

    def visitor_resumed(self) -> None:
        self._session.resume_reading()

    def visitor_gone(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._door.behind(self._session.close())


class Doorkeeper:
    """Listens on a channel for a visitor, and tells it the ticket of each session that a peer opens."""

    def __init__(self, door: TunnelDoor, visitor: Visitor, channel: str) -> None:
        self._door = door
        self._visitor = visitor
        self._listener = door.tunnel.listen(channel, self._opened)
        visitor.send(wire.encode_map(Kind.OPEN, {"channel": channel}))

    def _opened(self, session: Session) -> None:
        ticket = self._door.ticket_for(session)
        if ticket is not None:
            event = {"ticket": ticket, "peer": session.peer, "remote": session.remote}
            self._visitor.send(wire.encode_map(Kind.EVENT, event))

    def message_received(self, kind: Kind, payload: bytes) -> None:  # noqa: ARG002 - only its kind counts
        if kind is not Kind.END:
            raise Malformed(f"tunnel door: a {kind.name} of a listener")
        self._visitor.end(None)
        self.visitor_gone()

    def visitor_paused(self) -> None:
        """What waits is bounded by the tickets."""

    def visitor_resumed(self) -> None:
        """See `visitor_paused`."""

    def visitor_gone(self) -> None:
        self._listener.close()


class Watcher:
    """Hears of each link: those that stand, then each change, and what they cost every second."""

    def __init__(self, door: TunnelDoor, visitor: Visitor) -> None:
        self._door = door
        self._visitor = visitor
        self._is_paused = False
        self._unread = 0
        visitor.send(wire.encode_map(Kind.OPEN, {"node_id": door.tunnel.node_id, **door.facts()}))
        now = door.clock.now()
        for link in door.tunnel.links():
            self.tell({"is": "up", "link": wire.link_to_map(link, now)})
        self.tell({"synced": True})

    def tell(self, event: dict[str, Any]) -> None:
        """Send a change."""
        self._unread = self._unread + 1 if self._is_paused else 0
        if self._unread > MAX_UNREAD_EVENTS:
            self._door.counters.add("tunnel_door_watchers_slow")
            self._visitor.end(Overloaded("the watcher does not read"))
            self.visitor_gone()
            return
        self._visitor.send(wire.encode_map(Kind.EVENT, event))

    def beat(self, changed: list[dict[str, Any]]) -> None:
        """Send what the links cost now, unless the visitor is behind: the next beat says it again."""
        if not self._is_paused:
            for event in changed:
                self._visitor.send(wire.encode_map(Kind.EVENT, event))
            self._visitor.send(wire.encode(Kind.EVENT))

    def message_received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.END:
            self._visitor.end(None)
            self.visitor_gone()
        elif kind is Kind.EVENT:
            self._door.behind(self._door.tunnel.unlink(wire.text_of(wire.decode_map(payload), "unlink")))
        else:
            raise Malformed(f"tunnel door: a {kind.name} of a watcher")

    def visitor_paused(self) -> None:
        self._is_paused = True

    def visitor_resumed(self) -> None:
        self._is_paused = False

    def visitor_gone(self) -> None:
        self._door.forget_watcher(self)
