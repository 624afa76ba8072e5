"""Which nodes and paths a call or message would use now, according to the tables of the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from micro_core.contract.table import LOCAL_LINK
from micro_core.lab.faults import Subject, path_between
from micro_core.lab.lab_node import LabNode
from micro_core.routing.lookup import LOAD_SHARING_FACTOR


class Nodes(Protocol):
    """The part of a lab that is read here."""

    def alive(self) -> list[LabNode]:
        """Return the running nodes."""
        ...


@dataclass(slots=True)
class UsedRoutes:
    """The routes that a call may use: the best ones, and those that share the load with them."""

    subjects: set[Subject] = field(default_factory=set)
    """The nodes and paths on them."""
    best: tuple[str, ...] = ()
    """The nodes on the best one."""
    is_complete: bool = True
    """Whether each of them ends at an instance. If not, a call may find no route."""


def used_routes(lab: Nodes, caller: LabNode, service: str) -> UsedRoutes:
    """Return the routes from the site of `caller` to a service. Clients use any running node of their site."""
    by_id = {node.id: node for node in lab.alive()}
    found = UsedRoutes()
    starts = [node for node in by_id.values() if node.site == caller.site]
    if not starts:
        found.is_complete = False
    visited: set[str] = set()
    border = list(starts)
    while border:
        node = border.pop()
        if node.name in visited:
            continue
        visited.add(node.name)
        found.subjects.add(node.name)
        routes = node.node.router.lookup(service)
        if not routes:
            found.is_complete = False
            continue
        for route in routes:
            if route.metric > routes[0].metric * LOAD_SHARING_FACTOR or route.link == LOCAL_LINK:
                continue
            following = by_id.get(route.gateway)
            if following is None:
                # The next hop has stopped, and this is not detected yet.
                found.is_complete = False
                continue
            found.subjects.add(path_between(node.name, following.name))
            border.append(following)
    if starts:
        found.best = _best(by_id, starts[0], service)
    return found


def _best(by_id: Mapping[str, LabNode], start: LabNode, service: str) -> tuple[str, ...]:
    node, names = start, [start.name]
    while len(names) <= len(by_id):
        route = next(iter(node.node.router.lookup(service)), None)
        if route is None or route.link == LOCAL_LINK or route.gateway not in by_id:
            break
        node = by_id[route.gateway]
        names.append(node.name)
    return tuple(names)
