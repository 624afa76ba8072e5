"""Changes of a route table as plain values, exchanged by a router process and the readers of its table. Pure.

The whole table is sent as changes of an empty one. A change is a list that begins with its kind:

    ["local", route, is_present]
    ["origin", origin route, services, is_end]      services: null for all of them
    ["no origin", origin, gateway]
    ["offers", origin, [offer...], [removed service...]]

The services of one origin route, and the offers of one origin, may be split into several changes in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from micro_core.contract.errors import Malformed
from micro_core.contract.table import (
    LOCAL_LINK,
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    Route,
    RouteQuery,
    Table,
    TableEvent,
)

ROUTES_PER_ITEM = 200
"""Routes, offers and names in one item of a stream, which then has some tens of kilobytes."""

MAX_STRING_LENGTH = 1_024

MAX_VERSIONS = 16
"""Maximum number of versions of an offer."""

MAX_SERVICES = 200_000
"""Maximum number of services of one origin route."""

_ROUTE_TEXTS = ("service", "address", "gateway", "network", "router", "link", "site", "version")
_ORIGIN_TEXTS = ("origin", "gateway", "network", "site")
_ROUTE_NUMBERS = ("metric", "hops", "load_us")
_ORIGIN_NUMBERS = ("metric", "hops")


def route_to_map(route: Route) -> dict[str, Any]:
    """Return a route as a map without its lease: the clocks of two processes differ, and the router removes the route."""
    return {name: getattr(route, name) for name in (*_ROUTE_TEXTS, *_ROUTE_NUMBERS)}


def route_from_map(value: object) -> Route:
    """Return the route of a map.

    Raises:
        Malformed: The value is not a map, or a field has the wrong type or is too large.
    """
    return Route(**_fields(value, _ROUTE_TEXTS, _ROUTE_NUMBERS))


def items_of_table(table: Table) -> Iterator[list[Any]]:
    """Return the content of a table at this moment as lists of changes, each for one item of a stream."""
    events: list[TableEvent] = [LocalRouteChanged(None, route) for route in table.list(RouteQuery(link=LOCAL_LINK))]
    # Offers come first, so that each origin route is a route to all services as soon as it is applied.
    events += [
        OffersChanged(origin, tuple((None, offer) for offer in table.offers(origin))) for origin in table.origins()
    ]
    events += [OriginRouteChanged(None, route) for route in table.origin_routes()]
    return items_of(events)


def items_of(events: Iterable[TableEvent]) -> Iterator[list[Any]]:
    """Encode changes of a table as lists of changes, each for one item of a stream."""
    item: list[Any] = []
    weight = 0
    for event in events:
        for change, change_weight in _changes(event):
            if item and weight + change_weight > ROUTES_PER_ITEM:
                yield item
                item, weight = [], 0
            item.append(change)
            weight += change_weight
    if item:
        yield item


def weight_of(event: TableEvent) -> int:
    """Return the approximate number of routes, offers and names in an event."""
    match event:
        case OffersChanged(_, changes):
            return len(changes)
        case OriginRouteChanged(_, OriginRoute(services=frozenset() as services)):
            return 1 + len(services)
    return 1


class ChangeReader:
    """Decodes the changes of one stream. The input is untrusted."""

    def __init__(self) -> None:
        self._incomplete: OriginRoute | None = None
        """An origin route of which only the first services were read."""

    def read(self, value: object) -> TableEvent | None:
        """Return the change as an event without the state before it. None if more parts of it follow.

        Removed routes and offers contain only the fields of their key.

        Raises:
            Malformed: The value is not a valid change.
        """
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            raise Malformed("change of the table: not a list")
        incomplete, self._incomplete = self._incomplete, None
        match [*value]:
            case ["local", route, bool() as is_present]:
                decoded = route_from_map(route)
                return LocalRouteChanged(None, decoded) if is_present else LocalRouteChanged(decoded, None)
            case ["origin", route, services, bool() as is_end]:
                return self._origin_route(route, services, is_end, incomplete)
            case ["no origin", origin, gateway]:
                removed = OriginRoute(origin=_text(origin), gateway=_text(gateway), metric=0, network="")
                return OriginRouteChanged(removed, None)
            case ["offers", origin, list() | tuple() as offers, list() | tuple() as removed_services]:
                changes = [(None, _offer(offer)) for offer in offers]
                removed_offers = [(Offer(_text(service)), None) for service in removed_services]
                return OffersChanged(_text(origin), (*changes, *removed_offers))
        raise Malformed("change of the table: unknown kind")

    def _origin_route(
        self, value: object, services: object, is_end: bool, incomplete: OriginRoute | None
    ) -> TableEvent | None:
        fields = _fields(value, _ORIGIN_TEXTS, _ORIGIN_NUMBERS)
        names: frozenset[str] | None = None
        if services is not None:
            if not isinstance(services, list | tuple):
                raise Malformed("origin route: services is not a list")
            names = frozenset(map(_text, services))
        route = OriginRoute(**fields, services=names)
        if incomplete is not None and names is not None and route.key == incomplete.key:
            names = names | (incomplete.services or frozenset())
            if len(names) > MAX_SERVICES:
                raise Malformed(f"origin route: more than {MAX_SERVICES} services")
            route = OriginRoute(**fields, services=names)
        if is_end:
            return OriginRouteChanged(None, route)
        self._incomplete = route
        return None


def _changes(event: TableEvent) -> Iterator[tuple[list[Any], int]]:
    """Yield the encoded changes of an event, each with its weight, which is at most ROUTES_PER_ITEM."""
    match event:
        case LocalRouteChanged(before, after):
            route = after or before
            if route is not None:
                yield ["local", route_to_map(route), after is not None], 1
        case OriginRouteChanged(_, OriginRoute() as origin_route):
            fields = {name: getattr(origin_route, name) for name in (*_ORIGIN_TEXTS, *_ORIGIN_NUMBERS)}
            if origin_route.services is None:
                yield ["origin", fields, None, True], 1
                return
            parts = list(_parts(sorted(origin_route.services))) or [[]]
            for number, part in enumerate(parts):
                yield ["origin", fields, part, number == len(parts) - 1], len(part) + 1
        case OriginRouteChanged(OriginRoute() as origin_route, _):
            yield ["no origin", origin_route.origin, origin_route.gateway], 1
        case OffersChanged(origin, pairs):
            for part in _parts(pairs):
                changed = [
                    [after.service, list(after.versions), after.capacity, after.load_us] for _, after in part if after
                ]
                yield (
                    ["offers", origin, changed, [before.service for before, after in part if before and not after]],
                    (len(part)),
                )


def _parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(values)
    while part := [*islice(remaining, ROUTES_PER_ITEM - 1)]:
        yield part


def _fields(value: object, texts: Sequence[str], numbers: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed("route: not a map")
    fields: dict[str, Any] = {name: _text(value.get(name, "")) for name in texts}
    fields.update((name, _number(value.get(name, 0))) for name in numbers)
    return fields


def _offer(value: object) -> Offer:
    match value:
        case [service, list() | tuple() as versions, capacity, load_us] if len(versions) <= MAX_VERSIONS:
            return Offer(_text(service), tuple(map(_text, versions)), _number(capacity), _number(load_us))
    raise Malformed("offer: not a list of service, versions, capacity and load")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_STRING_LENGTH:
        raise Malformed(f"route table: a text is missing or has more than {MAX_STRING_LENGTH} characters")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise Malformed("route table: a number is missing or not in 0 to 2^63 - 1")
    return value
