"""Which nodes are connected: over the links that are open, and over those that could be opened."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

from micro_core.contract.names import PATH_SEPARATOR
from micro_core.lab.lab_node import LabNode
from micro_core.lab.simulated_links import SimulatedLinks


class Network(Protocol):
    """The part of a lab that is read here."""

    links: SimulatedLinks

    def alive(self) -> list[LabNode]:
        """Return the running nodes."""
        ...


def components(lab: Network) -> list[list[LabNode]]:
    """Return the groups of running nodes that are connected over open links. Both ends must have the link."""
    alive = {node.id: node for node in lab.alive()}
    linked = {
        node_id: {link.peer for link in node.node.network.links() if link.peer in alive}
        for node_id, node in alive.items()
    }
    edges = {
        alive[one].name: {alive[other].name for other in others if one in linked[other]}
        for one, others in linked.items()
    }
    return _groups({node.name: node for node in alive.values()}, edges)


def possible_components(lab: Network) -> list[list[LabNode]]:
    """Return the groups of running nodes that can be connected over paths that are not cut.

    A node with resolvers finds every other node, directly or through others. A node without resolvers has the links of the
    seeds of both ends.
    """
    alive = {node.name: node for node in lab.alive()}
    edges: dict[str, set[str]] = defaultdict(set)
    for node in alive.values():
        for path in (path for address in node.seeds for path in address.split(PATH_SEPARATOR)):
            scheme, _, address = path.partition("://")
            other = lab.links.node_at(address)
            if other in alive and not _is_cut(lab, node.name, other, [scheme]):
                edges[node.name].add(other)
                edges[other].add(node.name)
    finding = [node for node in alive.values() if node.resolvers]
    for near, far in itertools.combinations(finding, 2):
        is_dialable = lab.links.is_dialable(near.name, far.name) or lab.links.is_dialable(far.name, near.name)
        if is_dialable and not _is_cut(lab, near.name, far.name, near.lab.options.schemes):
            edges[near.name].add(far.name)
            edges[far.name].add(near.name)
    return _groups(alive, edges)


def is_connected(lab: Network, one: LabNode, other: LabNode) -> bool:
    """Return whether two running nodes can be connected, directly or through others."""
    return one.site == other.site or any(one in group and other in group for group in possible_components(lab))


def _is_cut(lab: Network, one: str, other: str, schemes: Iterable[str]) -> bool:
    return all(lab.links.is_cut(one, other, scheme) or lab.links.is_cut(other, one, scheme) for scheme in schemes)


def _groups(nodes: Mapping[str, LabNode], edges: Mapping[str, set[str]]) -> list[list[LabNode]]:
    groups: list[list[LabNode]] = []
    visited: set[str] = set()
    for name in nodes:
        if name in visited:
            continue
        group, border = [], [name]
        visited.add(name)
        while border:
            current = border.pop()
            group.append(nodes[current])
            for other in sorted(edges.get(current, set()) - visited):
                visited.add(other)
                border.append(other)
        groups.append(group)
    return groups
