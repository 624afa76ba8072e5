"""Calls that wait for a route: after a lost link or a stopped node, another route often exists a moment later.

Only the first node of a call holds it. Later nodes refuse it at once, so that the nodes before them can try their other
routes, and so that the waiting times of several nodes do not add up.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Draining, MicroError, RouteNotFound, Unreachable
from micro_core.contract.table import LOCAL_LINK, LocalRouteChanged, OffersChanged, Route, TableEvent
from micro_core.proxy.call_wait import Wait
from micro_core.proxy.forward import is_restricted
from micro_core.proxy.forwarded_call import ForwardedCall
from micro_core.proxy.routes import RouteSource
from micro_core.rpc.credit import FRAME_COST_BYTES
from micro_core.rpc.deadlines import Deadlines

MAX_WAIT_S = 2.0
"""Maximum number of seconds for which one call waits, in total."""

DEADLINE_SHARE = 0.9
"""Share of the time until its deadline for which a call waits at most, so that its caller still receives the reason."""

RETRY_S = 0.5
"""Seconds after which a call that a next hop refused is sent there again, if no route changes before."""

MAX_REFUSALS = 4
"""Number of refusals by next hops after which a call waits no longer."""

MAX_CALLS = 1_000
"""Maximum number of waiting calls."""

MAX_BYTES = 16 * 1024 * 1024
"""Maximum size of all data of waiting calls."""


class _Service:
    """The waiting calls of one service. `routes` are those that the first of them found."""

    __slots__ = ("calls", "routes")

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self.calls: dict[ForwardedCall, None] = {}


class WaitingCalls:
    """The calls of one proxy that wait for a route.

    Args:
        source: Watched while calls wait.
        own_names: Values of `MicroError.at` of errors of this node.
        now: Returns the clock time.
        counters: Where held and refused calls are counted.
        resume: Called with a call whose routes may have changed. It sends the call or passes it to `hold` again.
    """

    def __init__(
        self,
        source: RouteSource,
        *,
        own_names: Collection[str],
        now: Callable[[], float],
        counters: Counters,
        resume: Callable[[ForwardedCall], None],
    ) -> None:
        self._source = source
        self._own_names = frozenset(own_names)
        self._now = now
        self._counters = counters
        self._resume = resume
        self._services: dict[str, _Service] = {}
        self._count = 0
        self._bytes = 0
        self._deadlines = Deadlines()
        self._stop_watch: Callable[[], None] | None = None
        self._changed: set[str] = set()
        """Services with waiting calls whose local routes or offers have changed."""
        self._is_wake_scheduled = False
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        return self._count

    @property
    def size_bytes(self) -> int:
        """The size of all data of waiting calls."""
        return self._bytes

    # ---------------------------------------------------------------------- hold

    def hold(self, call: ForwardedCall, reason: MicroError, routes: Sequence[Route], *, is_refusal: bool) -> bool:
        """Keep a call until its routes change. Return False if it must be refused with `reason` now.

        Args:
            call: A call that is not sent at the moment and can be repeated safely.
            reason: Why it cannot be sent.
            routes: The current routes of the service.
            is_refusal: Whether `reason` is the answer of a route that was tried, not the lack of routes.
        """
        if call.header.via or call.request is None or self._is_closed or not self._is_transient(reason):
            return False
        now = self._now()
        wait = call.wait
        if wait is None:
            until = now + min(MAX_WAIT_S, DEADLINE_SHARE * (call.deadline - now))
            wait = Wait(until, functools.partial(self._due, call))
        current = {route.key for route in routes}
        # A route that was withdrawn and comes back is tried again.
        call.tried = [key for key in call.tried if key in current]
        wait.refusals += is_refusal
        has_tried = self._has_tried_offers(call, routes)
        if wait.refusals >= MAX_REFUSALS or now >= wait.until or not (has_tried or self._is_expected(call, routes)):
            return False
        size = len(call.request.header) + len(call.request.body) + FRAME_COST_BYTES + call.waiting_bytes
        if self._count >= MAX_CALLS or self._bytes + size > MAX_BYTES:
            self._counters.add("proxy_calls_not_held_limit")
            return False
        if call.wait is None:
            self._counters.add("proxy_calls_held")
            call.wait = wait
        wait.due = min(wait.until, now + RETRY_S) if has_tried else wait.until
        wait.reason, wait.size_bytes = reason, size
        self._add(call, wait, routes)
        return True

    def grown(self, wait: Wait, size_bytes: int) -> bool:
        """Add the size of data that the caller has sent meanwhile. Return False if that exceeds the limit."""
        if not wait.is_held:
            return True
        wait.size_bytes += size_bytes
        self._bytes += size_bytes
        if self._bytes <= MAX_BYTES:
            return True
        self._counters.add("proxy_calls_not_held_limit")
        return False

    def remove(self, call: ForwardedCall) -> None:
        """Forget a call, because it is sent or has ended. A call that does not wait is ignored."""
        wait = call.wait
        if wait is None or not wait.is_held:
            return
        wait.is_held = False
        self._count -= 1
        self._bytes -= wait.size_bytes
        self._deadlines.discard(wait.due, wait)
        name = call.header.service
        service = self._services[name]
        del service.calls[call]
        if not service.calls:
            del self._services[name]
        if not self._services and self._stop_watch is not None:
            self._stop_watch()
            self._stop_watch = None

    def close(self, error: MicroError) -> None:
        """Refuse all waiting calls with `error`, and hold none from now on."""
        self._is_closed = True
        for call in [call for service in self._services.values() for call in service.calls]:
            call.refuse(error)

    def _add(self, call: ForwardedCall, wait: Wait, routes: Sequence[Route]) -> None:
        if self._stop_watch is None:
            self._stop_watch = self._source.watch(self._table_changed)
        name = call.header.service
        service = self._services.get(name)
        if service is None:
            service = self._services[name] = _Service(routes)
        service.calls[call] = None
        wait.is_held = True
        self._count += 1
        self._bytes += wait.size_bytes
        self._deadlines.add(wait.due, wait)

    def _is_transient(self, reason: MicroError) -> bool:
        """Return whether a change of the routes can help: no route, or no connection of this node to the next hop."""
        if isinstance(reason, RouteNotFound):
            return True
        return isinstance(reason, Unreachable | Draining) and reason.at in self._own_names

    def _has_tried_offers(self, call: ForwardedCall, routes: Sequence[Route]) -> bool:
        """Return whether a next hop has refused the call although an origin with a route offers the service.

        A next hop for which the caller has restricted the routes, or the next hop of the default route, is probably right.
        """
        header = call.header
        if is_restricted(header):
            return False
        return any(
            route.link != LOCAL_LINK and route.service == header.service and route.key in call.tried for route in routes
        )

    def _is_expected(self, call: ForwardedCall, routes: Sequence[Route]) -> bool:
        service = self._services.get(call.header.service)
        # The first waiting call of the service got the same routes, so the answer is still valid.
        return (service is not None and service.routes is routes) or self._source.is_expected(call.header.service)

    # ---------------------------------------------------------------------- wake

    def _table_changed(self, event: TableEvent) -> None:
        match event:
            case LocalRouteChanged(before, after):
                route = after or before
                assert route is not None
                self._note(route.service)
            case OffersChanged(_, changes):
                for offer in (after or before for before, after in changes):
                    assert offer is not None
                    self._note(offer.service)
        if not self._is_wake_scheduled:
            # The changes of one moment are processed together, after the router has sent its messages.
            self._is_wake_scheduled = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _note(self, service: str) -> None:
        if service in self._services:
            self._changed.add(service)

    def _wake(self) -> None:
        """Send the calls of services whose routes have changed. The lookup of other services returns the same object."""
        self._is_wake_scheduled = False
        changed, self._changed = self._changed, set()
        for name, service in list(self._services.items()):
            if name in changed or self._source.lookup(name) is not service.routes:
                calls = list(service.calls)
                for call in calls:
                    self.remove(call)
                for call in calls:
                    if not call.is_finished:
                        self._resume(call)

    def _due(self, call: ForwardedCall) -> None:
        wait = call.wait
        assert wait is not None
        assert wait.reason is not None
        self.remove(call)
        if wait.due < wait.until:
            call.tried.clear()
            self._resume(call)
            return
        self._counters.add("proxy_calls_held_in_vain")
        call.refuse(wait.reason)
