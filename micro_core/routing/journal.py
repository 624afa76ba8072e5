"""What has become of the table, for as long back as there is room: every change with what stood before. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from micro_core.contract.table import Route, RouteEvent, RouteEventKind, RouteKey

MOST_CHANGES = 10_000


class Change(NamedTuple):
    """One change; `before` or `after` is None where the route did not stand."""

    number: int
    at: float
    """Wall-clock seconds."""
    before: Route | None
    after: Route | None

    @property
    def route(self) -> Route:
        """The route it is about, as it stands after the change or stood before."""
        route = self.after or self.before
        assert route is not None
        return route


class Journal:
    """The last changes, oldest first, and what stands now."""

    def __init__(self, *, most: int = MOST_CHANGES) -> None:
        self.reaches_back_to = float("-inf")
        """What the table was before this, nobody knows any more; without limit until changes had to be let go."""
        self._changes: deque[Change] = deque()
        self._most = most
        self._number = 0
        self._standing: dict[RouteKey, Route] = {}

    def record(self, event: RouteEvent, at: float) -> None:
        """The table has changed."""
        route = event.route
        before = self._standing.pop(route.key, None)
        after = None if event.kind is RouteEventKind.DELETE else route
        if after is not None:
            self._standing[route.key] = after
        self._number += 1
        if len(self._changes) >= self._most:
            self.reaches_back_to = self._changes.popleft().at
        self._changes.append(Change(self._number, at, before, after))

    def since(self, number: int, most: int) -> list[Change]:
        """At most `most` changes after the one numbered so, oldest first."""
        found = [change for change in self._changes if change.number > number]
        return found[:most]

    def last(self, most: int) -> list[Change]:
        """The last changes, oldest first."""
        return list(self._changes)[-most:] if most > 0 else []

    def table_at(self, at: float) -> list[Route]:
        """The routes that stood at a time, as far back as `reaches_back_to`; in no order."""
        standing = dict(self._standing)
        for change in reversed(self._changes):
            if change.at <= at:
                break
            key = change.route.key
            if change.before is None:
                standing.pop(key, None)
            else:
                standing[key] = change.before
        return list(standing.values())

    def difference(self, since: float) -> tuple[list[Route], list[Route], list[tuple[Route, Route]]]:
        """What has come, what has gone and what has changed (before, after) since a time, net."""
        then = {route.key: route for route in self.table_at(since)}
        now = self._standing
        come = _ordered(now[key] for key in now.keys() - then.keys())
        gone = _ordered(then[key] for key in then.keys() - now.keys())
        changed = [(then[route.key], route) for route in _ordered(now.values()) if then.get(route.key, route) != route]
        return come, gone, changed


def _ordered(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.service, route.key))
