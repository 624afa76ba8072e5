"""Properties of a whole network: those that always hold (`violations`), and those of a converged one (`differences`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

from micro_core.contract.names import INTEREST_PREFIX, NETWORK_SERVICE
from micro_core.contract.table import LOCAL_LINK
from micro_core.lab.connectivity import possible_components
from micro_core.lab.lab_node import LabNode
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import SimulatedLinks
from micro_core.network.graph import RADIUS

TOLERANCE_S = 0.01
"""Timers fire exactly on time. This covers rounding errors."""


class LabState(Protocol):
    """The part of a lab that the checks read."""

    options: LabOptions
    links: SimulatedLinks

    @property
    def nodes(self) -> Mapping[str, LabNode]:
        """All nodes by name, including stopped ones."""
        ...

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        ...

    def alive(self) -> list[LabNode]:
        """Return the running nodes."""
        ...


def violations(lab: LabState) -> list[str]:
    """Return the violations of properties that hold at any time, even while changes are propagating."""
    return [*loops(lab), *routes_to_stopped_nodes(lab), *overdue(lab)]


def loops(lab: LabState) -> list[str]:
    """Return the services for which the next hops of all nodes form a loop."""
    by_id = {node.id: node for node in lab.alive()}
    next_hops: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for node in by_id.values():
        for route in node.routes():
            if route.link != LOCAL_LINK:
                next_hops[route.service, route.router][node.id].add(route.gateway)
    found = []
    for (service, origin), edges in next_hops.items():
        cycle = _cycle(edges)
        if cycle:
            path = " > ".join(by_id[node_id].name if node_id in by_id else node_id[:8] for node_id in cycle)
            found.append(f"loop for {service} at {origin[:8]}: {path}")
    return found


def routes_to_stopped_nodes(lab: LabState) -> list[str]:
    """Return the routes to nodes that stopped so long ago that every route to them must have expired."""
    options = lab.options
    max_age_s = (
        options.tunnel.keepalive_s * (options.tunnel.dead_after_missed + 2) + options.router.engine.lease_s + 2.0
    )
    stopped = {
        node.id: node for node in lab.nodes.values() if not node.is_alive and lab.now - node.stopped_at > max_age_s
    }
    return [
        f"{node.name} has a route for {route.service} to {stopped[route.router].name}, which stopped "
        f"{lab.now - stopped[route.router].stopped_at:.1f} s ago"
        for node in lab.alive()
        if stopped
        for route in node.routes()
        if route.router in stopped
    ]


def overdue(lab: LabState) -> list[str]:
    """Return the routes that outlived their lease, and the services that are suppressed for too long."""
    found = []
    for node in lab.alive():
        for peer, expires_at in node.node.router.leases().items():
            if expires_at < lab.now - TOLERANCE_S:
                found.append(f"{node.name} has routes of {_name(lab, peer)} whose lease ended at {expires_at:.3f}")
        found += [
            f"{node.name} has a stale route to {route.service} whose lease ended at {route.expires_at:.3f}"
            for route in node.routes()
            if route.expires_at is not None and route.expires_at < lab.now - TOLERANCE_S
        ]
        found += [
            f"{node.name} suppresses {flap.service}, which was due for reuse at {flap.reuse_at:.3f}"
            for flap in node.node.router.flaps()
            if flap.reuse_at is not None and flap.reuse_at < lab.now - TOLERANCE_S
        ]
    return found


def differences(lab: LabState) -> list[str]:
    """Return the differences between the tables and what they contain in a converged network.

    If the tables are correct, the differences between the graphs and the open links are returned.
    """
    found = []
    offered = {node.id: _offered(node) for node in lab.alive()}
    for group in possible_components(lab):
        ids = {node.id for node in group}
        for node in group:
            routed: dict[str, set[str]] = defaultdict(set)
            for route in node.routes():
                routed[route.router].add(route.service)
            for origin in sorted(ids | set(routed)):
                expected = offered[origin] if origin in ids else set()
                at = _name(lab, origin)
                found += [f"{node.name} has no route to {name} at {at}" for name in sorted(expected - routed[origin])]
                found += [
                    f"{node.name} has a route to {name} at {at}, where it does not run"
                    for name in sorted(routed[origin] - expected)
                ]
    return found or graph_differences(lab)


def graph_differences(lab: LabState) -> list[str]:
    """Return the differences between the graph of each node and the nodes within three hops over open links."""
    alive = {node.id: node for node in lab.alive()}
    peers = {
        node_id: [link.peer for link in node.node.network.links() if link.peer in alive]
        for node_id, node in alive.items()
    }
    found = []
    for node_id, node in alive.items():
        near, border = {node_id}, {node_id}
        for _ in range(RADIUS):
            border = {peer for reached in border for peer in peers[reached]} - near
            near |= border
        known = {one.record.id for one in node.node.network.nodes()}
        found += [f"{node.name} does not know {_name(lab, other)}" for other in sorted(near - known)]
        found += [f"{node.name} knows {_name(lab, other)}, which is out of reach" for other in sorted(known - near)]
    return found


def _offered(node: LabNode) -> set[str]:
    """Return the names that the router of a node should advertise: services, and topics with subscribers."""
    names = {route.service for route in node.routes() if route.link == LOCAL_LINK}
    running = {service.name for service in node.services} | {NETWORK_SERVICE, "go.micro.broker"}
    return running | {name for name in names if name.startswith(INTEREST_PREFIX)}


def _cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle, empty without a cycle. Not recursive, since paths may be long."""
    done: set[str] = set()
    for start, first in edges.items():
        if start in done:
            continue
        path: list[str] = [start]
        on_path = {start}
        branches = [iter(sorted(first))]
        while path:
            following = next(branches[-1], None)
            if following is None:
                done.add(path[-1])
                on_path.discard(path.pop())
                branches.pop()
            elif following in on_path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                branches.append(iter(sorted(edges.get(following, ()))))
    return []


def _name(lab: LabState, node_id: str) -> str:
    return next((node.name for node in lab.nodes.values() if node.id == node_id), node_id[:8])
