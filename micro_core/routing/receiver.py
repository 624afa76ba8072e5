"""Apply the adverts of neighbours to the routing information base. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from micro_core.routing.advertiser import Advertiser
from micro_core.routing.damping import Damper
from micro_core.routing.entries import (
    OfferChanges,
    OfferEntry,
    OriginAnnounce,
    OriginWithdraw,
    RemovedOffer,
    Seqno,
    list_checksum,
)
from micro_core.routing.events import Advert, ChangeOffers, Count, Effect, FullTableReceived
from micro_core.routing.history import History
from micro_core.routing.import_filter import rejection_of
from micro_core.routing.neighbour import Neighbour
from micro_core.routing.offer_list import Merged, OfferList, merge
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import Adjacency, RibEntry
from micro_core.routing.seqno_requests import SeqnoRequester
from micro_core.wire import limits


@dataclass(slots=True, kw_only=True)
class Receiver:
    """Processes adverts. It changes the received half of adjacencies and neighbours only."""

    rib: Rib
    neighbours: dict[str, Neighbour]
    advertiser: Advertiser
    requester: SeqnoRequester
    history: History
    observed: Damper
    own_seqno_received: Callable[[Seqno, float], None]
    """Called with a sequence number of this router that a neighbour has sent."""
    entry_emptied: Callable[[float], None]
    """Called when an entry has lost its last candidate."""
    origin_returned: Callable[[RibEntry, float], None]
    """Called before an entry that had lost its last candidate gets one again."""
    lease_s: float

    def advert_received(self, neighbour: Neighbour, advert: Advert, now: float, effects: list[Effect]) -> None:
        """Apply an advert if it is the next one."""
        is_next, response = neighbour.check_order(advert, now)
        effects += response
        neighbour.acknowledged(advert.acknowledged)
        if not is_next:
            effects.append(Count("routing_adverts_out_of_order"))
            return
        if advert.begins:
            self._begin_full_table(neighbour)
        for entry in advert.entries:
            if type(entry) is OriginAnnounce:
                self._announcement(neighbour, entry, now, effects)
            elif type(entry) is OfferChanges:
                self._offer_changes(neighbour, entry, now, effects)
            elif type(entry) is OriginWithdraw:
                self._withdrawal(neighbour, entry, now, effects)
        if advert.ends and not neighbour.has_begun:
            neighbour.schedule_full_table(now)
        if advert.ends and neighbour.confirmed is not None:
            for missing in self.rib.entries.values():
                if missing.origin not in neighbour.confirmed:
                    self.remove_candidate(missing, neighbour, "not in the full table", now, effects)
                    # Its withdrawal may have been lost, or its lease may have expired before.
                    self.advertiser.neighbour_lost_route(missing, neighbour, now)
            neighbour.confirmed = None
            neighbour.expires_at = now + self.lease_s
            effects.append(FullTableReceived(neighbour.peer))

    def candidate_changed(self, entry: RibEntry, peer: str, now: float, effects: list[Effect]) -> None:
        """Select a route again after the candidate of `peer` has changed, and schedule what follows."""
        costs, adjacency = self.rib.costs, entry.adjacencies[peer]
        if entry.update_alternative(costs, peer, effects):
            return
        was_installed = adjacency.is_installed
        entry.select(costs, peer, effects)
        if adjacency.is_installed is not was_installed and adjacency.view is not None:
            self.advertiser.view_changed(entry, now)
        if not entry.selected:
            if entry.is_starved(costs):
                effects += self.requester.starved(entry, now)
        elif len(entry.adjacencies) > 1:
            better = entry.better_infeasible(costs)
            if better:
                effects += self.requester.better(entry, better, now)
        self.advertiser.route_changed(entry, now)

    def remove_candidate(
        self, entry: RibEntry, neighbour: Neighbour, reason: str, now: float, effects: list[Effect]
    ) -> None:
        """Remove the candidate of a neighbour, if it has one."""
        peer = neighbour.peer
        adjacency = entry.adjacencies.get(peer)
        if adjacency is None or not adjacency.path:
            return
        adjacency.path, adjacency.lost_at = (), now
        neighbour.origins -= 1
        neighbour.confirmed_offers.pop(entry.origin, None)
        self.history.record(now, entry.origin, "via {:.8}: {}", peer, reason)
        self.candidate_changed(entry, peer, now, effects)
        if not entry.has_candidates():
            # The sequence number is kept for a while, so that late adverts of an older one are rejected.
            self.rib.emptied(entry, now)
            self.entry_emptied(now)

    # ------------------------------------------------------------------ origin routes

    def _announcement(self, neighbour: Neighbour, announce: OriginAnnounce, now: float, effects: list[Effect]) -> None:
        origin, peer, rib = announce.origin, neighbour.peer, self.rib
        if origin == rib.router:
            effects.append(Count("routing_own_entries_refused"))
            self.own_seqno_received(announce.seqno, now)
            return
        entry = rib.entries.get(origin)
        rejection = rejection_of(announce, router=rib.router, neighbour=neighbour, entry=entry)
        adjacency = entry.adjacencies.get(peer) if entry is not None else None
        checksum = announce.checksum()
        if adjacency is None or not adjacency.announce_checksum:
            is_full = entry is None and len(rib.entries) >= limits.MAX_ORIGINS
            if is_full or neighbour.received_count >= limits.MAX_ORIGINS_PER_NEIGHBOUR:
                effects.append(Count("routing_routes_over_limit"))
                neighbour.is_over_limit = True
                return
            entry = entry or rib.get_or_create(origin)
            adjacency = entry.adjacency(peer)
            neighbour.count_received(1, checksum)
        else:
            assert entry is not None
            neighbour.count_received(0, checksum - adjacency.announce_checksum)
        adjacency.announce_checksum = checksum
        if rejection is not None:
            effects.append(rejection)
            self._rejected(entry, neighbour, announce, rejection.name, now, effects)
            return
        self._record_seqno(entry, announce, now, effects)
        is_fresh = not adjacency.path or announce.seqno != adjacency.seqno or neighbour.confirmed is not None
        metric_us = announce.metric_us
        if is_fresh or metric_us < adjacency.min_metric_us:
            adjacency.min_metric_us = metric_us
        is_partial = announce.is_partial or bool(neighbour.policy.import_services)
        if not adjacency.path:
            if entry.empty_since and not entry.selected and not entry.has_candidates():
                self.origin_returned(entry, now)
            neighbour.origins += 1
            # After a withdrawal, the neighbour may remember what it has sent.
            adjacency.view = (adjacency.view or set()) if is_partial else None
            if adjacency.is_skipped:
                effects += neighbour.solicit(now)
        adjacency.path, adjacency.metric_us, adjacency.is_partial = announce.path, metric_us, is_partial
        adjacency.seqno = entry.newest_seqno if announce.seqno == entry.newest_seqno else announce.seqno
        if neighbour.confirmed is not None:
            neighbour.confirmed.add(origin)
        self.history.record(now, origin, "via {:.8} at {} µs", peer, metric_us + rib.costs[peer])
        self.candidate_changed(entry, peer, now, effects)

    def _rejected(
        self,
        entry: RibEntry,
        neighbour: Neighbour,
        announce: OriginAnnounce,
        rejection: str,
        now: float,
        effects: list[Effect],
    ) -> None:
        self.remove_candidate(entry, neighbour, rejection, now, effects)
        if not entry.has_candidates() and not entry.empty_since:
            self.rib.emptied(entry, now)
            self.entry_emptied(now)
        if rejection == "routing_entries_outdated" and announce.path == (announce.origin,):
            # The origin itself does not know its last sequence number: its clock was set back before a restart.
            effects += self.requester.outdated_origin(entry, neighbour.peer, now)

    def _record_seqno(self, entry: RibEntry, announce: OriginAnnounce, now: float, effects: list[Effect]) -> None:
        """Record a newer sequence number. A later incarnation makes all routes of earlier ones invalid."""
        before, seqno = entry.newest_seqno, announce.seqno
        if seqno <= before:
            return
        entry.newest_seqno, entry.is_withdrawn = seqno, False
        if seqno[0] > before[0]:
            entry.site, entry.network = announce.site, announce.network
            for peer, adjacency in entry.adjacencies.items():
                if adjacency.path and adjacency.seqno[0] < seqno[0] and peer in self.neighbours:
                    self.remove_candidate(entry, self.neighbours[peer], "its origin restarted", now, effects)

    def _withdrawal(self, neighbour: Neighbour, withdraw: OriginWithdraw, now: float, effects: list[Effect]) -> None:
        if withdraw.origin == self.rib.router:
            effects.append(Count("routing_own_entries_refused"))
            self.own_seqno_received(withdraw.seqno, now)
            return
        entry = self.rib.entries.get(withdraw.origin)
        adjacency = entry.adjacencies.get(neighbour.peer) if entry is not None else None
        if entry is None or adjacency is None:
            return
        if adjacency.announce_checksum:
            neighbour.count_received(-1, -adjacency.announce_checksum - adjacency.list_checksum)
            adjacency.announce_checksum = adjacency.list_checksum = 0
        if withdraw.version:
            self.advertiser.neighbour_has_list(entry, adjacency, withdraw.incarnation, withdraw.version)
        if withdraw.is_final and withdraw.seqno > entry.newest_seqno:
            self._origin_left(entry, withdraw.seqno, now, effects)
        else:
            self.remove_candidate(entry, neighbour, "withdrawn by the neighbour", now, effects)
        self.advertiser.neighbour_lost_route(entry, neighbour, now)

    def _origin_left(self, entry: RibEntry, seqno: Seqno, now: float, effects: list[Effect]) -> None:
        """Process the withdrawal by the origin itself: the routes of all neighbours are outdated."""
        entry.newest_seqno, entry.is_withdrawn = seqno, True
        for peer in [*entry.adjacencies]:
            if peer in self.neighbours:
                self.remove_candidate(entry, self.neighbours[peer], "withdrawn by its origin", now, effects)
        if entry.offers is not None:
            for service in entry.offers.entries:
                self.observed.record_loss(f"{entry.origin} {service}", now)
            entry.offers = None
            effects.append(ChangeOffers(entry.origin, is_complete=True))

    def _begin_full_table(self, neighbour: Neighbour) -> None:
        neighbour.received_count = neighbour.received_checksum = 0
        neighbour.is_over_limit = False
        neighbour.confirmed_offers.clear()
        for entry in self.rib.entries.values():
            adjacency = entry.adjacencies.get(neighbour.peer)
            if adjacency is not None:
                adjacency.announce_checksum = adjacency.list_checksum = 0
                adjacency.is_skipped = False

    # ------------------------------------------------------------------------ offers

    def _offer_changes(self, neighbour: Neighbour, changes: OfferChanges, now: float, effects: list[Effect]) -> None:
        entry = self.rib.entries.get(changes.origin)
        adjacency = entry.adjacencies.get(neighbour.peer) if entry is not None else None
        if entry is None or adjacency is None or not adjacency.announce_checksum:
            effects.append(Count("routing_offers_without_route"))
            return
        offers = entry.offers
        if offers is not None and offers.incarnation == changes.incarnation:
            checksum = offers.checksum(changes.origin, changes.version)
        else:
            checksum = list_checksum(changes.origin, changes.incarnation, changes.version)
        neighbour.count_received(0, checksum - adjacency.list_checksum)
        adjacency.list_checksum = checksum
        if not adjacency.path or changes.incarnation != adjacency.seqno[0]:
            # The announcement was rejected.
            adjacency.is_skipped = True
            return
        if offers is None or offers.incarnation < changes.incarnation:
            offers = OfferList(changes.incarnation)
        if offers.incarnation > changes.incarnation:
            adjacency.is_skipped = True
            return
        if changes.base and (
            offers is not entry.offers or (not adjacency.is_partial and changes.base > offers.version)
        ):
            effects += [Count("routing_offers_incomplete"), *neighbour.solicit(now)]
            return
        entry.offers = offers
        if adjacency.is_partial:
            self._view_changed(entry, offers, adjacency, neighbour, changes, now, effects)
        else:
            self._list_changed(entry, offers, adjacency, neighbour, changes, now, effects)

    def _list_changed(
        self,
        entry: RibEntry,
        offers: OfferList,
        adjacency: Adjacency,
        neighbour: Neighbour,
        changes: OfferChanges,
        now: float,
        effects: list[Effect],
    ) -> None:
        """Apply changes of a neighbour that sees the whole list."""
        origin, is_first = changes.origin, changes.base == 0
        was_view = adjacency.view is not None
        if is_first:
            adjacency.view = None
        if is_first and changes.is_end and changes.version <= offers.version and offers.is_settled:
            # The usual case: another neighbour has sent the same list before.
            neighbour.confirmed_offers.pop(origin, None)
        else:
            version = offers.version
            merged = self._merge(neighbour, offers, changes.changed, changes.removed, effects)
            confirmed = set() if is_first else neighbour.confirmed_offers.get(origin)
            if confirmed is not None and offers.is_settled and changes.version > offers.version:
                offers.forget_removals(changes.version)
            offers.version = max(offers.version, changes.version)
            if confirmed is not None:
                # Only known services: those over the limit of the neighbour would fill the memory.
                confirmed.update(one.offer.service for one in changes.changed if one.offer.service in offers.entries)
                if changes.is_end:
                    neighbour.confirmed_offers.pop(origin, None)
                    self._remove_unconfirmed(offers, confirmed, changes.version, merged)
                else:
                    neighbour.confirmed_offers[origin] = confirmed
            self._publish(entry, offers, merged, changes, now, effects)
            if offers.version > version and not merged:
                # A service that was removed and added again here may be only removed at a neighbour.
                self.advertiser.offers_changed(entry, merged, now)
        if was_view and adjacency.view is None:
            self.candidate_changed(entry, neighbour.peer, now, effects)

    @staticmethod
    def _remove_unconfirmed(offers: OfferList, confirmed: set[str], version: int, merged: Merged) -> None:
        """Remove the services that the whole list of a neighbour does not contain."""
        for service, one in [*offers.entries.items()]:
            if one.version <= version and service not in confirmed:
                offers.remove(service, version)
                merged.removed.append(service)
                merged.is_only_load = False

    def _view_changed(
        self,
        entry: RibEntry,
        offers: OfferList,
        adjacency: Adjacency,
        neighbour: Neighbour,
        changes: OfferChanges,
        now: float,
        effects: list[Effect],
    ) -> None:
        """Apply changes of a neighbour that sees a part of the list."""
        if changes.base == 0 or adjacency.view is None:
            adjacency.view = set()
        permits = neighbour.policy.permits_import_of
        changed = [one for one in changes.changed if permits(one.offer.service)]
        if len(changed) < len(changes.changed):
            effects.append(Count("routing_entries_refused_by_policy", len(changes.changed) - len(changed)))
        adjacency.view.update(one.offer.service for one in changed)
        adjacency.view.difference_update(service for service, _ in changes.removed)
        merged = self._merge(
            neighbour, offers, changed, [one for one in changes.removed if permits(one.service)], effects
        )
        adjacency.view.intersection_update(offers.entries)
        self._publish(entry, offers, merged, changes, now, effects)
        self.candidate_changed(entry, neighbour.peer, now, effects)
        merged.is_only_load = False
        self.advertiser.offers_changed(entry, merged, now)

    def _merge(
        self,
        neighbour: Neighbour,
        offers: OfferList,
        changed: Sequence[OfferEntry],
        removed: Sequence[RemovedOffer],
        effects: list[Effect],
    ) -> Merged:
        if neighbour.offers_added + len(changed) > limits.MAX_OFFERS_PER_NEIGHBOUR:
            neighbour.offers_added = sum(
                len(one.offers.entries) for one in self.rib.entries_via(neighbour.peer) if one.offers is not None
            )
        size = len(offers.entries)
        max_added = limits.MAX_OFFERS_PER_NEIGHBOUR - neighbour.offers_added
        merged, refused = merge(offers, changed, removed, max_added=max_added)
        neighbour.offers_added += max(0, len(offers.entries) - size)
        if refused:
            effects.append(Count("routing_offers_over_limit", refused))
        return merged

    def _publish(
        self,
        entry: RibEntry,
        offers: OfferList,
        merged: Merged,
        changes: OfferChanges,
        now: float,
        effects: list[Effect],
    ) -> None:
        """Report the changes of a list to the table, the history and the neighbours."""
        origin = entry.origin
        if changes.is_end and not offers.is_settled:
            # The first complete list of this incarnation replaces the one before it.
            offers.is_settled = True
            effects.append(ChangeOffers(origin, tuple(one.offer for one in offers.entries.values()), is_complete=True))
        elif merged:
            effects.append(ChangeOffers(origin, tuple(merged.changed), tuple(merged.removed)))
        for service in merged.removed:
            self.observed.record_loss(f"{origin} {service}", now)
            self.history.record(now, service, "removed by {:.8}", origin)
        if merged:
            self.advertiser.offers_changed(entry, merged, now)
