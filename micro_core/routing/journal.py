"""The journal of the routing table: the most recent changes, each with the route before and after it. Pure.

One change of an origin route can concern any number of services. The journal stores the events of the table as they are, and
expands them to changes of routes when they are shown: it starts with the current table and undoes the recorded events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from micro_core.contract.route_index import join
from micro_core.contract.table import (
    LOCAL_LINK,
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    Route,
    RouteKey,
    RouteQuery,
    Table,
    TableEvent,
)

MAX_CHANGES = 10_000


class Change(NamedTuple):
    """One change of a route. `before` is None for a new route, `after` is None for a deleted one."""

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


@dataclass(frozen=True, slots=True)
class _Record:
    """An event of the table. It stands for at most `count` changes of routes, with the numbers from `first`."""

    first: int
    count: int
    at: float
    event: TableEvent


class Journal:
    """The last changes of `table`.

    At most `max_changes` local routes, origin routes, offers, and services of partial origin routes are recorded.
    """

    def __init__(self, table: Table, *, max_changes: int = MAX_CHANGES) -> None:
        self.reaches_back_to = float("-inf")
        """Earliest time, in wall-clock seconds, for which the table can be reconstructed.

        It is negative infinity until the first change was discarded.
        """
        self._table = table
        self._records: deque[_Record] = deque()
        self._size = 0
        self._max_changes = max_changes
        self._next_number = 1
        # Number of offers and of routes per origin, without those with 0.
        self._offers: dict[str, int] = {}
        self._routes: dict[str, int] = {}
        for route in table.origin_routes():
            _add(self._routes, route.origin, 1)
        for origin in table.origins():
            _add(self._offers, origin, len(table.offers(origin)))

    def record(self, event: TableEvent, at: float) -> None:
        """Record a change of the table at `at` (wall-clock seconds)."""
        count = self._count_changes(event)
        self._records.append(_Record(self._next_number, count, at, event))
        self._next_number += count
        self._size += _size(event)
        while self._size > self._max_changes and len(self._records) > 1:
            discarded = self._records.popleft()
            self._size -= _size(discarded.event)
            self.reaches_back_to = discarded.at

    def since(self, number: int, limit: int) -> list[Change]:
        """Return the first `limit` changes whose number is greater than `number`, oldest first."""
        wanted: deque[_Record] = deque()
        for record in reversed(self._records):
            if record.first + record.count - 1 <= number:
                break
            wanted.appendleft(record)
        found: list[Change] = []
        for change in self._expand(wanted):
            if len(found) >= limit:
                break
            if change.number > number:
                found.append(change)
        return found

    def last(self, limit: int) -> list[Change]:
        """Return the last `limit` changes, oldest first."""
        wanted: deque[_Record] = deque()
        count = 0
        for record in reversed(self._records):
            if count >= limit:
                break
            wanted.appendleft(record)
            count += record.count
        return [*self._expand(wanted)][-limit:] if limit > 0 else []

    def table_at(self, at: float, service: str = "") -> list[Route]:
        """Return the routes of the table at a time (wall-clock seconds, not before `reaches_back_to`), unordered.

        With `service`, only the routes of this service are returned.
        """
        state = _State(self._table)
        state.load_all(service)
        for record in reversed(self._records):
            if record.at <= at:
                break
            state.undo(record.event)
        return [*state.routes(service)]

    def difference(self, since: float, service: str = "") -> tuple[list[Route], list[Route], list[tuple[Route, Route]]]:
        """Compare the current table with the table at `since` (wall-clock seconds), for one service or for all.

        Returns the added routes, the removed routes, and the changed routes as pairs (before, after).
        """
        then = {route.key: route for route in self.table_at(since, service)}
        now = {route.key: route for route in self._table.list(RouteQuery(service=service))}
        added = _ordered(now[key] for key in now.keys() - then.keys())
        removed = _ordered(then[key] for key in then.keys() - now.keys())
        changed = [(then[route.key], route) for route in _ordered(now.values()) if then.get(route.key, route) != route]
        return added, removed, changed

    # --------------------------------------------------------------- internals

    def _count_changes(self, event: TableEvent) -> int:
        """Return how many routes an event may have changed, and follow the numbers of offers and routes."""
        match event:
            case LocalRouteChanged():
                return 1
            case OriginRouteChanged(before, after):
                route = after or before
                if route is None:
                    return 0
                _add(self._routes, route.origin, (after is not None) - (before is not None))
                return self._offers.get(route.origin, 0)
            case OffersChanged(origin, changes):
                more = sum((after is not None) - (before is not None) for before, after in changes)
                _add(self._offers, origin, more)
                return len(changes) * self._routes.get(origin, 0)

    def _expand(self, records: Iterable[_Record]) -> Iterator[Change]:
        """Yield the changes of the last records."""
        state = _State(self._table)
        records = [*records]
        for record in reversed(records):
            state.undo(record.event)
        for record in records:
            number = record.first
            for before, after in state.changes_of(record.event):
                yield Change(number, record.at, before, after)
                number += 1
            state.redo(record.event)


class _State:
    """A past state of the table. What was not loaded explicitly is read from the current table when it is needed."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._local: dict[RouteKey, Route] = {}
        self._by_gateway: dict[str, dict[str, OriginRoute]] | None = None
        self._offers: dict[str, dict[str, Offer]] = {}

    def load_all(self, service: str) -> None:
        """Read everything that concerns a service, or all services if it is empty."""
        self._local = {route.key: route for route in self._table.list(RouteQuery(service=service, link=LOCAL_LINK))}
        for origin in [*self._origin_routes()]:
            self._offers_of(origin)

    def undo(self, event: TableEvent) -> None:
        """Change to the state before `event`, which must be the last event of this state."""
        match event:
            case LocalRouteChanged(before, after):
                self._replace_local(after, before)
            case OriginRouteChanged(before, after):
                self._replace_origin_route(after, before)
            case OffersChanged(origin, changes):
                self._replace_offers(origin, ((after, before) for before, after in reversed(changes)))

    def redo(self, event: TableEvent) -> None:
        """Change to the state after `event`, which must be the next event of this state."""
        match event:
            case LocalRouteChanged(before, after):
                self._replace_local(before, after)
            case OriginRouteChanged(before, after):
                self._replace_origin_route(before, after)
            case OffersChanged(origin, changes):
                self._replace_offers(origin, changes)

    def changes_of(self, event: TableEvent) -> Iterator[tuple[Route | None, Route | None]]:
        """Yield the routes before and after `event`, which must be the next event of this state."""
        match event:
            case LocalRouteChanged(before, after):
                yield before, after
            case OriginRouteChanged(route_before, route_after):
                route = route_after or route_before
                offers = self._offers_of(route.origin) if route is not None else {}
                for _, offer in sorted(offers.items()):
                    yield from _if_different(_joined(route_before, offer), _joined(route_after, offer))
            case OffersChanged(origin, changes):
                routes = [route for _, route in sorted(self._origin_routes().get(origin, {}).items())]
                for offer_before, offer_after in changes:
                    for route in routes:
                        yield from _if_different(_joined(route, offer_before), _joined(route, offer_after))

    def routes(self, service: str) -> Iterator[Route]:
        """Yield the routes of a service, or all routes if it is empty."""
        yield from (route for route in self._local.values() if service in ("", route.service))
        for origin, by_gateway in self._origin_routes().items():
            offers = self._offers_of(origin)
            wanted = offers.values() if not service else filter(None, (offers.get(service),))
            for offer in wanted:
                yield from filter(None, (join(route, offer) for route in by_gateway.values()))

    def _origin_routes(self) -> dict[str, dict[str, OriginRoute]]:
        if self._by_gateway is None:
            self._by_gateway = {}
            for route in self._table.origin_routes():
                self._by_gateway.setdefault(route.origin, {})[route.gateway] = route
        return self._by_gateway

    def _offers_of(self, origin: str) -> dict[str, Offer]:
        offers = self._offers.get(origin)
        if offers is None:
            offers = self._offers[origin] = {offer.service: offer for offer in self._table.offers(origin)}
        return offers

    def _replace_local(self, old: Route | None, new: Route | None) -> None:
        if old is not None:
            self._local.pop(old.key, None)
        if new is not None:
            self._local[new.key] = new

    def _replace_origin_route(self, old: OriginRoute | None, new: OriginRoute | None) -> None:
        routes = self._origin_routes()
        if old is not None:
            routes.get(old.origin, {}).pop(old.gateway, None)
        if new is not None:
            routes.setdefault(new.origin, {})[new.gateway] = new

    def _replace_offers(self, origin: str, changes: Iterable[tuple[Offer | None, Offer | None]]) -> None:
        offers = self._offers_of(origin)
        for old, new in changes:
            if old is not None:
                offers.pop(old.service, None)
            if new is not None:
                offers[new.service] = new


def _size(event: TableEvent) -> int:
    match event:
        case OffersChanged(_, changes):
            return len(changes)
        case OriginRouteChanged(_, OriginRoute(services=frozenset() as services)):
            return 1 + len(services)
    return 1


def _add(counts: dict[str, int], name: str, amount: int) -> None:
    counts[name] = counts.get(name, 0) + amount
    if not counts[name]:
        del counts[name]


def _joined(route: OriginRoute | None, offer: Offer | None) -> Route | None:
    return join(route, offer) if route is not None and offer is not None else None


def _if_different(before: Route | None, after: Route | None) -> Iterator[tuple[Route | None, Route | None]]:
    if before != after:
        yield before, after


def _ordered(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.service, route.key))
