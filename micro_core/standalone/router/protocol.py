"""Routes as plain maps, between a router's process and those that read its table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from micro_core.contract.errors import Malformed
from micro_core.contract.table import Route, RouteEvent, RouteEventKind

ROUTES_PER_ITEM = 200
"""Routes or changes in one item of a stream: some tens of kilobytes."""

_TEXTS = ("service", "address", "gateway", "network", "router", "link", "site", "version")
_NUMBERS = ("metric", "hops")
_KINDS = {kind.value: kind for kind in RouteEventKind}


def route_to_map(route: Route) -> dict[str, Any]:
    """Without its lease: clocks of processes are not the same, and the router deletes what has run out."""
    return {name: getattr(route, name) for name in (*_TEXTS, *_NUMBERS)}


def route_from_map(value: object) -> Route:
    """The inverse; raises Malformed."""
    if not isinstance(value, Mapping):
        raise Malformed("route: not a map")
    fields: dict[str, Any] = {}
    for name in _TEXTS:
        text = value.get(name, "")
        if not isinstance(text, str) or len(text) > 1_024:
            raise Malformed(f"route: {name} is not a short text")
        fields[name] = text
    for name in _NUMBERS:
        number = value.get(name, 0)
        if type(number) is not int or not 0 <= number < 2**63:
            raise Malformed(f"route: {name} is not a count")
        fields[name] = number
    return Route(**fields)


def event_to_item(event: RouteEvent) -> list[Any]:
    return [event.kind.value, route_to_map(event.route)]


def event_from_item(value: object) -> RouteEvent:
    """The inverse; raises Malformed."""
    if not isinstance(value, Sequence) or len(value) != 2 or value[0] not in _KINDS:
        raise Malformed("route event: not a pair of kind and route")
    return RouteEvent(kind=_KINDS[value[0]], route=route_from_map(value[1]))


def batches(routes: Sequence[Route]) -> list[Sequence[Route]]:
    """`routes` in pieces of ROUTES_PER_ITEM."""
    return [routes[start : start + ROUTES_PER_ITEM] for start in range(0, len(routes), ROUTES_PER_ITEM)]
