"""The proxy: the handler of every socket of a node, local or tunnelled.

A request for one of the node's own services goes to its server; any other gets a plan, a pair of streams, and from
then on only callbacks. A connection to a next hop is dialled in a task, once, when there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from micro_core.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    LinkLost,
    Malformed,
    MicroError,
    Overloaded,
    Unreachable,
)
from micro_core.contract.table import LOCAL_LINK, Route, RouteKey
from micro_core.contract.tunnel import Priority, Session
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.forward import check_may_pass, no_route, onward_header, usable_routes
from micro_core.proxy.forwarded_call import CalleeEnd, CallerEnd, Pair, RouteUsage
from micro_core.proxy.routes import RouteSource
from micro_core.routing.lookup import rank
from micro_core.rpc.connection import Connection
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.graceful_shutdown import say_goodbye, wait_until_read
from micro_core.rpc.pool import Pool
from micro_core.rpc.server import Server
from micro_core.wire.frames import MORE, Frame, encode
from micro_core.wire.header import CallHeader, CallMode, EventHeader, decode_call_header

CHANNEL = "rpc"
"""Tunnel channel on which nodes accept each other's calls."""

CONNECT_TIMEOUT_S = 3.0
"""How long one next hop may take to accept a connection before the next route is tried."""

MAX_ROUTES_MEASURED = 10_000
"""Routes whose use is remembered; of those that nobody uses the oldest are forgotten first."""

SessionDialer = Callable[[str, Priority], Session]
"""`dial(peer, priority)`: a session on `CHANNEL`; raises Unreachable when no link stands."""

MessageHandler = Callable[[EventHeader, bytes], None]
"""Called with (header, body) for each message that a peer sends."""


class Proxy:
    """Forwards by route. One per node; a ConnectionHandler.

    `own_services` are answered by `server` here. `pool` dials local instances, `dial_session` peers.
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
        self._dial_session = dial_session
        self._now = environment.clock.now
        self._random = environment.random
        self._counters = environment.counters
        self._pairs: dict[Pair, None] = {}
        self._usage: dict[RouteKey, RouteUsage] = {}
        self._peer_connections: dict[tuple[str, Priority], Connection] = {}
        self._tasks = BackgroundTasks(
            component="proxy",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="proxy_tasks_failed",
        )
        self._deadlines = Deadlines()
        self._message_handler: MessageHandler | None = None
        self._accepted: dict[Connection, None] = {}
        self._idle = asyncio.Event()
        self._is_draining = False

    @property
    def in_flight(self) -> int:
        """Calls that pass through now."""
        return len(self._pairs)

    def outstanding(self, key: RouteKey) -> int:
        """Calls that use a route now."""
        usage = self._usage.get(key)
        return usage.outstanding if usage is not None else 0

    def waiting_us(self, key: RouteKey) -> int:
        """What calls along a route have just been waiting beyond the usual, in microseconds."""
        usage = self._usage.get(key)
        return round(usage.waiting.waiting_s(self._now()) * 1e6) if usage is not None else 0

    def set_message_handler(self, handler: MessageHandler) -> None:
        """Pass the messages that peers send to `handler`. Without a handler, messages are dropped and counted."""
        self._message_handler = handler

    def accept_session(self, session: Session) -> None:
        """A peer opened a session on `CHANNEL`."""
        self.accept_socket(
            Connection(session, dialed=False, handler=self, node_id=self.node_id, counters=self._counters)
        )

    def accept_socket(self, connection: Connection) -> None:
        """Remember a local connection, so that closing the node closes it."""
        self._accepted[connection] = None
        if self._is_draining:
            connection.goaway()

    # ------------------------------------------------------ ConnectionHandler

    def request_received(self, connection: Connection, frame: Frame) -> None:
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
        pair = Pair(self, connection, frame, header, self._now())
        connection.attach(frame.stream, CallerEnd(pair))
        self._pairs[pair] = None
        self._deadlines.add(pair.deadline, pair)
        self._forward(pair, None)

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:  # noqa: ARG002
        if self._message_handler is None:
            self._counters.add("proxy_messages_without_handler")
            return
        self._message_handler(header, body)

    def connection_lost(self, connection: Connection, error: MicroError) -> None:  # noqa: ARG002 - pairs are told each
        self._accepted.pop(connection, None)
        for key, known in list(self._peer_connections.items()):
            if known is connection:
                del self._peer_connections[key]

    # ------------------------------------------------------------- forwarding

    def _forward(self, pair: Pair, reason: MicroError | None) -> None:
        """Send the request along the best route not tried yet, or give the caller `reason`."""
        header = pair.header
        known = self._router.lookup(header.service)
        routes = usable_routes(header, known, came_from=pair.caller.peer_id)
        if pair.tried:
            routes = [route for route in routes if route not in pair.tried]
        while routes:
            route = routes[0] if len(routes) == 1 else self._ranked(routes)[0]
            pair.route = route
            pair.tried.append(route)
            usage = pair.usage = self._usage.get(route.key) or self._begin_usage(route.key)
            usage.outstanding += 1
            if route.link == LOCAL_LINK:
                connection = self._pool.find(route.address)
                if connection is None:
                    self._tasks.start(self._dial_local(pair, route))
                    return
                refusal = self._attach(pair, connection)
            else:
                refusal = self._attach_to_peer(pair, route.gateway)
            if refusal is None:
                return
            self._release(pair)
            reason = refusal
            # All that the same next hop leads to is refused there as well.
            hop = (route.address, route.gateway)
            routes = [other for other in routes if (other.address, other.gateway) != hop]
        pair.refuse(reason or no_route(header, len(known), at=self.at))

    def _ranked(self, routes: Sequence[Route]) -> Sequence[Route]:
        return rank(
            routes,
            now=self._now(),
            outstanding=self.outstanding,
            waiting_us=self.waiting_us,
            random=self._random,
        )

    def _attach_to_peer(self, pair: Pair, peer: str) -> MicroError | None:
        try:
            connection = self._peer_connection(peer, _priority(pair))
        except Unreachable as error:
            return error
        return self._attach(pair, connection)

    def _attach(self, pair: Pair, connection: Connection) -> MicroError | None:
        """Send the request; a refusal where nothing was sent, so that the next route may serve."""
        frame = pair.request
        if frame is None or pair.is_over:
            return None
        if connection.is_clogged:
            self._counters.add("proxy_calls_overloaded")
            return Overloaded(f"too much is waiting for the next hop of {pair.header.service}", at=self.at)
        now = self._now()
        elapsed_ms = int((now - pair.started_at) * 1000)
        header = onward_header(frame.header, self.node_id, elapsed_ms)
        try:
            stream = connection.open_stream(CalleeEnd(pair))
        except MicroError as error:
            # Ended, draining or full.
            return error
        pair.callee, pair.callee_stream, pair.sent_at = connection, stream, now
        connection.send(encode(frame.kind, stream, header, frame.body, frame.flags))
        if pair.waiting:
            waiting, pair.waiting = pair.waiting, []
            for held in waiting:
                pair.pass_on(held)
        return None

    async def _dial_local(self, pair: Pair, route: Route) -> None:
        try:
            connection = await self._pool.get(route.address, timeout_s=CONNECT_TIMEOUT_S)
        except MicroError as error:
            if not pair.is_over:
                error.at = error.at or self.at
                self._release(pair)
                self._forward(pair, error)
            return
        refusal = self._attach(pair, connection)
        if refusal is not None:
            self._release(pair)
            self._forward(pair, refusal)

    def _peer_connection(self, peer: str, priority: Priority) -> Connection:
        connection = self._peer_connections.get((peer, priority))
        if connection is None or connection.is_used_up:
            if connection is not None:
                # Kept like one that was accepted, for the calls that stand.
                self.accept_socket(connection)
            session = self._dial_session(peer, priority)
            connection = Connection(session, dialed=True, handler=self, node_id=self.node_id, counters=self._counters)
            self._peer_connections[(peer, priority)] = connection
        return connection

    def peer_moved(self, peer: str) -> None:
        """Another link to `peer` has taken over: new calls go there, those under way end where they are."""
        for key in [key for key in self._peer_connections if key[0] == peer]:
            # Kept like one that was accepted: it ends with its link, or with this node.
            self.accept_socket(self._peer_connections.pop(key))

    def peer_connection(self, peer: str) -> Connection:
        """The connection on which messages go to `peer`; raises Unreachable."""
        return self._peer_connection(peer, Priority.EVENTS)

    # -------------------------------------------------------- what pairs tell

    def passed_over(self, pair: Pair, error: MicroError) -> bool:
        """The next hop refused. True when the call goes on along another route.

        Only what promises that nothing was started may be tried elsewhere, and not when the service itself
        said so about an endpoint.
        """
        if not error.retry_is_safe or self._now() >= pair.deadline:
            return False
        routes = usable_routes(pair.header, self._router.lookup(pair.header.service), came_from=pair.caller.peer_id)
        if all(route in pair.tried for route in routes):
            return False
        self._counters.add("proxy_calls_rerouted")
        pair.detach_callee()
        self._release(pair)
        self._forward(pair, error)
        return True

    def answered(self, pair: Pair) -> None:
        """The first frame of an answer: what the call has taken tells of the load at the end of its route."""
        usage, header = pair.usage, pair.header
        if usage is not None and header.mode == CallMode.UNARY:
            now = self._now()
            usage.waiting.ended(header.endpoint, now - pair.sent_at, now)

    def clogged(self, pair: Pair, where: str) -> None:
        """`where` has stopped reading, and what waits for it is over its bound."""
        self._counters.add("proxy_calls_overloaded")
        pair.refuse(Overloaded(f"too much waits to be read by {where} of {pair.header.service}", at=self.at))

    def callee_lost(self, pair: Pair, error: MicroError) -> None:
        """The connection to the next hop is gone with the call in flight."""
        where = "the service" if pair.route is None or pair.route.link == LOCAL_LINK else "the next node"
        self._release(pair)
        if pair.request is not None and error.retry_is_safe:
            # It never was one: nobody took it at the other end.
            self._forward(pair, error)
            return
        lost = LinkLost(
            f"the connection to {where} broke during the call to {pair.header.service}: {error.detail}",
            at=self.at,
            hint="whether it was handled is not known; call again if that is harmless",
        )
        if pair.request is not None and pair.header.idempotent:
            self._forward(pair, lost)
            return
        pair.refuse(lost)

    def finished(self, pair: Pair) -> None:
        self._pairs.pop(pair, None)
        self._deadlines.discard(pair.deadline, pair)
        if not self._pairs:
            self._idle.set()
        self._release(pair)

    def _release(self, pair: Pair) -> None:
        usage = pair.usage
        if usage is not None:
            usage.outstanding -= 1
            pair.route = pair.usage = None

    def _begin_usage(self, key: RouteKey) -> RouteUsage:
        if len(self._usage) >= MAX_ROUTES_MEASURED:
            idle = next((known for known, usage in self._usage.items() if not usage.outstanding), None)
            if idle is not None:
                del self._usage[idle]
        usage = self._usage[key] = RouteUsage()
        return usage

    def expired(self, pair: Pair) -> None:
        """The caller waits no more."""
        self._counters.add("proxy_deadlines_exceeded")
        timeout_s = pair.header.timeout_ms / 1000
        pair.refuse(DeadlineExceeded(f"{pair.header.service} did not answer within {timeout_s:.3g} s", at=self.at))

    # --------------------------------------------------------------------- end

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls on the connections that stand (GOAWAY), wait for those in flight."""
        self._is_draining = True
        await say_goodbye(self._accepted)
        if self._pairs:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                self._counters.add("proxy_calls_cut_by_drain", len(self._pairs))
        await wait_until_read(list(self._accepted))

    async def close(self) -> None:
        """End the calls that pass and every connection."""
        for pair in list(self._pairs):
            pair.refuse(Cancelled("the node stopped", at=self.at))
        await self._tasks.cancel()
        connections = [*self._accepted, *self._peer_connections.values()]
        await asyncio.gather(*(connection.close() for connection in connections), return_exceptions=True)
        await self._pool.close()


def _priority(pair: Pair) -> Priority:
    """Streams and requests in several pieces travel where nobody small waits behind them."""
    header: CallHeader = pair.header
    request = pair.request
    if header.bulk or header.mode != CallMode.UNARY or (request is not None and request.flags & MORE):
        return Priority.BULK
    return Priority.CALLS
