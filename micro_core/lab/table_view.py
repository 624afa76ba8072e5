"""What the checks need of the table of one node, computed again only when the table has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import LOCAL_LINK
from micro_core.lab.lab_node import LabNode

Destination = Hashable
"""Where a route leads: an origin, or a service of an origin."""


@dataclass(frozen=True, slots=True)
class TableView:
    """The table of one node at one version."""

    version: int
    next_hops: Mapping[Destination, frozenset[str]]
    """The node ids of the gateways of each destination."""
    services: Mapping[str, frozenset[str]]
    """The services with a route to each origin, by node id."""
    topics: frozenset[str]
    """The interests in topics of the site of the node."""
    expiring: tuple[tuple[str, float], ...]
    """(service, end of the lease) of the stale routes."""


def view_of(node: LabNode) -> TableView:
    """Return the view of the table of a running node."""
    next_hops: dict[Destination, set[str]] = defaultdict(set)
    services: dict[str, set[str]] = defaultdict(set)
    topics: set[str] = set()
    expiring: list[tuple[str, float]] = []
    for route in node.routes():
        services[route.router].add(route.service)
        if route.link != LOCAL_LINK:
            next_hops[route.service, route.router].add(route.gateway)
        elif route.service.startswith(INTEREST_PREFIX):
            topics.add(route.service)
        if route.expires_at is not None:
            expiring.append((route.service, route.expires_at))
    return TableView(
        node.table_version,
        {destination: frozenset(gateways) for destination, gateways in next_hops.items()},
        {origin: frozenset(names) for origin, names in services.items()},
        frozenset(topics),
        tuple(expiring),
    )
