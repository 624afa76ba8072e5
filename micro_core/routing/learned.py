"""What neighbours say of one origin's service: candidates, the best of them, or a tombstone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.routing.events import UNREACHABLE_US, Announce, Version
from micro_core.routing.metric import SIGNIFICANT_CHANGE, add
from micro_core.spec.table import NETWORK_LINK, Route

TOMBSTONE_S = 120.0
"""How long a withdrawal is remembered: far longer than any advert can be on its way."""


@dataclass(slots=True)
class Candidate:
    """A way through one neighbour."""

    announce: Announce
    metric_us: int
    expires_at: float

    def route(self, peer: str) -> Route:
        """The route through `peer`."""
        announce = self.announce
        return Route(
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


@dataclass(slots=True)
class Learned:
    """All ways to (origin, service). Invariant: no candidate is older than `newest`."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    newest: Version = (0, 0)
    is_withdrawn: bool = False
    """The origin itself withdrew, with the version `newest`: a tombstone."""
    empty_since: float = 0.0
    """When the last candidate went."""
    best: str = ""
    """The neighbour of the best candidate, empty for none."""

    def choose(self) -> None:
        """Take the best candidate by metric; the present one stays unless another is clearly better."""
        alive = {peer: entry for peer, entry in self.candidates.items() if entry.metric_us < UNREACHABLE_US}
        if not alive:
            self.best = ""
            return
        leader = min(alive, key=lambda peer: (alive[peer].metric_us, len(alive[peer].announce.path), peer))
        standing = alive.get(self.best)
        if standing is None or alive[leader].metric_us < standing.metric_us * (1 - SIGNIFICANT_CHANGE):
            self.best = leader

    def announce_onward(self, own_id: str) -> Announce | None:
        """The best way as it is told on: this router added to the path, the cost of the way so far."""
        entry = self.candidates.get(self.best)
        if entry is None:
            return None
        heard = entry.announce
        return Announce(
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
        )

    def recost(self, peer: str, cost_us: int) -> bool:
        """The link to `peer` costs something else now; False when nothing goes through it."""
        entry = self.candidates.get(peer)
        if entry is None:
            return False
        entry.metric_us = add(entry.announce.metric_us, cost_us)
        return True
