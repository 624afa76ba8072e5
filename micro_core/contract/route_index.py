"""An index of routes by service with watchers, for table drivers.

A lookup is one dictionary access, regardless of the number of routes. The cost of `put` does not depend on the number of routes
either, because it only discards the sorted result of one service.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from micro_core.contract.driver import Counters
from micro_core.contract.table import Route, RouteEvent, RouteEventKind, RouteKey, RouteQuery

Watcher = Callable[[RouteEvent], None]


class RouteIndex:
    """Implements all methods of `Table` except `start` and `close`. A driver of a table inherits from it.

    Args:
        logger: The logger of the context, for exceptions of watchers.
        counters: The counters of the context. Exceptions of watchers are counted as `table_watcher_failed`.
    """

    def __init__(self, *, logger: logging.Logger, counters: Counters) -> None:
        self._logger = logger
        self._counters = counters
        # Invariants: no service has an empty dict; if `_sorted[service]` exists, it is the sorted `_routes[service]`.
        self._routes: dict[str, dict[RouteKey, Route]] = {}
        self._sorted: dict[str, tuple[Route, ...]] = {}
        self._watchers: dict[object, Watcher] = {}
        self._pending: deque[RouteEvent] = deque()
        self._is_notifying = False

    def put(self, route: Route) -> None:
        """Create or replace the route with the key of `route`. An equal route causes no change and no event."""
        key = route.key
        routes = self._routes.setdefault(route.service, {})
        before = routes.get(key)
        if before == route:
            return
        routes[key] = route
        self._sorted.pop(route.service, None)
        self._notify(RouteEventKind.CREATE if before is None else RouteEventKind.UPDATE, route)

    def delete(self, key: RouteKey) -> bool:
        """Remove a route. Return False if there is no route with this key."""
        routes = self._routes.get(key.service)
        route = routes.pop(key, None) if routes is not None else None
        if routes is None or route is None:
            return False
        if not routes:
            del self._routes[key.service]
        self._sorted.pop(key.service, None)
        self._notify(RouteEventKind.DELETE, route)
        return True

    def lookup(self, service: str) -> tuple[Route, ...]:
        """Return the routes of exactly this service, ordered by metric and key."""
        answer = self._sorted.get(service)
        if answer is not None:
            return answer
        routes = self._routes.get(service)
        if routes is None:
            # Not cached: callers can ask for any number of names without routes, which would fill the memory.
            return ()
        answer = self._sorted[service] = tuple(sorted(routes.values(), key=_by_metric))
        return answer

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match, ordered by service, metric and key."""
        services: Iterable[str] = (query.service,) if query is not None and query.service else sorted(self._routes)
        found = (route for service in services for route in self.lookup(service))
        return list(found) if query is None else [route for route in found if query.matches(route)]

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Call `callback` after each change, in the order of the changes. Return a function that ends the watch."""
        token = object()
        self._watchers[token] = callback

        def end() -> None:
            self._watchers.pop(token, None)

        return end

    def forget_watchers(self) -> None:
        """Remove all watchers. The routes stay readable."""
        self._watchers.clear()

    def _notify(self, kind: RouteEventKind, route: Route) -> None:
        if not self._watchers:
            return
        self._pending.append(RouteEvent(kind=kind, route=route))
        # If a watcher changes the table, its event stays queued until all watchers have received the current one.
        if self._is_notifying:
            return
        self._is_notifying = True
        try:
            while self._pending:
                event = self._pending.popleft()
                for token, callback in tuple(self._watchers.items()):
                    if token in self._watchers:
                        self._call(callback, event)
        finally:
            self._is_notifying = False

    def _call(self, callback: Watcher, event: RouteEvent) -> None:
        try:
            callback(event)
        except Exception:
            # The change has taken effect, so the other watchers must be notified, too.
            self._counters.add("table_watcher_failed")
            self._logger.exception("table watcher failed")


def _by_metric(route: Route) -> tuple[int, RouteKey]:
    return route.metric, route.key
