"""An entry of the routing information base: the candidate routes to one service at one origin. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.routing.events import UNREACHABLE_US, Announce, DeleteRoute, PutRoute, Seqno
from micro_core.routing.metric import SIGNIFICANT_CHANGE, add

TOMBSTONE_S = 120.0
"""Seconds for which an entry without candidates is kept. No advert is in flight for that long."""


@dataclass(slots=True)
class Candidate:
    """A route that one neighbour advertises."""

    announce: Announce
    metric_us: int
    """Metric of the announcement plus the cost of the link to the neighbour."""
    _route: Route | None = None

    def route(self, peer: str) -> Route:
        """Return the route through the neighbour `peer`. It is the same object until the metric changes."""
        cached = self._route
        if cached is not None and cached.metric == self.metric_us:
            return cached
        announce = self.announce
        self._route = route = Route(
            service=announce.service,
            address="",
            gateway=peer,
            network=announce.network,
            router=announce.origin,
            link=NETWORK_LINK,
            metric=self.metric_us,
            site=announce.site,
            version=",".join(announce.versions),
            hops=len(announce.path),
            load_us=min(announce.load_us, self.metric_us),
        )
        return route


@dataclass(slots=True)
class RibEntry:
    """All candidate routes to one (origin, service), and the selected one.

    A candidate is *feasible* if its neighbour is nearer to the origin than this router has ever been with the current
    sequence number of the origin (RFC 8966 section 3.5.1). Then the route of the neighbour cannot lead through this
    router, even while changes are still propagating. Only feasible candidates are used for calls, installed in the
    table, and advertised.
    """

    candidates: dict[str, Candidate] = field(default_factory=dict)
    """By neighbour."""
    newest_seqno: Seqno = (0, 0)
    is_withdrawn: bool = False
    """The origin itself withdrew the service with the sequence number `newest_seqno`: the entry is a tombstone."""
    empty_since: float = 0.0
    """Clock seconds at which the last candidate was removed."""
    selected: str = ""
    """The neighbour of the selected candidate. Empty if no candidate is usable."""
    feasibility_distance: tuple[Seqno, int] = ((0, 0), UNREACHABLE_US)
    """(sequence number, smallest metric that this router has used with it), as in RFC 8966 section 3.2.5."""
    installed: dict[str, Route] = field(default_factory=dict)
    """The routes that are in the table, by neighbour."""
    cached_export: tuple[Announce, int, Announce] | None = None
    """(received announcement, metric, resulting announcement) of the last `export`, shared by all neighbours."""
    last_request: tuple[Seqno, float] = ((0, 0), 0.0)
    """The last seqno request that was sent or forwarded: (sequence number to exceed, clock seconds)."""
    requested_from: set[str] = field(default_factory=set)
    """The neighbours to which the last seqno request was sent."""

    def is_feasible(self, candidate: Candidate) -> bool:
        """Return whether the route of `candidate` is guaranteed to be free of loops."""
        seqno, metric_us = self.feasibility_distance
        advertised = candidate.announce.seqno
        return advertised > seqno or (advertised == seqno and candidate.announce.metric_us < metric_us)

    def usable(self) -> dict[str, Candidate]:
        """Return the feasible candidates whose metric is finite, by neighbour."""
        is_feasible = self.is_feasible
        return {
            peer: candidate
            for peer, candidate in self.candidates.items()
            if candidate.metric_us < UNREACHABLE_US and is_feasible(candidate)
        }

    def is_starved(self) -> bool:
        """Return whether there are candidates, but none of them is feasible (RFC 8966 section 3.8.2.1)."""
        if self.selected:
            return False
        return any(candidate.metric_us < UNREACHABLE_US for candidate in self.candidates.values())

    def select(self) -> list[PutRoute | DeleteRoute]:
        """Select the best usable candidate. Return the changes that the table needs to hold all usable candidates."""
        usable = self.usable()
        self._select_best(usable)
        if len(self.candidates) > 1:
            # The selection may have reduced the feasibility distance, so that other candidates became infeasible.
            usable = self.usable()
        return self._table_changes(usable)

    def _select_best(self, usable: dict[str, Candidate]) -> None:
        """Select the candidate with the lowest metric, but keep the current one unless another is clearly better."""
        if not usable:
            self.selected = ""
            return
        best = next(iter(usable))
        if len(usable) > 1:
            best = min(usable, key=lambda peer: (usable[peer].metric_us, len(usable[peer].announce.path), peer))
        current = usable.get(self.selected)
        if current is None or usable[best].metric_us < current.metric_us * (1 - SIGNIFICANT_CHANGE):
            self.selected = best
        selected = usable[self.selected]
        seqno, min_metric_us = self.feasibility_distance
        advertised = selected.announce.seqno
        self.feasibility_distance = (
            advertised,
            selected.metric_us if advertised > seqno else min(min_metric_us, selected.metric_us),
        )

    def _table_changes(self, usable: dict[str, Candidate]) -> list[PutRoute | DeleteRoute]:
        changes: list[PutRoute | DeleteRoute] = []
        if self.installed:
            unusable = [peer for peer in self.installed if peer not in usable]
            changes += [DeleteRoute(self.installed.pop(peer).key) for peer in unusable]
        for peer, candidate in usable.items():
            route, current = candidate.route(peer), self.installed.get(peer)
            if current is not route and current != route:
                self.installed[peer] = route
                changes.append(PutRoute(route))
        return changes

    def export(self, own_id: str) -> Announce | None:
        """Return the announcement of the selected route for neighbours, None if there is no selected route.

        Its path ends with this router (`own_id`), and its metric includes the cost of the link to the next hop.
        """
        candidate = self.candidates.get(self.selected)
        if candidate is None:
            return None
        received = candidate.announce
        cached = self.cached_export
        if cached is not None and cached[0] is received and cached[1] == candidate.metric_us:
            return cached[2]
        exported = Announce(
            origin=received.origin,
            incarnation=received.incarnation,
            sequence=received.sequence,
            service=received.service,
            versions=received.versions,
            capacity=received.capacity,
            site=received.site,
            network=received.network,
            metric_us=candidate.metric_us,
            path=(*received.path, own_id),
            load_us=received.load_us,
        )
        self.cached_export = (received, candidate.metric_us, exported)
        return exported

    def update_link_cost(self, peer: str, cost_us: int) -> bool:
        """Recompute the metric of the candidate through `peer`. Return False if there is no such candidate."""
        candidate = self.candidates.get(peer)
        if candidate is None:
            return False
        candidate.metric_us = add(candidate.announce.metric_us, cost_us)
        return True
