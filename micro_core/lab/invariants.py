"""Properties of a whole network: those that always hold (`violations`), and those of a converged one (`differences`).

A `Checker` remembers what it has seen: a look costs as much as the tables that have changed since the last one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

from micro_core.contract.names import BROKER_SERVICE, NETWORK_SERVICE
from micro_core.lab.connectivity import possible_components
from micro_core.lab.lab_node import LabNode
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import SimulatedLinks
from micro_core.lab.table_view import TableView, view_of
from micro_core.network.graph import RADIUS

TOLERANCE_S = 0.01
"""Timers fire exactly on time. This covers rounding errors."""

LATE_S = 0.5
"""A node that needs processor time for its work, or that was stopped, is late by at most this with its timers."""


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


class Checker:
    """Checks one lab again and again."""

    def __init__(self, lab: LabState) -> None:
        self._lab = lab
        self._names: dict[str, str] = {}
        """Name of the node with each id."""
        self._views: dict[str, TableView] = {}
        """View of the table of each running node, by node id."""
        self._next_hops: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
        """The gateways of each node to an origin, by the node id of the origin."""
        self._looping: dict[str, list[str]] = {}
        """The origins to which the next hops form a loop, with the node ids on it."""
        self._compared: dict[str, tuple[TableView, Mapping[str, frozenset[str]], list[str]]] = {}
        """The last comparison of each node: its view, what was expected, and the differences."""

    # -------------------------------------------------------------------- violations

    def violations(self) -> list[str]:
        """Return the violations of properties that hold at any time, even while changes are propagating."""
        self._look()
        return [*self._loops(), *self._routes_to_stopped_nodes(), *self._overdue()]

    def _look(self) -> None:
        """Read the tables that have changed since the last look."""
        alive = {node.id: node for node in self._lab.alive()}
        for node_id, node in alive.items():
            before = self._views.get(node_id)
            if before is None or before.version != node.table_version:
                self._names[node_id] = node.name
                after = self._views[node_id] = view_of(node)
                self._replace(node_id, before.next_hops if before is not None else {}, after.next_hops)
        for node_id in self._views.keys() - alive.keys():
            self._replace(node_id, self._views.pop(node_id).next_hops, {})
            self._compared.pop(node_id, None)

    def _replace(
        self,
        node_id: str,
        before: Mapping[str, frozenset[str]],
        after: Mapping[str, frozenset[str]],
    ) -> None:
        for origin in before.keys() - after.keys():
            gateways = self._next_hops[origin]
            gateways.pop(node_id, None)
            if not gateways:
                del self._next_hops[origin]
            if node_id in self._looping.get(origin, ()):
                self._check_loop(origin)
        for origin, gateways_after in after.items():
            if before.get(origin) != gateways_after:
                self._next_hops[origin][node_id] = gateways_after
                self._check_loop(origin)

    def _check_loop(self, origin: str) -> None:
        cycle = _cycle(self._next_hops.get(origin, {}))
        if cycle:
            self._looping[origin] = cycle
        else:
            self._looping.pop(origin, None)

    def _loops(self) -> list[str]:
        """Return the loops over links that are open at both ends.

        A neighbour that was restarted does not know the links of its earlier run, and nothing is forwarded over them.
        """
        if not self._looping:
            return []
        linked = {node.id: {link.peer for link in node.node.network.links()} for node in self._lab.alive()}
        found = []
        for origin in list(self._looping):
            # A table that changed later during the same look may have resolved a loop, so all are checked again.
            self._check_loop(origin)
            edges = {
                node_id: frozenset(one for one in gateways if one in linked[node_id] and node_id in linked.get(one, ()))
                for node_id, gateways in self._next_hops.get(origin, {}).items()
            }
            cycle = _cycle(edges)
            if cycle:
                found.append(f"loop of routes to {self._name(origin)}: {' > '.join(self._name(one) for one in cycle)}")
        return found

    def _routes_to_stopped_nodes(self) -> list[str]:
        """Return the routes to nodes that stopped so long ago that every route to them must have expired."""
        lab, options = self._lab, self._lab.options
        max_age_s = (
            options.tunnel.keepalive_s * (options.tunnel.dead_after_missed + 2) + options.router.engine.lease_s + 2.0
        )
        stopped = {
            node.id: node for node in lab.nodes.values() if not node.is_alive and lab.now - node.stopped_at > max_age_s
        }
        if not stopped:
            return []
        return [
            f"{self._name(node_id)} has a route for {service} to {stopped[origin].name}, which stopped "
            f"{lab.now - stopped[origin].stopped_at:.1f} s ago"
            for node_id, view in self._views.items()
            for origin in view.services.keys() & stopped.keys()
            for service in sorted(view.services[origin])
        ]

    def _overdue(self) -> list[str]:
        """Return the routes that outlived their lease, and the services that are suppressed for too long."""
        found, lab = [], self._lab
        for node in lab.alive():
            process = node.process
            if process is not None and (process.stopped_for_s > 0 or process.is_held):
                # Its timers fire when it continues.
                continue
            tolerance_s = TOLERANCE_S if lab.options.cpu is None else LATE_S
            latest = lab.now - tolerance_s
            for peer, expires_at in node.node.router.leases().items():
                if expires_at < latest:
                    found.append(f"{node.name} has routes of {self._name(peer)} whose lease ended at {expires_at:.3f}")
            found += [
                f"{node.name} has a stale route to {self._name(origin)} whose lease ended at {expires_at:.3f}"
                for origin, expires_at in self._views[node.id].expiring
                if expires_at < latest
            ]
            found += [
                f"{node.name} suppresses {flap.service}, which was due for reuse at {flap.reuse_at:.3f}"
                for flap in node.node.router.flaps()
                if flap.reuse_at is not None and flap.reuse_at < latest
            ]
        return found

    # ------------------------------------------------------------------- differences

    def differences(self) -> list[str]:
        """Return the differences between the tables and what they contain in a converged network.

        If the tables are correct, the differences between the graphs and the open links are returned.
        """
        self._look()
        found: list[str] = []
        running = self._running_services()
        for group in possible_components(self._lab):
            expected = {
                node.id: running[node.site] | self._views[node.id].topics for node in group if node.id in self._views
            }
            for node in group:
                found += self._compare(node, expected)
        return found or self._graph_differences()

    def _compare(self, node: LabNode, expected: Mapping[str, frozenset[str]]) -> list[str]:
        view = self._views[node.id]
        last = self._compared.get(node.id)
        if last is not None and last[0] is view and last[1] == expected:
            return last[2]
        found: list[str] = []
        if view.services != expected:
            for origin in sorted(expected.keys() | view.services.keys()):
                wanted, present = (names.get(origin, frozenset()) for names in (expected, view.services))
                at = self._name(origin)
                found += [f"{node.name} has no route to {name} at {at}" for name in sorted(wanted - present)]
                found += [
                    f"{node.name} has a route to {name} at {at}, where it does not run"
                    for name in sorted(present - wanted)
                ]
        self._compared[node.id] = view, expected, found
        return found

    def _running_services(self) -> dict[str, frozenset[str]]:
        """Return the names that the routers of each site should advertise, without interests in topics.

        Services belong to the site. They may run although the node on which they were started has stopped.
        """
        running: dict[str, set[str]] = defaultdict(lambda: {NETWORK_SERVICE})
        for node in self._lab.nodes.values():
            running[node.site].update(service.name for service in node.services)
            if node.is_alive and node.node.broker_host is not None:
                running[node.site].add(BROKER_SERVICE)
        return {site: frozenset(names) for site, names in running.items()}

    def _graph_differences(self) -> list[str]:
        """Return the differences between the graph of each node and the nodes within three hops over open links."""
        alive = {node.id: node for node in self._lab.alive()}
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
            if known != near:
                found += [f"{node.name} does not know {self._name(other)}" for other in sorted(near - known)]
                found += [
                    f"{node.name} knows {self._name(other)}, which is out of reach" for other in sorted(known - near)
                ]
        return found

    def _name(self, node_id: str) -> str:
        if node_id not in self._names:
            self._names.update({node.id: node.name for node in self._lab.nodes.values()})
        return self._names.get(node_id, node_id[:8])


def violations(lab: LabState) -> list[str]:
    """Return the violations of properties that hold at any time. For one look; a `Checker` is faster for many."""
    return Checker(lab).violations()


def differences(lab: LabState) -> list[str]:
    """Return the differences from a converged network. For one look; a `Checker` is faster for many."""
    return Checker(lab).differences()


def _cycle(edges: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the nodes of one cycle, empty without a cycle. Not recursive, since routes may be long."""
    done: set[str] = set()
    for start, first in edges.items():
        if start in done:
            continue
        route: list[str] = [start]
        on_route = {start}
        branches = [iter(sorted(first))]
        while route:
            following = next(branches[-1], None)
            if following is None:
                done.add(route[-1])
                on_route.discard(route.pop())
                branches.pop()
            elif following in on_route:
                return [*route[route.index(following) :], following]
            elif following not in done:
                route.append(following)
                on_route.add(following)
                branches.append(iter(sorted(edges.get(following, ()))))
    return []
