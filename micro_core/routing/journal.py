"""The journal of the routing table: the most recent changes, each with the route before and after it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from micro_core.contract.table import Route, RouteEvent, RouteEventKind, RouteKey

MAX_CHANGES = 10_000


class Change(NamedTuple):
    """One change of the table. `before` is None for a new route, `after` is None for a deleted one."""

    number: int
    at: float
    """Wall-clock seconds."""
    before: Route | None
    after: Route | None

    @property
    def route(self) -> Route:
        """The changed route after the change, or before it if it was deleted."""
        route = self.after or self.before
        assert route is not None
        return route


class Journal:
    """The last `max_changes` changes of the table, and its current content."""

    def __init__(self, *, max_changes: int = MAX_CHANGES) -> None:
        self.reaches_back_to = float("-inf")
        """Earliest time, in wall-clock seconds, for which the table can be reconstructed.

        It is negative infinity until the first change was discarded.
        """
        self._changes: deque[Change] = deque()
        self._max_changes = max_changes
        self._number = 0
        self._current: dict[RouteKey, Route] = {}

    def record(self, event: RouteEvent, at: float) -> None:
        """Record a change of the table at `at` (wall-clock seconds)."""
        route = event.route
        before = self._current.pop(route.key, None)
        after = None if event.kind is RouteEventKind.DELETE else route
        if after is not None:
            self._current[route.key] = after
        self._number += 1
        if len(self._changes) >= self._max_changes:
            self.reaches_back_to = self._changes.popleft().at
        self._changes.append(Change(self._number, at, before, after))

    def since(self, number: int, limit: int) -> list[Change]:
        """Return the first `limit` changes whose number is greater than `number`, oldest first."""
        found = [change for change in self._changes if change.number > number]
        return found[:limit]

    def last(self, limit: int) -> list[Change]:
        """Return the last `limit` changes, oldest first."""
        return list(self._changes)[-limit:] if limit > 0 else []

    def table_at(self, at: float) -> list[Route]:
        """Return the routes of the table at a time (wall-clock seconds, not before `reaches_back_to`), unordered."""
        table = dict(self._current)
        for change in reversed(self._changes):
            if change.at <= at:
                break
            key = change.route.key
            if change.before is None:
                table.pop(key, None)
            else:
                table[key] = change.before
        return list(table.values())

    def difference(self, since: float) -> tuple[list[Route], list[Route], list[tuple[Route, Route]]]:
        """Compare the current table with the table at `since` (wall-clock seconds).

        Returns the added routes, the removed routes, and the changed routes as pairs (before, after).
        """
        then = {route.key: route for route in self.table_at(since)}
        now = self._current
        added = _ordered(now[key] for key in now.keys() - then.keys())
        removed = _ordered(then[key] for key in then.keys() - now.keys())
        changed = [(then[route.key], route) for route in _ordered(now.values()) if then.get(route.key, route) != route]
        return added, removed, changed


def _ordered(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.service, route.key))
