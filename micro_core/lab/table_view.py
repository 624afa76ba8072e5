"""What the checks need of the table of one node, computed again only when the table has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import LOCAL_LINK, RouteQuery
from micro_core.lab.lab_node import LabNode


@dataclass(frozen=True, slots=True)
class TableView:
    """The table of one node at one version."""

    version: int
    next_hops: Mapping[str, frozenset[str]]
    """The node ids of the gateways to each origin, by its node id."""
    services: Mapping[str, frozenset[str]]
    """The services with a route to each origin, by node id."""
    topics: frozenset[str]
    """The interests in topics of the site of the node."""
    expiring: tuple[tuple[str, float], ...]
    """(origin, end of the lease) of the stale routes."""


def view_of(node: LabNode) -> TableView:
    """Return the view of the table of a running node. The routes of services are not joined: there may be very many."""
    table = node.node.router.table
    next_hops: dict[str, set[str]] = defaultdict(set)
    services: dict[str, set[str]] = defaultdict(set)
    topics: set[str] = set()
    expiring: list[tuple[str, float]] = []
    for route in table.list(RouteQuery(link=LOCAL_LINK)):
        services[route.router].add(route.service)
        if route.service.startswith(INTEREST_PREFIX):
            topics.add(route.service)
    offered: dict[str, frozenset[str]] = {}
    for origin_route in table.origin_routes():
        origin = origin_route.origin
        if origin not in offered:
            offered[origin] = frozenset(offer.service for offer in table.offers(origin))
        next_hops[origin].add(origin_route.gateway)
        # A partial route serves only some of the services.
        reached = offered[origin] if origin_route.services is None else offered[origin] & origin_route.services
        services[origin].update(reached)
        if origin_route.expires_at is not None:
            expiring.append((origin, origin_route.expires_at))
    return TableView(
        node.table_version,
        {origin: frozenset(gateways) for origin, gateways in next_hops.items()},
        {origin: frozenset(names) for origin, names in services.items() if names},
        frozenset(topics),
        tuple(expiring),
    )
