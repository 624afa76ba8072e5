"""The IPC server of a tunnel process. Other processes of the node open and accept sessions of the tunnel through it.

Each session has a connection of its own to the server, which forwards data and backpressure in both directions. A client
can act for the node, so it must prove that it holds the token of the network before the server does anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from micro_core.contract.errors import BadRequest, Malformed, MicroError, NotFound, Overloaded, Unauthorized
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.contract.tunnel import (
    DialFailed,
    DialSucceeded,
    LinkDown,
    LinkEvent,
    LinkInfo,
    LinkMeasured,
    LinkMoved,
    LinkSuspect,
    LinkUp,
    Priority,
    Session,
    Sessions,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.protocol import Verb
from micro_core.standalone.tunnel.server_connection import ClientConnection
from micro_core.standalone.tunnel.server_requests import ForwardedListener, LinkWatcher, RelayedSession, RequestHandler
from micro_core.tunnel.identity import is_member

MAX_CONNECTIONS = 4_096
"""Open connections of clients. Further ones are refused and counted."""

MAX_TICKETS = 1_024
"""Sessions that peers have opened and no client has accepted yet."""

ACCEPT_TIMEOUT_S = 5.0
"""Seconds that such a session waits for a client to accept it."""

HEARTBEAT_S = 1.0
"""Interval at which watchers receive the measurements of all links. Without links, they receive an empty event."""


class IpcServer:
    """Serves the sessions and links of `tunnel`. Watchers receive the map that `facts()` returns about the node."""

    def __init__(
        self,
        *,
        tunnel: Sessions,
        network: str,
        token: str,
        facts: Callable[[], dict[str, Any]],
        environment: Environment,
    ) -> None:
        self.tunnel = tunnel
        self.facts = facts
        self.clock = environment.clock
        self.random = environment.random
        self.counters = environment.counters
        self.address = ""
        self._network = network
        self._token = token
        self._log = environment.logger
        self._listener: Listener | None = None
        self._connections: dict[ClientConnection, None] = {}
        self._watchers: dict[LinkWatcher, None] = {}
        self._tickets: dict[str, tuple[Session, asyncio.TimerHandle]] = {}
        self._tasks = BackgroundTasks(
            component="tunnel IPC server",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_ipc_tasks_failed",
        )
        self._heartbeat: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def start(self, transport: Transport, address: str) -> None:
        """Listen at `address`; `unix://` stands for an unused path. Raises Conflict when the address is in use."""
        self._listener = await transport.listen(address, self._accept)
        self.address = self._listener.address
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._send_heartbeat)

    async def close(self) -> None:
        """Close all connections and the sessions that belong to them. Safe to call twice."""
        self._is_closed = True
        if self._listener is not None:
            await self._listener.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        await asyncio.gather(*(connection.socket.close() for connection in [*self._connections]))
        for session, timer in self._tickets.values():
            timer.cancel()
            self.run_in_background(session.close())
        self._tickets.clear()
        await self._tasks.wait()

    # ------------------------------------------------------------ connections

    def _accept(self, socket: Socket) -> None:
        connection = ClientConnection(self, socket)
        if self._is_closed or len(self._connections) >= MAX_CONNECTIONS:
            self.counters.add("tunnel_ipc_connections_refused")
            connection.end(Overloaded(f"the IPC server of the tunnel has {MAX_CONNECTIONS} connections"))
            return
        self._connections[connection] = None
        connection.start()

    def remove_connection(self, connection: ClientConnection) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(connection, None)

    def report_refusal(self, connection: ClientConnection, error: MicroError) -> None:
        """Count and log a refused request."""
        self.counters.add("tunnel_ipc_requests_refused")
        self._log.warning(
            "request to the tunnel refused",
            extra={"remote": connection.socket.remote, "reason": str(error)},
        )

    def handle_request(self, connection: ClientConnection, nonce: bytes, request: dict[str, Any]) -> RequestHandler:
        """Check the proof of a request and carry it out. Raises also what the tunnel raises.

        Raises:
            Unauthorized: The proof is wrong.
            NotFound: No session waits for the ticket.
            BadRequest: The verb is unknown.
        """
        proof = request.get("proof")
        if not isinstance(proof, bytes) or not is_member(self._network, self._token, ipc.PROOF_CONTEXT + nonce, proof):
            raise Unauthorized("wrong proof of the network token", hint="use the same token for every component")
        verb = ipc.string_field(request, "verb")
        if verb == Verb.DIAL:
            session = self.tunnel.dial(
                ipc.string_field(request, "channel"),
                peer=ipc.string_field(request, "peer"),
                priority=_priority(request),
            )
            return RelayedSession(self, connection, session)
        if verb == Verb.ACCEPT:
            waiting = self._tickets.pop(ipc.string_field(request, "ticket"), None)
            if waiting is None:
                raise NotFound("no session with this ticket: it was accepted already, has ended, or waited too long")
            session, timer = waiting
            timer.cancel()
            return RelayedSession(self, connection, session)
        if verb == Verb.LISTEN:
            return ForwardedListener(self, connection, ipc.string_field(request, "channel"))
        if verb == Verb.WATCH:
            watcher = LinkWatcher(self, connection)
            self._watchers[watcher] = None
            return watcher
        raise BadRequest(f"unknown verb {verb!r:.40} in a request to the tunnel")

    def ticket_for(self, session: Session) -> str | None:
        """Keep a session until a client accepts it. Close it and return None if MAX_TICKETS sessions wait already."""
        if len(self._tickets) >= MAX_TICKETS or self._is_closed:
            self.drop_session(session)
            return None
        ticket = f"{self.random.getrandbits(128):032x}"
        timer = asyncio.get_running_loop().call_later(ACCEPT_TIMEOUT_S, self._accept_timed_out, ticket)
        self._tickets[ticket] = (session, timer)
        return ticket

    def drop_session(self, session: Session) -> None:
        """Count and close a session that a peer has opened and no client can accept."""
        self.counters.add("tunnel_ipc_sessions_dropped")
        self.run_in_background(session.close())

    def _accept_timed_out(self, ticket: str) -> None:
        session, _ = self._tickets.pop(ticket)
        self.counters.add("tunnel_ipc_sessions_not_accepted")
        self.run_in_background(session.close())

    # ------------------------------------------------------------------ links

    def remove_watcher(self, watcher: LinkWatcher) -> None:
        """Stop sending link events to a watcher."""
        self._watchers.pop(watcher, None)

    def handle_link_event(self, event: LinkEvent) -> None:
        """Report a change of the links to every client that watches them."""
        match event:
            case LinkUp(link):
                self._send_to_watchers(link, "up")
            case LinkMoved(link):
                self._send_to_watchers(link, "moved")
            case LinkDown(link, error):
                self._send_to_watchers(link, "down", error)
            case LinkMeasured(link) | LinkSuspect(link, _):
                self._send_to_watchers(link, "changed")
            case DialSucceeded() | DialFailed():
                # The network component of this process reports it.
                pass

    def _send_to_watchers(self, link: LinkInfo, kind: str, error: MicroError | None = None) -> None:
        event: dict[str, Any] = {"kind": kind, "link": ipc.link_to_map(link, self.clock.now())}
        if error is not None:
            event["error"] = error.to_wire()
        for watcher in [*self._watchers]:
            watcher.send_event(event)

    def _send_heartbeat(self) -> None:
        if self._watchers:
            now = self.clock.now()
            events = [{"kind": "changed", "link": ipc.link_to_map(link, now)} for link in self.tunnel.links()]
            for watcher in [*self._watchers]:
                watcher.send_heartbeat(events)
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._send_heartbeat)

    def run_in_background(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task. A failure is counted and logged."""
        self._tasks.start(work)


def _priority(request: Mapping[str, Any]) -> Priority:
    try:
        return Priority(request.get("priority", Priority.CALLS))
    except ValueError as error:
        raise Malformed(f"tunnel IPC: {error}") from error
