"""Advertise changes to neighbours: what is urgent, what is not, and the entries that result. Pure.

Urgent changes are first routes, withdrawals, a new incarnation of an origin, a requested sequence number, and changes of the
offers. All others (metrics, paths, load) wait for the slow clock of each neighbour, so that the number of their messages is
bounded by the number of links and time. A neighbour that has a route to an origin needs no other at once, and its own next hop
informs it about the offers: these are sent along the tree of the selected routes only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from micro_core.contract.clock import Random
from micro_core.routing.entries import Entry, OriginWithdraw
from micro_core.routing.events import Effect
from micro_core.routing.export_filter import ExportFilter, IsVisible
from micro_core.routing.neighbour import ENTRIES_PER_ADVERT, MIN_FULL_TABLE_INTERVAL_S, NEVER, Neighbour
from micro_core.routing.offer_list import Merged, OfferList
from micro_core.routing.options import EngineOptions
from micro_core.routing.origin import Origin
from micro_core.routing.policy import ExportScope
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import TOMBSTONE_S, Adjacency, RibEntry
from micro_core.routing.seqno_requests import SeqnoRequester

RELEASE_INTERVAL_S = 2.0
"""An encoded entry is kept for other neighbours for this time in seconds, at most until the next change or digest after it."""

KEEP_ADVERTISED_S = TOMBSTONE_S / 2
"""If a route is advertised again within this time after its withdrawal, the neighbour still has the list of the offers."""


class Advertiser:
    """Schedules and sends adverts. It changes the advertised half of adjacencies and neighbours only."""

    def __init__(
        self,
        *,
        origin: Origin,
        rib: Rib,
        neighbours: dict[str, Neighbour],
        requester: SeqnoRequester,
        random: Random,
        options: EngineOptions,
    ) -> None:
        self._origin = origin
        self._rib = rib
        self._neighbours = neighbours
        self._requester = requester
        self._random = random
        self._options = options
        self._filter = ExportFilter(origin, rib)
        self._sent_lists: set[OfferList] = set()
        self._release_at = 0.0
        self.wake_at = NEVER
        """When `flush` must be called next, in clock seconds."""

    # ---------------------------------------------------------------- scheduling

    def route_changed(self, entry: RibEntry, now: float) -> None:
        """Schedule what has changed about the selected route to an origin."""
        if not entry.selected:
            if entry.export is not None:
                entry.export = None
                # A route that may become feasible soon is withdrawn a little later than one that is gone.
                self._schedule_advertised(entry, now + self._relay_s() if entry.has_candidates() else now)
                self._best_changed(_services_of(entry), now)
            return
        selected, export = entry.adjacencies[entry.selected], entry.export
        if export is None or export.seqno[0] != selected.seqno[0]:
            self._schedule_first(entry, selected, now)
        elif entry.differs_from_export(self._rib.costs):
            self.schedule_slow(entry, now)
            self._schedule_withdrawal_from_next_hop(entry, now)
        else:
            # A newer sequence number alone is sent only to those that have requested it.
            self._schedule_returned(entry, selected, now)
            if not entry.has_newer_seqno():
                return
        for peer in self._requester.answered(entry):
            if peer in self._neighbours:
                self._neighbours[peer].schedule(entry.origin, now + self._options.answer_s)
        self._best_changed(_services_of(entry), now)

    def offers_changed(self, entry: RibEntry, merged: Merged, now: float) -> None:
        """Schedule what has changed about the offers of another origin."""
        if not entry.selected and entry.export is None:
            return
        if merged.is_only_load:
            self.schedule_slow(entry, now)
        else:
            when = now if merged.removed else now + self._relay_s()
            for peer, neighbour in self._neighbours.items():
                adjacency = entry.adjacencies.get(peer)
                if adjacency is None or neighbour.has_partial_view or not _is_informed_elsewhere(entry, adjacency):
                    neighbour.schedule(entry.origin, when)
        self._best_changed([*merged.removed, *(offer.service for offer in merged.changed)], now)

    def view_changed(self, entry: RibEntry, now: float) -> None:
        """Schedule what has changed about the services of another origin that this router reaches."""
        self.schedule(entry.origin, now + self._relay_s())

    def own_offers_changed(self, services: Iterable[str], now: float) -> None:
        """Advertise the changes of the offers of this router."""
        self.schedule(self._rib.router, now)
        self._best_changed(services, now)

    def neighbour_has_list(self, entry: RibEntry, adjacency: Adjacency, incarnation: int, version: int) -> None:
        """Record the version of the offers that a neighbour has: it needs the changes since then only."""
        offers = entry.offers
        if offers is None or offers.incarnation != incarnation or version > offers.version:
            return
        if adjacency.advertised_list is offers and adjacency.is_list_advertised:
            return
        adjacency.advertised_list, adjacency.advertised_version, adjacency.advertised_view = offers, version, None

    def neighbour_lost_route(self, entry: RibEntry, neighbour: Neighbour, now: float) -> None:
        """Schedule what a neighbour that has no route to an origin any more does not yet have of the route and the offers."""
        if entry.selected:
            neighbour.schedule(entry.origin, now + self._relay_s())

    def schedule(self, origin: str, when: float) -> None:
        """Advertise what has changed about an origin to all neighbours at `when`."""
        for neighbour in self._neighbours.values():
            neighbour.schedule(origin, when)

    def schedule_slow(self, entry: RibEntry, now: float) -> None:
        """Advertise what has changed about an origin to all neighbours on their slow clocks."""
        for neighbour in self._neighbours.values():
            self._schedule_slow(neighbour, entry, now)

    def _schedule_first(self, entry: RibEntry, selected: Adjacency, now: float) -> None:
        when = now + self._relay_s()
        for peer, neighbour in self._neighbours.items():
            adjacency = entry.adjacencies.get(peer)
            has_route = adjacency is not None and adjacency.path and adjacency.seqno[0] >= selected.seqno[0]
            if peer not in selected.path and not has_route:
                neighbour.schedule(entry.origin, when)
            else:
                self._schedule_slow(neighbour, entry, now)

    def _schedule_withdrawal_from_next_hop(self, entry: RibEntry, now: float) -> None:
        """Schedule the withdrawal for a new next hop, which then informs this router about the offers."""
        adjacency = entry.adjacencies[entry.selected]
        if adjacency.exported is not None:
            self._neighbours[entry.selected].schedule(entry.origin, now + self._relay_s())

    def _schedule_returned(self, entry: RibEntry, selected: Adjacency, now: float) -> None:
        """Schedule a route that was advertised before for neighbours on the path of the one that replaced it meanwhile."""
        for peer, neighbour in self._neighbours.items():
            adjacency = entry.adjacencies.get(peer)
            if (adjacency is None or adjacency.exported is None) and peer not in selected.path:
                self._schedule_slow(neighbour, entry, now)

    def _schedule_advertised(self, entry: RibEntry, when: float) -> None:
        for peer, adjacency in entry.adjacencies.items():
            if adjacency.exported is not None and peer in self._neighbours:
                self._neighbours[peer].schedule(entry.origin, when)

    def _schedule_slow(self, neighbour: Neighbour, entry: RibEntry, now: float) -> None:
        origin, peer = entry.origin, neighbour.peer
        if peer == entry.selected and entry.adjacencies[peer].exported is None:
            # No route is advertised to the next hop, and this one has none that must be withdrawn.
            return
        if neighbour.slow_at < now + 1e9:
            neighbour.slow[origin] = None
            return
        delay_s = self._options.coalesce_s * self._random.uniform(0.5, 1.0)
        neighbour.schedule_slow(origin, now + delay_s, self._options.slow_s * self._random.uniform(1.0, 1.25))

    def _best_changed(self, services: Iterable[str], now: float) -> None:
        """For neighbours that see only the best origin of each service: it may be a different one now."""
        best_only = [one for one in self._neighbours.values() if one.policy.export is ExportScope.BEST]
        if not best_only:
            return
        origins = {origin for service in services for origin in self._rib.origins_of(service)}
        when = now + self._relay_s()
        for neighbour in best_only:
            for origin in sorted(origins):
                neighbour.schedule(origin, when)

    def _relay_s(self) -> float:
        return self._options.relay_s * self._random.uniform(0.5, 1.0)

    # ------------------------------------------------------------------- sending

    def request_full_table(self, neighbour: Neighbour, now: float) -> None:
        """Send the full table to a neighbour now, or a second after the last one."""
        neighbour.schedule_full_table(max(now, neighbour.last_full_at + MIN_FULL_TABLE_INTERVAL_S))

    def flush(self, now: float, effects: list[Effect]) -> None:
        """Send everything that is due."""
        if now >= self._release_at:
            self._release(now)
        wake_at = NEVER
        for neighbour in self._neighbours.values():
            if neighbour.due_at > now:
                wake_at = min(wake_at, neighbour.due_at)
                continue
            if neighbour.full_at <= now:
                self._begin_full_table(neighbour, now, effects)
            if neighbour.full_table is not None:
                self._continue_full_table(neighbour, now, effects)
            if (neighbour.urgent_at <= now or neighbour.slow_at <= now) and neighbour.is_window_open():
                entries: list[Entry] = []
                for origin in neighbour.take_due(now):
                    self._add_entries(neighbour, origin, now, entries, effects)
                effects += neighbour.send(entries, now)
            if neighbour.requests:
                effects += neighbour.take_requests()
            effects += neighbour.take_ack(now)
            neighbour.due_at = neighbour.wake_at(now)
            wake_at = min(wake_at, neighbour.due_at)
        self.wake_at = wake_at

    def _release(self, now: float) -> None:
        """Release the memory of encoded entries, which few neighbours still need."""
        for announce in self._filter.created:
            announce.release()
        for offers in self._sent_lists:
            offers.release()
        self._filter.created.clear()
        self._sent_lists.clear()
        self._release_at = now + RELEASE_INTERVAL_S

    def _begin_full_table(self, neighbour: Neighbour, now: float, effects: list[Effect]) -> None:
        for entry in self._rib.entries.values():
            adjacency = entry.adjacencies.get(neighbour.peer)
            if adjacency is not None:
                adjacency.exported = adjacency.advertised_list = adjacency.advertised_view = None
                adjacency.is_list_advertised = False
        neighbour.begin_full_table(deque(self._rib.entries), now)
        self._continue_full_table(neighbour, now, effects, begins=True)

    def _continue_full_table(
        self, neighbour: Neighbour, now: float, effects: list[Effect], *, begins: bool = False
    ) -> None:
        """Send the next adverts of a full table, as many as the window permits."""
        rest = neighbour.full_table
        while rest is not None and (begins or neighbour.is_window_open()):
            entries: list[Entry] = []
            while rest and len(entries) < ENTRIES_PER_ADVERT - 1:
                self._add_entries(neighbour, rest.popleft(), now, entries, effects)
            if not rest:
                rest = neighbour.full_table = None
            effects += neighbour.send(entries, now, begins=begins, ends=rest is None)
            begins = False

    def _add_entries(
        self, neighbour: Neighbour, origin: str, now: float, found: list[Entry], effects: list[Effect]
    ) -> None:
        """Add the entries that inform a neighbour about what has changed to `found`, and record that it has them."""
        entry = self._rib.entries.get(origin)
        if entry is None:
            return
        wanted, is_visible = self._filter.announcement(neighbour, entry, effects)
        if wanted is None:
            self._withdraw(neighbour, entry, now, found)
            return
        adjacency = entry.adjacencies.get(neighbour.peer) or entry.adjacency(neighbour.peer)
        advertised = adjacency.exported
        if advertised is None:
            if not adjacency.path and now - adjacency.lost_at > KEEP_ADVERTISED_S:
                adjacency.advertised_list = None
            neighbour.count_advertised(1, wanted.checksum())
            found.append(wanted)
        elif advertised is not wanted:
            neighbour.count_advertised(0, wanted.checksum() - advertised.checksum())
            if advertised != wanted:
                found.append(wanted)
        adjacency.exported = wanted
        if entry.offers is not None and entry.offers.incarnation == wanted.seqno[0]:
            self._add_offers(neighbour, entry, adjacency, is_visible, found)

    @staticmethod
    def _withdraw(neighbour: Neighbour, entry: RibEntry, now: float, found: list[Entry]) -> None:
        adjacency = entry.adjacencies.get(neighbour.peer)
        if adjacency is None or adjacency.exported is None:
            return
        neighbour.count_advertised(-1, -adjacency.exported.checksum() - _advertised_checksum(entry.origin, adjacency))
        adjacency.exported, adjacency.is_list_advertised, adjacency.lost_at = None, False, now
        if entry.is_withdrawn:
            adjacency.advertised_list = None
        incarnation, sequence = entry.newest_seqno
        version = entry.complete_version()
        found.append(OriginWithdraw(entry.origin, incarnation, sequence, entry.is_withdrawn, version))

    def _add_offers(
        self,
        neighbour: Neighbour,
        entry: RibEntry,
        adjacency: Adjacency,
        is_visible: IsVisible | None,
        found: list[Entry],
    ) -> None:
        offers = entry.offers
        assert offers is not None
        is_whole = adjacency.advertised_list is not offers or (adjacency.advertised_view is None) is not (
            is_visible is None
        )
        version = offers.version
        if is_visible is None:
            if _is_informed_elsewhere(entry, adjacency) or (not is_whole and adjacency.advertised_version == version):
                return
            changes = offers.changes_since(entry.origin, 0 if is_whole else adjacency.advertised_version)
            self._sent_lists.add(offers)
        else:
            view = adjacency.advertised_view if adjacency.advertised_view is not None and not is_whole else {}
            changes = offers.view_changes(entry.origin, view, is_visible, is_whole=is_whole)
            version = max(1, version)
        if not changes:
            return
        before = _advertised_checksum(entry.origin, adjacency)
        adjacency.advertised_list, adjacency.advertised_version, adjacency.is_list_advertised = offers, version, True
        adjacency.advertised_view = None if is_visible is None else view
        neighbour.count_advertised(0, _advertised_checksum(entry.origin, adjacency) - before)
        found.extend(changes)


def _services_of(entry: RibEntry) -> Iterable[str]:
    return () if entry.offers is None else entry.offers.entries


def _is_informed_elsewhere(entry: RibEntry, adjacency: Adjacency) -> bool:
    """Return whether the next hop of the neighbour informs it about the offers, so that it does not need them from this router.

    It has a route that does not lead through this router. As soon as it withdraws that, it is informed.
    """
    offers = entry.offers
    if offers is None or not adjacency.path or adjacency.is_partial:
        return False
    return adjacency.seqno[0] >= offers.incarnation


def _advertised_checksum(origin: str, adjacency: Adjacency) -> int:
    if adjacency.advertised_list is None or not adjacency.is_list_advertised:
        return 0
    return adjacency.advertised_list.checksum(origin, adjacency.advertised_version)
