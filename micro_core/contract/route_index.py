"""What every table driver needs: routes in a dict, indexed by service, and the watchers that hear of changes.

A lookup is one dict access however many routes there are; a put costs the same with one route or a hundred
thousand, because it only forgets the sorted answer of its own service.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from micro_core.contract.driver import Counters
from micro_core.contract.table import Route, RouteEvent, RouteEventKind, RouteKey, RouteQuery

Watcher = Callable[[RouteEvent], None]


class RouteIndex:
    """All that a table does but `start` and `close`: a driver adds those, and gives it the context's logger and counters."""

    def __init__(self, *, logger: logging.Logger, counters: Counters) -> None:
        self._logger = logger
        self._counters = counters
        # Invariants: no service has an empty dict; `_sorted[service]`, where present, is `_routes[service]` sorted.
        self._routes: dict[str, dict[RouteKey, Route]] = {}
        self._sorted: dict[str, tuple[Route, ...]] = {}
        self._watchers: dict[object, Watcher] = {}
        self._untold: deque[RouteEvent] = deque()
        self._is_telling = False

    def put(self, route: Route) -> None:
        """Create or replace the route with this key; an equal one is no change and no event."""
        key = route.key
        routes = self._routes.setdefault(route.service, {})
        before = routes.get(key)
        if before == route:
            return
        routes[key] = route
        self._sorted.pop(route.service, None)
        self._tell(RouteEventKind.CREATE if before is None else RouteEventKind.UPDATE, route)

    def delete(self, key: RouteKey) -> bool:
        """Remove a route; False when there was none."""
        routes = self._routes.get(key.service)
        route = routes.pop(key, None) if routes is not None else None
        if routes is None or route is None:
            return False
        if not routes:
            del self._routes[key.service]
        self._sorted.pop(key.service, None)
        self._tell(RouteEventKind.DELETE, route)
        return True

    def lookup(self, service: str) -> tuple[Route, ...]:
        """The routes of exactly this service by (metric, key)."""
        answer = self._sorted.get(service)
        if answer is not None:
            return answer
        routes = self._routes.get(service)
        if routes is None:
            # Not remembered: names that nobody serves come from callers and would fill the memory.
            return ()
        answer = self._sorted[service] = tuple(sorted(routes.values(), key=_by_metric))
        return answer

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Routes that match, by (service, metric, key)."""
        services: Iterable[str] = (query.service,) if query is not None and query.service else sorted(self._routes)
        found = (route for service in services for route in self.lookup(service))
        return list(found) if query is None else [route for route in found if query.matches(route)]

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Call `callback` after each change, in the order of the changes; returns the function that ends it."""
        token = object()
        self._watchers[token] = callback

        def end() -> None:
            self._watchers.pop(token, None)

        return end

    def forget_watchers(self) -> None:
        """Nobody is told anything any more; the routes stay readable."""
        self._watchers.clear()

    def _tell(self, kind: RouteEventKind, route: Route) -> None:
        if not self._watchers:
            return
        self._untold.append(RouteEvent(kind=kind, route=route))
        # A watcher may change the table: that event waits here until everybody has heard the one before.
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._untold:
                event = self._untold.popleft()
                for token, callback in tuple(self._watchers.items()):
                    if token in self._watchers:
                        self._call(callback, event)
        finally:
            self._is_telling = False

    def _call(self, callback: Watcher, event: RouteEvent) -> None:
        try:
            callback(event)
        except Exception:
            # The change stands and the other watchers must hear of it, whatever this one thinks of it.
            self._counters.add("table_watcher_failed")
            self._logger.exception("a watcher of the table failed")


def _by_metric(route: Route) -> tuple[int, RouteKey]:
    return route.metric, route.key
