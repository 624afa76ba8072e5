"""The proxy of a node: handles the requests on all its sockets, whether they are local or tunnelled.

A request for a service of the node itself goes to the node's server. Any other request is sent along a route; from then on
its frames are passed on by callbacks. Only a missing connection to a local instance is dialled in a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from micro_core.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    LinkLost,
    Malformed,
    MicroError,
    Overloaded,
    Unreachable,
)
from micro_core.contract.names import short_id
from micro_core.contract.table import LOCAL_LINK, Route, RouteKey
from micro_core.contract.tunnel import Priority, Session
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.call_accounts import CallAccounts
from micro_core.proxy.forward import check_may_pass, is_restricted, next_hop_header, no_route, usable_routes
from micro_core.proxy.forwarded_call import CalleeEnd, CallerEnd, ForwardedCall
from micro_core.proxy.peer_connections import PeerConnections, SessionDialer
from micro_core.proxy.route_choice import RouteChooser
from micro_core.proxy.route_usage import RouteUsage
from micro_core.proxy.routes import RouteSource
from micro_core.proxy.waiting_calls import WaitingCalls
from micro_core.rpc.connection import Connection
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.graceful_shutdown import flush_all, send_goaway_and_flush
from micro_core.rpc.pool import Pool
from micro_core.rpc.server import Server
from micro_core.wire.frames import MORE, Frame, encode
from micro_core.wire.header import CallHeader, CallMode, EventHeader, decode_call_header

CHANNEL = "rpc"
"""Tunnel channel on which nodes accept calls of each other."""

CONNECT_TIMEOUT_S = 3.0
"""Seconds that a next hop has to accept a connection before the next route is tried."""

IDLE_CHECK_S = 0.5
"""Seconds between two checks whether the calls on a retired connection have ended."""

MessageHandler = Callable[[EventHeader, bytes], None]
"""Called with (header, body) for each message that a peer sends."""


class Proxy:
    """Forwards calls by route. There is one per node. Implements `ConnectionHandler` and `CallForwarder`.

    `own_services` are answered by `server`. `pool` dials local instances, `dial_session` opens sessions to peers. `at`
    describes the node in errors.
    """

    def __init__(
        self,
        *,
        at: str,
        router: RouteSource,
        server: Server,
        own_services: Collection[str],
        pool: Pool,
        dial_session: SessionDialer,
        environment: Environment,
    ) -> None:
        self.node_id = environment.node_id
        self.at = at
        self._router = router
        self._server = server
        self._own_services = frozenset(own_services)
        self._pool = pool
        self._now = environment.clock.now
        self._counters = environment.counters
        self._calls: dict[ForwardedCall, None] = {}
        self._chooser = RouteChooser(environment.random)
        self._accounts = CallAccounts(self._chooser, self._now)
        # A method of the accounts, because a wrapper would cost one more function call for each call.
        self.answered = self._accounts.answered
        self._waiting = WaitingCalls(
            router,
            own_names=("", at, self.node_id, short_id(self.node_id)),
            now=self._now,
            counters=self._counters,
            resume=lambda call: self._forward(call, None),
        )
        self._peers = PeerConnections(dial_session, connect=self._connect, retire=self._retire)
        self._tasks = BackgroundTasks(
            component="proxy",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="proxy_tasks_failed",
        )
        self._deadlines = Deadlines()
        self._message_handler: MessageHandler | None = None
        self._check_suspension: Callable[[], object] = _do_nothing
        self._accepted: dict[Connection, None] = {}
        self._idle = asyncio.Event()
        self._is_draining = False

    @property
    def in_flight(self) -> int:
        """Number of calls that pass through now."""
        return len(self._calls)

    def waiting_us(self, key: RouteKey) -> int:
        """Return how much longer than usual recent calls along a route have waited, in microseconds."""
        return self._chooser.waiting_us(key, self._now())

    def set_message_handler(self, handler: MessageHandler) -> None:
        """Pass the messages that peers send to `handler`. Without a handler, messages are dropped and counted."""
        self._message_handler = handler

    def set_suspension_check(self, check: Callable[[], object]) -> None:
        """Call `check` before each call is forwarded. After a suspension of this process, it ends the links to the peers.

        A call of the site is often received before a timer can notice the suspension. Sent on a link that the peer has
        given up, it would fail; without the link, it waits for a route.
        """
        self._check_suspension = check

    # ------------------------------------------------------------ connections

    def accept_session(self, session: Session) -> None:
        """Handle the requests on a session that a peer opened on `CHANNEL`."""
        self.accept_socket(
            Connection(session, dialed=False, handler=self, node_id=self.node_id, counters=self._counters)
        )

    def accept_socket(self, connection: Connection) -> None:
        """Keep a connection until it ends, so that closing the proxy closes it."""
        self._accepted[connection] = None
        if self._is_draining:
            connection.send_goaway()

    def peer_connection(self, peer: str) -> Connection:
        """Return the connection on which messages are sent to `peer`. Raises Unreachable when there is no link."""
        return self._peers.get(peer, Priority.EVENTS)

    def peer_moved(self, peer: str) -> None:
        """Send new calls over another link to `peer` than the present one. Calls in flight end on the old link."""
        self._peers.retire_peer(peer)

    def peer_suspect(self, peer: str, is_suspect: bool) -> None:
        """Send new calls through other next hops while `peer` does not answer pings, if there are other ones."""
        self._chooser.peer_suspect(peer, is_suspect)

    # ------------------------------------------------------ ConnectionHandler

    def request_received(self, connection: Connection, frame: Frame) -> None:
        """Serve or forward a request."""
        try:
            header = decode_call_header(frame.header)
        except Malformed as error:
            self._counters.add("proxy_headers_malformed")
            error.at = error.at or self.at
            connection.refuse(frame.stream, error)
            return
        if header.service in self._own_services and header.metadata.get("micro-router", self.node_id) == self.node_id:
            self._server.serve(connection, frame, header)
            return
        refusal = check_may_pass(header, self.node_id, at=self.at)
        if refusal is not None:
            self._counters.add("proxy_calls_refused")
            connection.refuse(frame.stream, refusal)
            return
        self._check_suspension()
        call = ForwardedCall(self, connection, frame, header, self._now())
        connection.attach(frame.stream, CallerEnd(call))
        self._calls[call] = None
        self._deadlines.add(call.deadline, call)
        self._forward(call, None)

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:  # noqa: ARG002
        """Pass a message of a peer to the message handler."""
        if self._message_handler is None:
            self._counters.add("proxy_messages_without_handler")
            return
        self._message_handler(header, body)

    def connection_lost(self, connection: Connection, error: MicroError) -> None:  # noqa: ARG002 - calls get the error
        """Forget a connection. Its calls have been notified before."""
        self._accepted.pop(connection, None)
        self._peers.forget(connection)

    # ------------------------------------------------------------- forwarding

    def _forward(self, call: ForwardedCall, reason: MicroError | None) -> None:
        """Send the request along the best route that was not tried yet; without one, answer with `reason`."""
        header = call.header
        routes = self._router.lookup(header.service)
        refused_hops: list[tuple[str, str]] = []
        now = self._now()
        while routes and (usage := self._choose(call, routes, now, refused_hops)) is not None:
            route = usage.route
            self._accounts.started(call, usage, now)
            if route.link == LOCAL_LINK:
                connection = self._pool.find(route.address)
                if connection is None:
                    self._tasks.start(self._dial_local(call, route))
                    return
                refusal = self._attach(call, connection, now)
            else:
                refusal = self._attach_to_peer(call, route.gateway, now)
            if refusal is None:
                return
            self._accounts.refused(call, refusal)
            reason = refusal
            # The other routes through the same next hop would be refused as well.
            refused_hops.append((route.address, route.gateway))
        error = reason or (call.wait.reason if call.wait else None) or no_route(header, len(routes), at=self.at)
        if not self._waiting.hold(call, error, routes, is_refusal=reason is not None):
            call.refuse(error)

    def _choose(
        self, call: ForwardedCall, routes: Sequence[Route], now: float, refused_hops: Collection[tuple[str, str]]
    ) -> RouteUsage | None:
        header, came_from = call.header, call.caller.peer_id
        if not call.tried and not (header.metadata and is_restricted(header)):
            return self._chooser.choose(routes, now, via=header.via, came_from=came_from)
        permitted = {
            route.key
            for route in usable_routes(header, routes, came_from=came_from)
            if route.key not in call.tried and (route.address, route.gateway) not in refused_hops
        }
        return self._chooser.choose(routes, now, permitted=permitted) if permitted else None

    def _attach_to_peer(self, call: ForwardedCall, peer: str, now: float) -> MicroError | None:
        try:
            connection = self._peers.get(peer, _priority(call))
        except Unreachable as error:
            return error
        return self._attach(call, connection, now)

    def _attach(self, call: ForwardedCall, connection: Connection, now: float) -> MicroError | None:
        """Send the request. Return the error if nothing was sent, so that the next route can be tried."""
        frame = call.request
        if frame is None or call.is_finished:
            return None
        if connection.is_send_buffer_full:
            self._counters.add("proxy_calls_overloaded")
            return Overloaded(f"the send buffer to the next hop of {call.header.service} is full", at=self.at)
        elapsed_ms = int((now - call.started_at) * 1000)
        header = next_hop_header(frame.header, self.node_id, elapsed_ms)
        try:
            stream = connection.open_stream(CalleeEnd(call))
        except MicroError as error:
            # The connection has ended, is draining, or has too many streams.
            return error
        call.callee, call.callee_stream, call.sent_at = connection, stream, now
        connection.send(encode(frame.kind, stream, header, frame.body, frame.flags))
        if call.waiting:
            waiting, call.waiting = call.waiting, []
            for waiting_frame in waiting:
                call.forward_to_callee(waiting_frame)
        return None

    async def _dial_local(self, call: ForwardedCall, route: Route) -> None:
        try:
            connection = await self._pool.get(route.address, timeout_s=CONNECT_TIMEOUT_S)
        except MicroError as error:
            if not call.is_finished:
                error.at = error.at or self.at
                self._accounts.refused(call, error)
                self._forward(call, error)
            return
        refusal = self._attach(call, connection, self._now())
        if refusal is not None:
            self._accounts.refused(call, refusal)
            self._forward(call, refusal)

    def _connect(self, session: Session) -> Connection:
        return Connection(session, dialed=True, handler=self, node_id=self.node_id, counters=self._counters)

    def _retire(self, connection: Connection) -> None:
        """Keep a connection like an accepted one until its calls have ended."""
        self.accept_socket(connection)
        self._tasks.start(self._close_when_idle(connection))

    async def _close_when_idle(self, connection: Connection) -> None:
        while connection.error is None and connection.open_streams:  # noqa: ASYNC110 - an event costs time for each call
            await asyncio.sleep(IDLE_CHECK_S)
        await connection.close()

    # ---------------------------------------------------------- CallForwarder

    def reroute(self, call: ForwardedCall, error: MicroError) -> bool:
        """Try another route after the next hop refused the call with `error`. Return False when that is not possible.

        A call is rerouted only if the error states that no work was started, and only before its deadline.
        """
        if not error.retry_is_safe or self._now() >= call.deadline:
            return False
        self._accounts.refused(call, error)
        found = self._router.lookup(call.header.service)
        routes = usable_routes(call.header, found, came_from=call.caller.peer_id)
        if all(route.key in call.tried for route in routes):
            is_held = self._waiting.hold(call, error, found, is_refusal=True)
            if is_held:
                call.detach_callee()
            return is_held
        self._counters.add("proxy_calls_rerouted")
        call.detach_callee()
        self._forward(call, error)
        return True

    def refuse_unread(self, call: ForwardedCall, receiver: str) -> None:
        """End a call with Overloaded because `receiver` does not read, and its unread data exceeds the limit."""
        self._counters.add("proxy_calls_overloaded")
        call.refuse(Overloaded(f"{receiver} of {call.header.service} does not read: too much unsent data", at=self.at))

    def caller_sent(self, call: ForwardedCall, size_bytes: int) -> None:
        """Refuse a call that waits for a route when the data of such calls exceeds the limit."""
        wait = call.wait
        if wait is not None and not self._waiting.grown(wait, size_bytes) and wait.reason is not None:
            call.refuse(wait.reason)

    def callee_lost(self, call: ForwardedCall, error: MicroError) -> None:
        """Reroute a call whose connection to the next hop ended if that is safe; otherwise end it with LinkLost."""
        peer = "the service" if call.usage is None or not call.usage.gateway else "the next node"
        self._accounts.refused(call, error)
        if call.request is not None and error.retry_is_safe:
            # The peer never accepted the connection, so it cannot have processed the request.
            self._forward(call, error)
            return
        lost = LinkLost(
            f"the connection to {peer} broke during the call to {call.header.service}: {error.detail}",
            at=self.at,
            hint="the call may or may not have been processed; call again if that is safe",
        )
        if call.request is not None and call.header.idempotent:
            self._forward(call, lost)
            return
        call.refuse(lost)

    def expired(self, call: ForwardedCall) -> None:
        """End a call whose deadline has passed."""
        self._counters.add("proxy_deadlines_exceeded")
        timeout_s = call.header.timeout_ms / 1000
        call.refuse(DeadlineExceeded(f"{call.header.service} did not answer within {timeout_s:.3g} s", at=self.at))

    def finished(self, call: ForwardedCall) -> None:
        """Forget a call that has ended."""
        self._calls.pop(call, None)
        if call.wait is not None:
            self._waiting.remove(call)
        self._deadlines.discard(call.deadline, call)
        if not self._calls:
            self._idle.set()
        self._accounts.ended(call)

    # --------------------------------------------------------------------- end

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls on all connections (GOAWAY) and wait at most `timeout_s` for the calls in flight."""
        self._is_draining = True
        self._waiting.close(Draining("the node is stopping", at=self.at))
        await send_goaway_and_flush(self._accepted)
        if self._calls:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                self._counters.add("proxy_calls_cut_by_drain", len(self._calls))
        await flush_all(list(self._accepted))

    async def close(self) -> None:
        """End all calls in flight with Cancelled, then close all connections."""
        self._waiting.close(Cancelled("the node stopped", at=self.at))
        for call in list(self._calls):
            call.refuse(Cancelled("the node stopped", at=self.at))
        await self._tasks.cancel()
        connections = [*self._accepted, *self._peers.all()]
        await asyncio.gather(*(connection.close() for connection in connections), return_exceptions=True)
        await self._pool.close()


def _priority(call: ForwardedCall) -> Priority:
    """Return the priority of a call: BULK for streams and large requests, so that small calls do not wait for them."""
    header: CallHeader = call.header
    request = call.request
    if header.bulk or header.mode != CallMode.UNARY or (request is not None and request.flags & MORE):
        return Priority.BULK
    return Priority.CALLS


def _do_nothing() -> None:
    """Check nothing: the process of the tunnel notices a suspension."""
