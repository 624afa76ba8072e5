"""Routes and route events as plain maps, exchanged by a router process and the readers of its table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from micro_core.contract.errors import Malformed
from micro_core.contract.table import Route, RouteEvent, RouteEventKind

ROUTES_PER_ITEM = 200
"""Routes or changes in one item of a stream, which then has some tens of kilobytes."""

MAX_STRING_LENGTH = 1_024

_STRING_FIELDS = ("service", "address", "gateway", "network", "router", "link", "site", "version")
_INTEGER_FIELDS = ("metric", "hops", "load_us")
_KINDS = {kind.value: kind for kind in RouteEventKind}


def route_to_map(route: Route) -> dict[str, Any]:
    """Return a route as a map without its lease: the clocks of two processes differ, and the router removes the route."""
    return {name: getattr(route, name) for name in (*_STRING_FIELDS, *_INTEGER_FIELDS)}


def route_from_map(value: object) -> Route:
    """Return the route of a map.

    Raises:
        Malformed: The value is not a map, or a field has the wrong type or is too large.
    """
    if not isinstance(value, Mapping):
        raise Malformed("route: not a map")
    fields: dict[str, Any] = {}
    for name in _STRING_FIELDS:
        text = value.get(name, "")
        if not isinstance(text, str) or len(text) > MAX_STRING_LENGTH:
            raise Malformed(f"route: {name} is not a string of at most {MAX_STRING_LENGTH} characters")
        fields[name] = text
    for name in _INTEGER_FIELDS:
        number = value.get(name, 0)
        if type(number) is not int or not 0 <= number < 2**63:
            raise Malformed(f"route: {name} is not an integer from 0 to 2^63 - 1")
        fields[name] = number
    return Route(**fields)


def event_to_item(event: RouteEvent) -> list[Any]:
    """Return a route event as a pair of its kind and its route."""
    return [event.kind.value, route_to_map(event.route)]


def event_from_item(value: object) -> RouteEvent:
    """Return the route event of a pair.

    Raises:
        Malformed: The value is not a pair of a known kind and a route.
    """
    if not isinstance(value, Sequence) or len(value) != 2 or value[0] not in _KINDS:
        raise Malformed("route event: not a pair of a kind and a route")
    return RouteEvent(kind=_KINDS[value[0]], route=route_from_map(value[1]))


def batches(routes: Sequence[Route]) -> list[Sequence[Route]]:
    """Split `routes` into batches of at most ROUTES_PER_ITEM."""
    return [routes[start : start + ROUTES_PER_ITEM] for start in range(0, len(routes), ROUTES_PER_ITEM)]
