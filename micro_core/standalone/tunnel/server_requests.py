"""What the IPC server does for a granted request: relay a session, listen on a channel, or report the links."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from micro_core.contract.clock import Clock
from micro_core.contract.driver import Counters
from micro_core.contract.errors import Malformed, MicroError, Overloaded, error_from_wire
from micro_core.contract.transport import Socket
from micro_core.contract.tunnel import Session, Sessions
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.protocol import Kind

MAX_UNREAD_EVENTS = 1_000
"""Events queued for a client that does not read. With one more, the connection of a watcher ends, and it then reads all
links again. For a listener, the session of the peer is closed."""


class RequestHandler(Protocol):
    """Handles the messages that follow a granted request. The methods are called in the event loop and must not block.

    A MicroError raised by `message_received` ends the connection.
    """

    def message_received(self, kind: Kind, payload: bytes) -> None:
        """Handle one message of the client."""
        ...

    def client_paused(self) -> None:
        """Note that the client reads too slowly: send nothing that can wait."""
        ...

    def client_resumed(self) -> None:
        """Note that the client reads again."""
        ...

    def connection_ended(self) -> None:
        """Release everything. May be called twice."""
        ...


class RequestConnection(Protocol):
    """The connection of the client that sent the request."""

    socket: Socket

    def send(self, data: bytes) -> None:
        """Queue encoded messages."""
        ...

    def end(self, error: MicroError | None) -> None:
        """Send END with the error, then close the connection."""
        ...


class RequestServer(Protocol):
    """The IPC server, as far as the handlers of requests use it."""

    tunnel: Sessions
    facts: Callable[[], dict[str, Any]]
    clock: Clock
    counters: Counters

    def run_in_background(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task. A failure is counted and logged."""
        ...

    def ticket_for(self, session: Session) -> str | None:
        """Keep a session until a client accepts it. Close it and return None if too many sessions wait already."""
        ...

    def drop_session(self, session: Session) -> None:
        """Count and close a session that a peer has opened and no client can accept."""
        ...

    def remove_watcher(self, watcher: LinkWatcher) -> None:
        """Stop sending link events to a watcher."""
        ...


class RelayedSession:
    """Forwards data between a session of the tunnel and the connection of a client. Implements `SocketReceiver`."""

    def __init__(self, server: RequestServer, connection: RequestConnection, session: Session) -> None:
        self._server = server
        self._connection = connection
        self._session = session
        self._is_ended = False
        connection.send(ipc.encode_map(Kind.OPEN, {"peer": session.peer, "remote": session.remote}))
        session.start(self)

    # ------------------------------------------------------------ the session

    def data_received(self, data: bytes) -> None:
        """Forward data of the peer to the client."""
        self._connection.send(ipc.encode_data(data))

    def socket_lost(self, error: MicroError) -> None:
        """End the connection with the error of the session."""
        self._is_ended = True
        self._connection.end(error)

    def pause_writing(self) -> None:
        """Stop reading from the client until the session accepts data again."""
        self._connection.socket.pause_reading()

    def resume_writing(self) -> None:
        """Read from the client again."""
        self._connection.socket.resume_reading()

    # ------------------------------------------------------------- the client

    def message_received(self, kind: Kind, payload: bytes) -> None:
        """Forward DATA to the peer; close the session on END.

        Raises:
            Malformed: The message is of another kind.
        """
        if kind is Kind.DATA:
            self._session.write(payload)
        elif kind is Kind.END:
            self._connection.end(None)
            self.connection_ended()
        else:
            raise Malformed(f"tunnel IPC: unexpected {kind.name} in a session")

    def client_paused(self) -> None:
        """Stop reading from the peer."""
        self._session.pause_reading()

    def client_resumed(self) -> None:
        """Read from the peer again."""
        self._session.resume_reading()

    def connection_ended(self) -> None:
        """Close the session."""
        if not self._is_ended:
            self._is_ended = True
            self._server.run_in_background(self._session.close())


class ForwardedListener:
    """Listens on a channel for a client, and sends it a ticket for each session that a peer opens."""

    def __init__(self, server: RequestServer, connection: RequestConnection, channel: str) -> None:
        self._server = server
        self._connection = connection
        self._is_paused = False
        self._unread = 0
        self._listener = server.tunnel.listen(channel, self._session_opened)
        connection.send(ipc.encode_map(Kind.OPEN, {"channel": channel}))

    def _session_opened(self, session: Session) -> None:
        if self._is_paused and self._unread >= MAX_UNREAD_EVENTS:
            self._server.drop_session(session)
            return
        self._unread = self._unread + 1 if self._is_paused else 0
        ticket = self._server.ticket_for(session)
        if ticket is not None:
            event = {"ticket": ticket, "peer": session.peer, "remote": session.remote}
            self._connection.send(ipc.encode_map(Kind.EVENT, event))

    def message_received(self, kind: Kind, payload: bytes) -> None:  # noqa: ARG002 - END has no payload
        """Stop listening on END.

        Raises:
            Malformed: The message is of another kind.
        """
        if kind is not Kind.END:
            raise Malformed(f"tunnel IPC: unexpected {kind.name} from a listener")
        self._connection.end(None)
        self.connection_ended()

    def client_paused(self) -> None:
        """Count unread events from now on."""
        self._is_paused = True

    def client_resumed(self) -> None:
        """Queue events again."""
        self._is_paused = False

    def connection_ended(self) -> None:
        """Stop listening."""
        self._listener.close()


class LinkWatcher:
    """Sends a client all current links, then each change, and the measurements of all links at an interval."""

    def __init__(self, server: RequestServer, connection: RequestConnection) -> None:
        self._server = server
        self._connection = connection
        self._is_paused = False
        self._unread = 0
        connection.send(ipc.encode_map(Kind.OPEN, {"node_id": server.tunnel.node_id, **server.facts()}))
        now = server.clock.now()
        for link in server.tunnel.links():
            self.send_event({"kind": "up", "link": ipc.link_to_map(link, now)})
        self.send_event({"synced": True})

    def send_event(self, event: dict[str, Any]) -> None:
        """Send a change. End the connection if the client has MAX_UNREAD_EVENTS unread events."""
        self._unread = self._unread + 1 if self._is_paused else 0
        if self._unread > MAX_UNREAD_EVENTS:
            self._server.counters.add("tunnel_ipc_watchers_slow")
            self._connection.end(Overloaded(f"the watcher of the links has {MAX_UNREAD_EVENTS} unread events"))
            self.connection_ended()
            return
        self._connection.send(ipc.encode_map(Kind.EVENT, event))

    def send_heartbeat(self, events: list[dict[str, Any]]) -> None:
        """Send the measurements of the links and an empty event, unless the client is paused."""
        if not self._is_paused:
            for event in events:
                self._connection.send(ipc.encode_map(Kind.EVENT, event))
            self._connection.send(ipc.encode(Kind.EVENT))

    def message_received(self, kind: Kind, payload: bytes) -> None:
        """Close a link on EVENT {unlink}; end the watch on END.

        Raises:
            Malformed: The message is of another kind.
        """
        if kind is Kind.END:
            self._connection.end(None)
            self.connection_ended()
        elif kind is Kind.EVENT:
            event = ipc.decode_map(payload)
            peer = ipc.string_field(event, "unlink")
            error = error_from_wire(event["error"]) if "error" in event else None
            self._server.run_in_background(self._server.tunnel.unlink(peer, error))
        else:
            raise Malformed(f"tunnel IPC: unexpected {kind.name} from a watcher")

    def client_paused(self) -> None:
        """Count unread events from now on."""
        self._is_paused = True

    def client_resumed(self) -> None:
        """Send heartbeats again."""
        self._is_paused = False

    def connection_ended(self) -> None:
        """Stop the watch."""
        self._server.remove_watcher(self)
