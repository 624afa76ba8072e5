"""What neighbours say of one origin's service: candidates, the best of them, or a tombstone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.routing.events import UNREACHABLE_US, Announce, DeleteRoute, PutRoute, Version
from micro_core.routing.metric import SIGNIFICANT_CHANGE, add

TOMBSTONE_S = 120.0
"""How long a withdrawal is remembered: far longer than any advert can be on its way."""


@dataclass(slots=True)
class Candidate:
    """A way through one neighbour."""

    announce: Announce
    metric_us: int
    _route: Route | None = None

    def route(self, peer: str) -> Route:
        """The route through `peer`; the same object until the metric is another."""
        made = self._route
        if made is not None and made.metric == self.metric_us:
            return made
        announce = self.announce
        self._route = made = Route(
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
        )
        return made


@dataclass(slots=True)
class Learned:
    """All ways to (origin, service).

    A way is *feasible* where its neighbour is nearer to the origin than this router has ever been since the origin's
    last word (RFC 8966 section 3.5.1): then the neighbour's own way cannot lead through here, whatever changes are
    still under way. Only feasible ways are used, told on and put into the table.
    """

    candidates: dict[str, Candidate] = field(default_factory=dict)
    newest: Version = (0, 0)
    is_withdrawn: bool = False
    """The origin itself withdrew, with the version `newest`: a tombstone."""
    empty_since: float = 0.0
    """When the last candidate went."""
    best: str = ""
    """The neighbour of the best candidate, empty for none."""
    distance: tuple[Version, int] = ((0, 0), UNREACHABLE_US)
    """The feasibility distance: (version, the least metric in use since)."""
    in_table: dict[str, Route] = field(default_factory=dict)
    """The routes that stand in the table, by neighbour."""
    onward: tuple[Announce, int, Announce] | None = None
    """The last announcement told on, and what it was made of: every neighbour is told the same."""
    requested: tuple[Version, float] = ((0, 0), 0.0)
    """The last sequence request sent or passed on: what it asked to be later than, and when."""
    asked: set[str] = field(default_factory=set)
    """The neighbours that were sent it."""

    def is_feasible(self, candidate: Candidate) -> bool:
        """Whether the way is surely free of loops."""
        version, metric_us = self.distance
        at = candidate.announce.at
        return at > version or (at == version and candidate.announce.metric_us < metric_us)

    def usable(self) -> dict[str, Candidate]:
        """The feasible candidates that are reachable at all, by neighbour."""
        is_feasible = self.is_feasible
        return {
            peer: candidate
            for peer, candidate in self.candidates.items()
            if candidate.metric_us < UNREACHABLE_US and is_feasible(candidate)
        }

    def is_starved(self) -> bool:
        """There are ways, and none of them is known to be free of loops."""
        if self.best:
            return False
        return any(candidate.metric_us < UNREACHABLE_US for candidate in self.candidates.values())

    def settle(self) -> list[PutRoute | DeleteRoute]:
        """Choose among what is usable now; what makes the table hold exactly that."""
        usable = self.usable()
        self._choose(usable)
        if len(self.candidates) > 1:
            # The choice has moved the feasibility distance: others may have become infeasible.
            usable = self.usable()
        return self._table_changes(usable)

    def _choose(self, alive: dict[str, Candidate]) -> None:
        """Take the best feasible candidate; the present one stays unless another is clearly better, or newer."""
        if not alive:
            self.best = ""
            return
        leader = next(iter(alive))
        if len(alive) > 1:
            leader = min(alive, key=lambda peer: (alive[peer].metric_us, len(alive[peer].announce.path), peer))
        standing = alive.get(self.best)
        if standing is None or alive[leader].metric_us < standing.metric_us * (1 - SIGNIFICANT_CHANGE):
            self.best = leader
        chosen = alive[self.best]
        version, least_us = self.distance
        at = chosen.announce.at
        self.distance = (at, chosen.metric_us if at > version else min(least_us, chosen.metric_us))

    def _table_changes(self, usable: dict[str, Candidate]) -> list[PutRoute | DeleteRoute]:
        changes: list[PutRoute | DeleteRoute] = []
        if self.in_table:
            gone = [peer for peer in self.in_table if peer not in usable]
            changes += [DeleteRoute(self.in_table.pop(peer).key) for peer in gone]
        for peer, candidate in usable.items():
            route, standing = candidate.route(peer), self.in_table.get(peer)
            if standing is not route and standing != route:
                self.in_table[peer] = route
                changes.append(PutRoute(route))
        return changes

    def announce_onward(self, own_id: str) -> Announce | None:
        """The best way as it is told on: this router added to the path, the cost of the way so far."""
        entry = self.candidates.get(self.best)
        if entry is None:
            return None
        heard = entry.announce
        if self.onward is not None and self.onward[0] is heard and self.onward[1] == entry.metric_us:
            return self.onward[2]
        told = Announce(
            origin=heard.origin,
            incarnation=heard.incarnation,
            sequence=heard.sequence,
            service=heard.service,
            versions=heard.versions,
            capacity=heard.capacity,
            site=heard.site,
            network=heard.network,
            metric_us=entry.metric_us,
            path=(*heard.path, own_id),
            load_us=heard.load_us,
        )
        self.onward = (heard, entry.metric_us, told)
        return told

    def recost(self, peer: str, cost_us: int) -> bool:
        """The link to `peer` costs something else now; False when nothing goes through it."""
        entry = self.candidates.get(peer)
        if entry is None:
            return False
        entry.metric_us = add(entry.announce.metric_us, cost_us)
        return True
