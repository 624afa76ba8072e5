"""The tunnel's door: other processes of this node send and accept sessions through it, as if the tunnel were theirs.

A session is a socket there too: bytes and backpressure of the one are those of the other. Whoever comes in speaks for
the node, so each visitor proves that it holds the network's token before anything else is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters
from micro_core.contract.errors import BadRequest, Malformed, MicroError, NotFound, Overloaded, Unauthorized
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.contract.tunnel import (
    DialFailed,
    LinkDown,
    LinkEvent,
    LinkInfo,
    LinkMoved,
    LinkUp,
    Priority,
    Session,
)
from micro_core.standalone.tunnel import protocol as wire
from micro_core.standalone.tunnel.ipc_requests import Carried, Doorkeeper, Guest, Watcher
from micro_core.standalone.tunnel.protocol import Kind, Verb
from micro_core.tunnel.identity import is_member
from micro_core.tunnel.tunnel import TunnelHost
from micro_core.wire import limits

MAX_VISITORS = 4_096
"""Sockets at once; one more is refused and counted."""

MAX_TICKETS = 1_024
"""Sessions that peers opened and no visitor has taken yet."""

TAKE_TIMEOUT_S = 5.0
"""How long such a session waits to be taken."""

BEAT_S = 1.0
"""A watcher hears so often what the links cost, if only that there are none: silence means that the tunnel hangs."""


class TunnelDoor:
    """Listens on the site's transport. `facts` are what a watcher is told of the node."""

    def __init__(
        self,
        *,
        tunnel: TunnelHost,
        network: str,
        token: str,
        facts: Callable[[], dict[str, Any]],
        clock: Clock,
        random: Random,
        logger: logging.Logger,
        counters: Counters,
    ) -> None:
        self.tunnel = tunnel
        self.facts = facts
        self.clock = clock
        self.random = random
        self.counters = counters
        self.address = ""
        self._network = network
        self._token = token
        self._log = logger
        self._listener: Listener | None = None
        self._visitors: dict[Visitor, None] = {}
        self._watchers: dict[Watcher, None] = {}
        self._tickets: dict[str, tuple[Session, asyncio.TimerHandle]] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._beat: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def start(self, transport: Transport, address: str) -> None:
        """Open at `address` (`unix://` for any free place). Raises Conflict."""
        self._listener = await transport.listen(address, self._accept)
        self.address = self._listener.address
        self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._beat_now)

    async def close(self) -> None:
        """End every visitor; their sessions end with them. Safe to call twice."""
        self._is_closed = True
        if self._listener is not None:
            await self._listener.close()
        if self._beat is not None:
            self._beat.cancel()
        await asyncio.gather(*(visitor.socket.close() for visitor in [*self._visitors]))
        for session, timer in self._tickets.values():
            timer.cancel()
            self.behind(session.close())
        self._tickets.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -------------------------------------------------------------- visitors

    def _accept(self, socket: Socket) -> None:
        visitor = Visitor(self, socket)
        if self._is_closed or len(self._visitors) >= MAX_VISITORS:
            self.counters.add("tunnel_door_refused")
            visitor.end(Overloaded("too many processes at the door of the tunnel"))
            return
        self._visitors[visitor] = None
        visitor.start()

    def left(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor, None)

    def refused(self, visitor: Visitor, error: MicroError) -> None:
        self.counters.add("tunnel_door_requests_refused")
        self._log.warning(
            "a request at the tunnel's door was refused",
            extra={"remote": visitor.socket.remote, "reason": str(error)},
        )

    def grant(self, visitor: Visitor, nonce: bytes, request: dict[str, Any]) -> Guest:
        """Do what a request asks. Raises MicroError."""
        proof = request.get("proof")
        if not isinstance(proof, bytes) or not is_member(self._network, self._token, wire.CONTEXT + nonce, proof):
            raise Unauthorized("the proof of the network's token is wrong", hint="the same token for every component")
        verb = wire.text_of(request, "verb")
        if verb == Verb.DIAL:
            session = self.tunnel.dial(
                wire.text_of(request, "channel"), peer=wire.text_of(request, "peer"), priority=_priority(request)
            )
            return Carried(self, visitor, session)
        if verb == Verb.TAKE:
            taken = self._tickets.pop(wire.text_of(request, "ticket"), None)
            if taken is None:
                raise NotFound("no session waits under this ticket: it was taken, has ended, or waited too long")
            taken[1].cancel()
            return Carried(self, visitor, taken[0])
        if verb == Verb.LISTEN:
            return Doorkeeper(self, visitor, wire.text_of(request, "channel"))
        if verb == Verb.WATCH:
            watcher = Watcher(self, visitor)
            self._watchers[watcher] = None
            return watcher
        raise BadRequest(f"the door of a tunnel knows no {verb!r:.40}")

    def ticket_for(self, session: Session) -> str | None:
        """Keep a session until somebody takes it; None where too many wait."""
        if len(self._tickets) >= MAX_TICKETS or self._is_closed:
            self.counters.add("tunnel_door_sessions_dropped")
            self.behind(session.close())
            return None
        ticket = f"{self.random.getrandbits(128):032x}"
        timer = asyncio.get_running_loop().call_later(TAKE_TIMEOUT_S, self._untaken, ticket)
        self._tickets[ticket] = (session, timer)
        return ticket

    def _untaken(self, ticket: str) -> None:
        session, _ = self._tickets.pop(ticket)
        self.counters.add("tunnel_door_sessions_untaken")
        self.behind(session.close())

    # ----------------------------------------------------------------- links

    def forget_watcher(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    def _tell(self, link: LinkInfo, what: str, error: MicroError | None = None) -> None:
        event: dict[str, Any] = {"is": what, "link": wire.link_to_map(link, self.clock.now())}
        if error is not None:
            event["error"] = error.to_wire()
        for watcher in [*self._watchers]:
            watcher.tell(event)

    def handle_link_event(self, event: LinkEvent) -> None:
        """Report a change of the links to every client that watches them."""
        match event:
            case LinkUp(link):
                self._tell(link, "up")
            case LinkMoved(link):
                self._tell(link, "moved")
            case LinkDown(link, error):
                self._tell(link, "down", error)
            case DialFailed():
                # The network component of this process reports it.
                pass

    def _beat_now(self) -> None:
        if self._watchers:
            now = self.clock.now()
            changed = [{"is": "changed", "link": wire.link_to_map(link, now)} for link in self.tunnel.links()]
            for watcher in [*self._watchers]:
                watcher.beat(changed)
        self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._beat_now)

    def behind(self, work: Coroutine[None, None, None]) -> None:
        """Do it, and let nobody wait for it."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.counters.add("tunnel_door_tasks_failed")
            self._log.error("a task of the tunnel's door failed", exc_info=error)


class Visitor:
    """One socket at the door; a `SocketReceiver`. Until its request is granted it may say one short message."""

    def __init__(self, door: TunnelDoor, socket: Socket) -> None:
        self.socket = socket
        self._door = door
        self._reader = wire.Reader()
        self._nonce = door.random.getrandbits(wire.NONCE_BYTES * 8).to_bytes(wire.NONCE_BYTES, "big")
        self._guest: Guest | None = None
        self._is_over = False
        self._is_full = False
        self._timer = asyncio.get_running_loop().call_later(limits.HANDSHAKE_TIMEOUT_S, self._too_late)

    def start(self) -> None:
        self.socket.write(wire.encode(Kind.NONCE, self._nonce))
        self.socket.start(self)

    def send(self, data: bytes) -> None:
        if not self._is_over:
            self.socket.write(data)

    def end(self, error: MicroError | None) -> None:
        """Say why, then close."""
        if self._is_over:
            return
        self._is_over = True
        self._timer.cancel()
        payload = wire.encode_map(Kind.END, error.to_wire()) if error is not None else wire.encode(Kind.END)
        self.socket.write(payload)
        self._door.behind(self.socket.close())

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        try:
            for kind, payload in self._reader.receive(data):
                self._receive(kind, payload)
                if self._is_over:
                    return
        except MicroError as error:
            self._door.refused(self, error)
            self.end(error)
            if self._guest is not None:
                self._guest.visitor_gone()

    def pause_writing(self) -> None:
        self._is_full = True
        if self._guest is not None:
            self._guest.visitor_paused()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._guest is not None:
            self._guest.visitor_resumed()

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - what it had goes, whatever the reason
        self._is_over = True
        self._timer.cancel()
        self._door.left(self)
        if self._guest is not None:
            self._guest.visitor_gone()

    def _receive(self, kind: Kind, payload: bytes) -> None:
        if self._guest is not None:
            self._guest.message_received(kind, payload)
            return
        if kind is not Kind.REQUEST:
            raise Malformed(f"tunnel door: the first message is {kind.name}, not REQUEST")
        self._timer.cancel()
        self._guest = self._door.grant(self, self._nonce, wire.decode_map(payload))
        if self._is_full:
            self._guest.visitor_paused()

    def _too_late(self) -> None:
        self.end(Malformed(f"tunnel door: no request within {limits.HANDSHAKE_TIMEOUT_S:g} s"))


def _priority(request: Mapping[str, Any]) -> Priority:
    try:
        return Priority(request.get("priority", Priority.CALLS))
    except ValueError as error:
        raise Malformed(f"tunnel door: {error}") from error
