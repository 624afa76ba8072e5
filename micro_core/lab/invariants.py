"""What must hold of a whole network: at every moment (`violations`), and once all is quiet (`disagreements`)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from micro_core.contract.names import INTEREST_PREFIX, NETWORK_SERVICE
from micro_core.contract.table import LOCAL_LINK
from micro_core.network.graph import RADIUS
from micro_core.tunnel.path_selection import PATH_SEPARATOR

SLACK_S = 0.01
"""Timers go off at their time; this is for the arithmetic."""

if TYPE_CHECKING:
    from micro_core.lab.lab_node import LabNode
    from micro_core.lab.net import Lab


def violations(lab: Lab) -> list[str]:
    """What is wrong now, whatever is under way: empty when nothing is."""
    return [*loops(lab), *zombies(lab), *overdue(lab)]


def loops(lab: Lab) -> list[str]:
    """Routes that lead back to where they began: every route is followed, from every node, towards its origin."""
    by_id = {member.id: member for member in lab.alive()}
    onward: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for member in by_id.values():
        for route in member.routes():
            if route.link != LOCAL_LINK:
                onward[route.service, route.router][member.id].add(route.gateway)
    found = []
    for (service, origin), edges in onward.items():
        cycle = _cycle(edges)
        if cycle:
            path = " > ".join(by_id[node].name if node in by_id else node[:8] for node in cycle)
            found.append(f"a loop for {service} at {origin[:8]}: {path}")
    return found


def zombies(lab: Lab) -> list[str]:
    """Routes to a router that has been gone for longer than anybody may believe in it."""
    options = lab.options
    patience_s = (
        options.tunnel.keepalive_s * (options.tunnel.dead_after_missed + 2) + options.router.engine.lease_s + 2.0
    )
    gone = {
        member.id: member
        for member in lab.nodes.values()
        if not member.is_alive and lab.now - member.gone_at > patience_s
    }
    return [
        f"{member.name} still routes {route.service} to {gone[route.router].name}, gone for "
        f"{lab.now - gone[route.router].gone_at:.1f} s"
        for member in lab.alive()
        if gone
        for route in member.routes()
        if route.router in gone
    ]


def overdue(lab: Lab) -> list[str]:
    """What has outlived its time: routes past their lease, announcements held past the longest time."""
    wrong = []
    for member in lab.alive():
        for peer, expires_at in member.node.router.leases().items():
            if expires_at < lab.now - SLACK_S:
                wrong.append(f"{member.name} keeps routes of {_name(lab, peer)}, whose lease ended at {expires_at:.3f}")
        wrong += [
            f"{member.name} keeps a stale route to {route.service}, whose lease ended at {route.expires_at:.3f}"
            for route in member.routes()
            if route.expires_at is not None and route.expires_at < lab.now - SLACK_S
        ]
        wrong += [
            f"{member.name} still holds {flap.service}, which was to go at {flap.release_at:.3f}"
            for flap in member.node.router.flaps()
            if flap.release_at is not None and flap.release_at < lab.now - SLACK_S
        ]
    return wrong


def disagreements(lab: Lab) -> list[str]:
    """Where a table differs from what should be in it once all is quiet."""
    wrong = []
    offered = {member.id: _offered(member) for member in lab.alive()}
    for group in _components(lab):
        ids = {member.id for member in group}
        for member in group:
            held: dict[str, set[str]] = defaultdict(set)
            for route in member.routes():
                held[route.router].add(route.service)
            for origin in sorted(ids | set(held)):
                should = offered[origin] if origin in ids else set()
                at = _name(lab, origin)
                wrong += [f"{member.name} has no route to {name} at {at}" for name in sorted(should - held[origin])]
                wrong += [
                    f"{member.name} has a route to {name} at {at}, not there" for name in sorted(held[origin] - should)
                ]
    return wrong or unseen(lab)


def unseen(lab: Lab) -> list[str]:
    """Where a node's graph differs from what is there: who is within three hops, over the links that stand."""
    alive = {member.id: member for member in lab.alive()}
    peers = {
        node_id: [link.peer for link in member.node.network.links() if link.peer in alive]
        for node_id, member in alive.items()
    }
    wrong = []
    for node_id, member in alive.items():
        near, border = {node_id}, {node_id}
        for _ in range(RADIUS):
            border = {peer for here in border for peer in peers[here]} - near
            near |= border
        seen = {node.record.id for node in member.node.network.nodes()}
        wrong += [f"{member.name} does not see {_name(lab, other)}" for other in sorted(near - seen)]
        wrong += [f"{member.name} sees {_name(lab, other)}, not there" for other in sorted(seen - near)]
    return wrong


def _offered(member: LabNode) -> set[str]:
    """What the node's own site registers, as its router should tell it: services, and topics that are wanted."""
    names = {route.service for route in member.routes() if route.link == LOCAL_LINK}
    running = {service.name for service in member.services} | {NETWORK_SERVICE, "go.micro.broker"}
    return running | {name for name in names if name.startswith(INTEREST_PREFIX)}


def _components(lab: Lab) -> list[list[LabNode]]:
    """Groups of living nodes that links join, as the wires allow."""
    alive = {member.name: member for member in lab.alive()}
    edges: dict[str, set[str]] = defaultdict(set)
    for member in alive.values():
        for way in (way for address in member.seeds for way in address.split(PATH_SEPARATOR)):
            scheme, _, other = way.partition("://")
            is_cut = lab.wires.is_cut(member.name, other, scheme) or lab.wires.is_cut(other, member.name, scheme)
            if other in alive and not is_cut:
                edges[member.name].add(other)
                edges[other].add(member.name)
    groups: list[list[LabNode]] = []
    seen: set[str] = set()
    for name in alive:
        if name in seen:
            continue
        group, border = [], [name]
        seen.add(name)
        while border:
            here = border.pop()
            group.append(alive[here])
            for other in sorted(edges[here] - seen):
                seen.add(other)
                border.append(other)
        groups.append(group)
    return groups


def _cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle, as the nodes on it; empty when there is none. Iterative: paths may be long."""
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


def _name(lab: Lab, node_id: str) -> str:
    return next((member.name for member in lab.nodes.values() if member.id == node_id), node_id[:8])
