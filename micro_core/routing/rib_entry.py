"""An entry of the routing information base: all that is known about one origin. Pure.

A candidate is *feasible* if its neighbour is nearer to the origin than this router: then its route cannot lead through this
router, even while changes are still propagating. RFC 8966 section 3.5.1 compares the metric that the neighbour advertises now
with the feasibility distance. This router compares the *smallest* metric that the neighbour has advertised with the same sequence
number, because the feasibility distance of the neighbour is still at most that. So a cost that rises never makes a route
unusable. docs/design/008-routes-per-origin.md contains the proof.
"""

from __future__ import annotations

from micro_core.contract.table import OriginRoute, OriginRouteKey
from micro_core.routing.entries import OriginAnnounce, Seqno
from micro_core.routing.events import UNREACHABLE_US, DeleteOriginRoute, Effect, PutOriginRoute
from micro_core.routing.metric import SIGNIFICANT_CHANGE, is_significant
from micro_core.routing.offer_list import OfferList

TOMBSTONE_S = 120.0
"""Seconds for which an entry without candidates is kept. No advert is in flight for that long."""

NO_SEQNO: Seqno = (0, 0)


class Adjacency:
    """What a neighbour has advertised about one origin, and what was advertised to it."""

    __slots__ = (
        "advertised_list",
        "advertised_version",
        "advertised_view",
        "announce_checksum",
        "exported",
        "is_installed",
        "is_list_advertised",
        "is_partial",
        "is_skipped",
        "list_checksum",
        "lost_at",
        "metric_us",
        "min_metric_us",
        "path",
        "seqno",
        "view",
    )

    def __init__(self) -> None:
        # Received from the neighbour.
        self.path: tuple[str, ...] = ()
        """Empty if the neighbour has no route: the adjacency is not a candidate."""
        self.seqno = NO_SEQNO
        self.metric_us = UNREACHABLE_US
        self.min_metric_us = UNREACHABLE_US
        """The smallest metric that the neighbour has advertised with `seqno`, without a withdrawal since."""
        self.is_partial = False
        self.view: set[str] | None = None
        """The services that can be reached through the neighbour, None for all of them."""
        self.is_installed = False
        self.is_skipped = False
        """Offers were not merged because the announcement was rejected."""
        self.announce_checksum = 0
        self.list_checksum = 0
        """0 until the list is received after the announcement of the route."""
        # Advertised to the neighbour.
        self.exported: OriginAnnounce | None = None
        self.advertised_list: OfferList | None = None
        self.advertised_version = 0
        self.advertised_view: dict[str, int] | None = None
        """If the neighbour sees a part of the list: the version of each service that was advertised to it."""
        self.is_list_advertised = False
        """The list was advertised since the last withdrawal of the route, and is part of the digest."""
        self.lost_at = 0.0
        """Clock seconds at which a route in one of the two directions was withdrawn last."""


class RibEntry:
    """All candidate routes to one origin, the selected one, and the list of its offers."""

    __slots__ = (
        "adjacencies",
        "empty_since",
        "export",
        "fd_metric_us",
        "fd_seqno",
        "is_export_current",
        "is_withdrawn",
        "network",
        "newest_seqno",
        "offers",
        "origin",
        "selected",
        "site",
    )

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.site = ""
        self.network = ""
        self.adjacencies: dict[str, Adjacency] = {}
        """By neighbour."""
        self.offers: OfferList | None = None
        self.newest_seqno = NO_SEQNO
        self.is_withdrawn = False
        """The origin itself has left with the sequence number `newest_seqno`: the entry is a tombstone."""
        self.empty_since = 0.0
        """Clock seconds at which the last candidate was removed, 0 if there was none yet."""
        self.selected = ""
        """The neighbour of the selected candidate. Empty if no candidate is usable."""
        self.fd_seqno = NO_SEQNO
        self.fd_metric_us = UNREACHABLE_US
        """The feasibility distance: the smallest metric that this router has advertised with `fd_seqno`."""
        self.export: OriginAnnounce | None = None
        """The announcement that was advertised last. Neighbours share the object."""
        self.is_export_current = False
        """`export` was compared with the selected route since that was last changed."""

    # ------------------------------------------------------------------ queries

    def adjacency(self, peer: str) -> Adjacency:
        """Return what is shared with a neighbour about the origin. A missing object is created."""
        found = self.adjacencies.get(peer)
        if found is None:
            found = self.adjacencies[peer] = Adjacency()
        return found

    def has_candidates(self) -> bool:
        """Return whether any neighbour has a route."""
        # A loop instead of `any`, because this is part of every first and last candidate.
        for adjacency in self.adjacencies.values():  # noqa: SIM110
            if adjacency.path:
                return True
        return False

    def rejected(self) -> dict[str, Adjacency]:
        """Return, by neighbour, what is remembered of announcements that were rejected: their part of the digests."""
        found = {}
        for peer, before in self.adjacencies.items():
            if before.announce_checksum:
                found[peer] = adjacency = Adjacency()
                adjacency.announce_checksum, adjacency.list_checksum = before.announce_checksum, before.list_checksum
                adjacency.is_skipped = True
        return found

    def is_feasible(self, adjacency: Adjacency) -> bool:
        """Return whether the route of a candidate is guaranteed to be free of loops."""
        seqno = adjacency.seqno
        return seqno > self.fd_seqno or (seqno == self.fd_seqno and adjacency.min_metric_us < self.fd_metric_us)

    def is_starved(self, costs: dict[str, int]) -> bool:
        """Return whether there are candidates, but none of them is feasible (RFC 8966 section 3.8.2.1)."""
        return not self.selected and any(
            adjacency.path and adjacency.metric_us + costs[peer] < UNREACHABLE_US
            for peer, adjacency in self.adjacencies.items()
        )

    def better_infeasible(self, costs: dict[str, int]) -> str:
        """Return the neighbour of a candidate that is clearly better than the selected one, but infeasible.

        Empty if there is none.
        """
        selected = self.adjacencies.get(self.selected)
        if selected is None:
            return ""
        limit_us = (selected.metric_us + costs[self.selected]) * (1 - SIGNIFICANT_CHANGE)
        best = ""
        for peer, adjacency in self.adjacencies.items():
            if adjacency.path and adjacency.metric_us + costs[peer] < limit_us and not self.is_feasible(adjacency):
                limit_us, best = adjacency.metric_us + costs[peer], peer
        return best

    def is_partial(self) -> bool:
        """Return whether this router reaches only a part of the services of the origin."""
        # A loop instead of `any`, because this is part of every comparison with the last advert.
        for adjacency in self.adjacencies.values():  # noqa: SIM110
            if adjacency.is_installed and adjacency.view is None:
                return False
        return True

    def complete_version(self) -> int:
        """Return the version up to which this router has the whole list of the newest incarnation, 0 without such a list."""
        offers = self.offers
        if offers is None or not offers.is_settled or offers.incarnation != self.newest_seqno[0]:
            return 0
        return offers.version

    def is_visible(self, service: str) -> bool:
        """Return whether this router reaches a service of the origin."""
        return any(
            adjacency.is_installed and (adjacency.view is None or service in adjacency.view)
            for adjacency in self.adjacencies.values()
        )

    # ---------------------------------------------------------------- selection

    def select(self, costs: dict[str, int], changed: str, effects: list[Effect]) -> None:
        """Select the best usable candidate, and update the table, which contains all usable ones.

        Args:
            costs: Cost of the link to each neighbour.
            changed: The neighbour whose candidate has changed, "" if none has.
            effects: Receives the changes of the table.
        """
        self.is_export_current = False
        fd_seqno, fd_metric_us = self.fd_seqno, self.fd_metric_us
        best, best_rank = "", (True, UNREACHABLE_US)
        selected_rank: tuple[bool, int] | None = None
        for peer, adjacency in self.adjacencies.items():
            seqno = adjacency.seqno
            total_us = adjacency.metric_us + costs[peer]
            if (
                adjacency.path
                and total_us < UNREACHABLE_US
                and (seqno > fd_seqno or (seqno == fd_seqno and adjacency.min_metric_us < fd_metric_us))
            ):
                if not adjacency.is_installed or peer == changed:
                    adjacency.is_installed = True
                    effects.append(PutOriginRoute(self.route(peer, adjacency, total_us)))
                # Routes to all services come before routes to a part of them.
                rank = (adjacency.view is not None, total_us)
                if rank < best_rank:
                    best, best_rank = peer, rank
                if peer == self.selected:
                    selected_rank = rank
            elif adjacency.is_installed:
                adjacency.is_installed = False
                effects.append(DeleteOriginRoute(OriginRouteKey(self.origin, peer)))
        if (
            selected_rank is None
            or best_rank[0] is not selected_rank[0]
            or best_rank[1] < selected_rank[1] * (1 - SIGNIFICANT_CHANGE)
        ):
            self.selected = best

    def update_alternative(self, costs: dict[str, int], peer: str, effects: list[Effect]) -> bool:
        """Update the table after a change of the candidate of `peer`, if it is not and does not become the selected one.

        Most changes are of this kind. Returns False without any effect if the candidate is selected, or clearly better than
        the selected one.
        """
        if peer == self.selected or not self.selected:
            return False
        selected, changed = self.adjacencies[self.selected], self.adjacencies[peer]
        if selected.view is not None or changed.view is not None:
            return False
        total_us = changed.metric_us + costs[peer]
        if changed.path and total_us < UNREACHABLE_US:
            if total_us < (selected.metric_us + costs[self.selected]) * (1 - SIGNIFICANT_CHANGE):
                return False
            if self.is_feasible(changed):
                changed.is_installed = True
                effects.append(PutOriginRoute(self.route(peer, changed, total_us)))
                return True
        if changed.is_installed:
            changed.is_installed = False
            effects.append(DeleteOriginRoute(OriginRouteKey(self.origin, peer)))
        return True

    def route(self, peer: str, adjacency: Adjacency, total_us: int) -> OriginRoute:
        """Return the route through a neighbour for the table."""
        view = adjacency.view
        return OriginRoute(
            origin=self.origin,
            gateway=peer,
            metric=total_us,
            network=self.network,
            site=self.site,
            hops=len(adjacency.path),
            services=None if view is None else frozenset(view),
        )

    # ------------------------------------------------------------------ exports

    def differs_from_export(self, costs: dict[str, int]) -> bool:
        """Return whether the selected route differs from what was advertised last, beyond the hysteresis of the metric.

        A newer sequence number alone is not a difference.
        """
        selected, export = self.adjacencies[self.selected], self.export
        return (
            export is None
            or is_significant(selected.metric_us + costs[self.selected], export.metric_us)
            or export.path[:-1] != selected.path
            or export.is_partial != self.is_partial()
        )

    def has_newer_seqno(self) -> bool:
        """Return whether the selected route has a newer sequence number than what was advertised last."""
        export = self.export
        return export is None or export.seqno != self.adjacencies[self.selected].seqno

    def refresh_export(self, own_id: str, costs: dict[str, int]) -> OriginAnnounce:
        """Return the announcement of the selected route. It changes only if the route differs or has a newer sequence number.

        Advertising a route reduces the feasibility distance, so that other candidates may become infeasible. The caller
        must call `select` afterwards if the result is a new object.
        """
        export = self.export
        if export is not None:
            self.is_export_current = not self.has_newer_seqno() and not self.differs_from_export(costs)
            if self.is_export_current:
                return export
        selected = self.adjacencies[self.selected]
        metric_us = selected.metric_us + costs[self.selected]
        self.export = OriginAnnounce(
            origin=self.origin,
            seqno=selected.seqno,
            site=self.site,
            network=self.network,
            metric_us=metric_us,
            path=(*selected.path, own_id),
            is_partial=self.is_partial(),
        )
        if selected.seqno > self.fd_seqno:
            self.fd_seqno, self.fd_metric_us = selected.seqno, metric_us
        elif metric_us < self.fd_metric_us:
            self.fd_metric_us = metric_us
        return self.export
