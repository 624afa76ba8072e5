"""The routing engine: `handle(event, now) -> effects`. A path-vector protocol with sequence numbers. Pure.

- Routes lead to *origins*, i.e. to nodes. What an origin offers is a versioned list, which a router keeps once
  (offer_list.py), however many neighbours have a route.
- An origin assigns (incarnation, sequence) to its announcements. An older one never replaces a newer one. A withdrawal by the
  origin leaves a tombstone, so that a late advert does not bring the route back.
- Every announcement contains the path of routers. A path that contains this router is a loop and is rejected. A route is not
  advertised to the routers on its path (split horizon).
- Only feasible routes are used, i.e. routes that are guaranteed to be free of loops (rib_entry.py). Without a feasible route,
  and if an infeasible one is clearly better, the engine requests a newer sequence number (seqno_requests.py).
- Every route has a lease, which digests of its neighbour renew. After a mismatch, the engine requests the full table. When a
  link closes, its routes are removed.
- First routes and withdrawals are sent at once, changes of metrics on a slow clock per neighbour (advertiser.py).
- Flaps of services of this site are damped here, at the origin (damping.py), and links that were lost, too (link_damping.py).

docs/routing.md describes the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from micro_core.contract.clock import Random
from micro_core.contract.table import RouteKey
from micro_core.routing.advertiser import Advertiser
from micro_core.routing.damping import Damper
from micro_core.routing.digest_schedule import DigestSchedule
from micro_core.routing.entries import Seqno
from micro_core.routing.events import (
    Ack,
    Advert,
    ChangeOffers,
    Count,
    Digest,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourSuspect,
    NeighbourUp,
    Resumed,
    ReuseService,
    RoutingEvent,
    SendMessage,
    SeqnoRequest,
    SeqnoRequests,
    Solicit,
    WithdrawAll,
)
from micro_core.routing.explain import RouteCandidate, candidates_of, compare
from micro_core.routing.history import History
from micro_core.routing.link_damping import LinkDamper
from micro_core.routing.metric import SteadyCost, add
from micro_core.routing.neighbour import FULL_TABLE_WAIT_S, NEVER, Neighbour
from micro_core.routing.options import EngineOptions
from micro_core.routing.origin import Origin
from micro_core.routing.policy import policy_for
from micro_core.routing.receiver import Receiver
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import TOMBSTONE_S, RibEntry
from micro_core.routing.seqno_requests import SeqnoRequester

MIN_RAISE_INTERVAL_S = 1.0
"""The sequence number of this router is raised at most once in this time."""


class Engine:
    """The routing state of one router. Only `handle` and `wake` change it.

    All times (`now` and results) are seconds of the same monotonic clock.
    """

    def __init__(
        self,
        *,
        router: str,
        network: str,
        site: str,
        incarnation: int,
        random: Random,
        options: EngineOptions | None = None,
    ) -> None:
        self.router = router
        self._options = options = options or EngineOptions()
        self.damper = Damper(options.damping, options.interest_damping)
        self.observed = Damper(replace(options.damping, dry_run=True))
        """Flaps of services of other origins, as "origin service". For display only: they are suppressed at the origin."""
        self.link_damper = LinkDamper(options.link_damping, own_site=site, random=random)
        self._origin = Origin(
            router=router,
            network=network,
            site=site,
            incarnation=incarnation,
            damper=self.damper,
            random=random,
            options=options,
        )
        self._rib = Rib(router)
        self._neighbours: dict[str, Neighbour] = {}
        self._requester = SeqnoRequester(self._neighbours)
        self._history = History()
        self._advertiser = Advertiser(
            origin=self._origin,
            rib=self._rib,
            neighbours=self._neighbours,
            requester=self._requester,
            random=random,
            options=options,
        )
        self._receiver = Receiver(
            rib=self._rib,
            neighbours=self._neighbours,
            advertiser=self._advertiser,
            requester=self._requester,
            history=self._history,
            observed=self.observed,
            own_seqno_received=self._own_seqno_received,
            entry_emptied=lambda now: self._schedule_expiry(now + TOMBSTONE_S),
            origin_returned=self._origin_isolated,
            lease_s=options.lease_s,
        )
        self._advert_number = incarnation
        """The adverts of a new link have numbers above this, so that they exceed those of earlier links and runs."""
        self._raised_at = -NEVER
        self._digests = DigestSchedule(options.lease_s / 3, random)
        self._expiry_at = NEVER

    # ---------------------------------------------------------------- interface

    def handle(self, event: RoutingEvent, now: float) -> list[Effect]:
        """Process one event. Returns the effects to carry out, in order."""
        effects: list[Effect] = []
        match event:
            case MessageReceived(peer, message):
                neighbour = self._neighbours.get(peer)
                if neighbour is None:
                    return [Count("routing_messages_from_unknown_peers")]
                match message:
                    case Advert():
                        self._receiver.advert_received(neighbour, message, now, effects)
                        self._schedule_expiry(neighbour.expires_at)
                    case Ack(number):
                        neighbour.acknowledged(number)
                    case Solicit():
                        self._origin.hurry(now)
                        self._advertiser.request_full_table(neighbour, now)
                    case Digest():
                        self._digest_received(neighbour, message, now, effects)
                    case SeqnoRequests(requests):
                        for request in requests:
                            self._seqno_requested(neighbour, request, now, effects)
            case InstanceUp(service, instance_id, instance):
                self._instance_up(service, instance_id, instance, now, effects)
            case InstanceDown(service, instance_id):
                self._instance_down(service, instance_id, now, effects)
            case LocalServices(services):
                self._replace_instances(services, now, effects)
            case NeighbourUp(peer, cost_us, name, site):
                self._neighbour_up(peer, cost_us, name, site, now, effects)
            case NeighbourCost(peer, cost_us):
                neighbour = self._neighbours.get(peer)
                if neighbour is not None and neighbour.cost.update(cost_us + neighbour.policy.cost_us):
                    self._costs_changed([neighbour.peer], now, effects)
            case NeighbourSuspect():
                self._neighbour_suspect(event, now, effects)
            case NeighbourDown(peer, is_graceful):
                self._neighbour_down(peer, now, effects, is_graceful=is_graceful)
            case ReuseService(service):
                if self.damper.reuse(service):
                    self._history.record(now, service, "suppression ended by an operator")
                    self._origin.reuse(service, now)
            case Resumed(incarnation):
                self._resumed(incarnation)
            case WithdrawAll():
                self._withdraw_all(now)
        self._flush(now, effects)
        return effects

    @property
    def wake_at(self) -> float | None:
        """When `wake` must be called next. None if nothing is pending."""
        when = min(self._digests.wake_at, self._expiry_at, self._requester.wake_at, self._origin.wake_at)
        when = min(when, self._advertiser.wake_at)
        for damper in (self.damper, self.link_damper):
            if (at := damper.wake_at) is not None and at < when:
                when = at
        return None if when == NEVER else when

    def wake(self, now: float) -> list[Effect]:
        """Process everything that is due: digests, expired leases, scheduled adverts, and overdue acknowledgements.

        To be called at `wake_at`. Returns the effects to carry out, in order.
        """
        effects: list[Effect] = []
        if now >= self._digests.wake_at:
            self._send_digests(now, effects)
        if now >= self._expiry_at:
            self._expire(now, effects)
        for service in self.damper.advance(now):
            self._history.record(now, service, "suppression ended")
            self._origin.reuse(service, now)
        self._costs_changed(self.link_damper.advance(now), now, effects)
        for origin in self._requester.due(now):
            entry = self._rib.entries.get(origin)
            if entry is None:
                continue
            if entry.is_starved(self._rib.costs):
                effects += self._requester.starved(entry, now)
            elif better := entry.better_infeasible(self._rib.costs):
                effects += self._requester.better(entry, better, now)
        for neighbour in self._neighbours.values():
            if neighbour.is_resync_due(now):
                effects.append(Count("routing_neighbours_resynced"))
                self._advertiser.request_full_table(neighbour, now)
        self._flush(now, effects)
        return effects

    def explain(
        self, service: str, now: float, waiting_us: Callable[[RouteKey], int], stale: Iterable[RouteCandidate] = ()
    ) -> list[RouteCandidate]:
        """Return all routes to a service, best first: instances of this site, learned routes, and the `stale` ones.

        `waiting_us` returns the waiting time that the proxy measured on a route, in microseconds.
        """
        local = self._origin.candidates(service, now)
        entries = [entry for origin, entry in self._rib.entries.items() if origin != self.router]
        damped = [peer for peer in self._neighbours if self.link_damper.is_damped(peer, now)]
        learned = candidates_of(entries, service, self._rib.costs, damped)
        return compare([*local, *learned, *stale], waiting_us)

    def is_starved(self, origin: str) -> bool:
        """Return whether there are routes to an origin, but none of them is feasible at the moment."""
        entry = self._rib.entries.get(origin)
        return entry is not None and entry.is_starved(self._rib.costs)

    def configured_us(self, peer: str) -> int:
        """Return the cost that the policy adds to the link to a neighbour, 0 for an unknown peer."""
        neighbour = self._neighbours.get(peer)
        return neighbour.policy.cost_us if neighbour is not None else 0

    def leases(self) -> dict[str, float]:
        """Return when the routes of each neighbour expire. Neighbours without accepted routes are left out."""
        return {peer: neighbour.expires_at for peer, neighbour in self._neighbours.items() if neighbour.origins}

    def history(self, service: str) -> list[tuple[float, str]]:
        """Return the events of a service and of its origins, oldest first: (clock seconds, description)."""
        return self._history.events_of(service, self._rib.origins_of(service))

    # ------------------------------------------------------------------ this site

    def _instance_up(
        self, service: str, instance_id: str, instance: LocalInstance, now: float, effects: list[Effect]
    ) -> None:
        changes = self._origin.put(service, instance_id, instance, now)
        if changes is not None:
            effects += changes
            self._history.record(now, service, "instance {} at {}", instance_id, instance.address)

    def _instance_down(self, service: str, instance_id: str, now: float, effects: list[Effect]) -> None:
        changes = self._origin.remove(service, instance_id, now)
        if changes is not None:
            effects += changes
            self._history.record(now, service, "instance {} removed", instance_id)

    def _replace_instances(
        self, services: Mapping[str, Mapping[str, LocalInstance]], now: float, effects: list[Effect]
    ) -> None:
        for service in [*self._origin.services]:
            for instance_id in [*self._origin.services[service].instances]:
                if instance_id not in services.get(service, {}):
                    self._instance_down(service, instance_id, now, effects)
        for service, instances in services.items():
            for instance_id, instance in instances.items():
                self._instance_up(service, instance_id, instance, now, effects)

    def _advance_origin(self, now: float) -> None:
        """Add the pending changes to the list of offers of this router, and announce this router with its first offer."""
        if self._origin.wake_at > now:
            return
        changed, suppressed = self._origin.advance(now)
        for service in suppressed:
            self._history.record(now, service, "suppressed: it has been flapping")
        if changed:
            self._announce_own()
            self._advertiser.own_offers_changed(changed, now)

    def _announce_own(self) -> None:
        origin, entry = self._origin, self._rib.get_or_create(self.router)
        entry.offers, entry.newest_seqno = origin.offers, origin.seqno
        if entry.export is None or entry.export.seqno != origin.seqno:
            entry.export = origin.announcement()

    def _own_seqno_received(self, seqno: Seqno, now: float, *, is_requested: bool = False) -> None:
        """Raise the own sequence number if other routers request or know a later one."""
        if now - self._raised_at < MIN_RAISE_INTERVAL_S or self.router not in self._rib.entries:
            return
        incarnation = self._origin.incarnation
        if not self._origin.is_draining and self._origin.raise_above(seqno, is_requested=is_requested):
            self._raised_at = now
            self._announce_own()
            if self._origin.incarnation != incarnation:
                self._advertiser.schedule(self.router, now)

    def _resumed(self, incarnation: int) -> None:
        """Continue as a later incarnation: what other routers still know of the earlier one is outdated.

        It is sent to each neighbour with the full table on its new link.
        """
        if not self._origin.is_draining:
            self._origin.restart(max(incarnation, self._origin.incarnation + 1))
            if self.router in self._rib.entries:
                self._announce_own()

    def _withdraw_all(self, now: float) -> None:
        # Routes to other origins are withdrawn, too: this router does not forward any more.
        origin, entry = self._origin, self._rib.entries.get(self.router)
        if entry is not None and not origin.is_draining:
            origin.sequence += 1
            entry.newest_seqno, entry.is_withdrawn = origin.seqno, True
        origin.is_draining = True
        for one in self._rib.entries:
            self._advertiser.schedule(one, now)

    # ---------------------------------------------------------------- neighbours

    def _neighbour_up(self, peer: str, cost_us: int, name: str, site: str, now: float, effects: list[Effect]) -> None:
        if peer in self._neighbours:
            self._neighbour_down(peer, now, effects, is_graceful=True)
        policy = policy_for(self._options.policies, name, site)
        neighbour = Neighbour(peer, SteadyCost(cost_us + policy.cost_us), self._advert_number, policy)
        self._neighbours[peer] = neighbour
        entry = self._rib.entries.get(peer)
        if entry is not None and not entry.has_candidates():
            self._origin_isolated(entry, now)
        self.link_damper.link_up(peer, now, site=site)
        self._rib.costs[peer] = add(neighbour.cost.cost_us, self.link_damper.penalty_us(peer, now))
        neighbour.expires_at = now + self._options.lease_s
        neighbour.schedule_full_table(now if self.router < peer else now + FULL_TABLE_WAIT_S)
        self._origin.hurry(now)
        self._digests.start(now)

    def _origin_isolated(self, entry: RibEntry, now: float) -> None:
        self.link_damper.peer_isolated(entry.origin, entry.site, entry.empty_since, now)

    def _costs_changed(self, peers: Iterable[str], now: float, effects: list[Effect]) -> None:
        damper = self.link_damper
        for neighbour in filter(None, map(self._neighbours.get, peers)):
            peer = neighbour.peer
            penalty_us = damper.policy.last_resort_us if neighbour.is_closing else damper.penalty_us(peer, now)
            self._rib.costs[peer] = add(neighbour.cost.cost_us, penalty_us)
            for entry in self._rib.entries_via(peer):
                self._receiver.candidate_changed(entry, peer, now, effects)

    def _neighbour_suspect(self, event: NeighbourSuspect, now: float, effects: list[Effect]) -> None:
        neighbour = self._neighbours.get(event.peer)
        if neighbour is None:
            return
        if neighbour.is_closing is not event.is_closing:
            neighbour.is_closing = event.is_closing
            self._costs_changed([neighbour.peer], now, effects)
        if neighbour.is_suspect is event.is_suspect:
            return
        neighbour.is_suspect = event.is_suspect
        if not event.is_closing:
            stalled = self.link_damper.link_suspect(event.peer, now, is_suspect=event.is_suspect)
            self._costs_changed(stalled, now, effects)
        if event.is_suspect:
            for entry in self._rib.entries_via(event.peer):
                effects += self._requester.endangered(entry, now)

    def _neighbour_down(self, peer: str, now: float, effects: list[Effect], *, is_graceful: bool) -> None:
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return
        others = self.link_damper.link_lost(peer, now, is_graceful=is_graceful)
        self._advert_number = max(self._advert_number, neighbour.number)
        for entry in self._rib.entries_via(peer):
            self._receiver.remove_candidate(entry, neighbour, "link closed", now, effects)
        for entry in self._rib.entries.values():
            entry.adjacencies.pop(peer, None)
        del self._neighbours[peer]
        del self._rib.costs[peer]
        self._costs_changed(others, now, effects)

    def _seqno_requested(self, neighbour: Neighbour, request: SeqnoRequest, now: float, effects: list[Effect]) -> None:
        origin = request.origin
        if origin == self.router:
            if origin in self._rib.entries and not self._origin.is_draining:
                self._own_seqno_received(request.seqno, now, is_requested=True)
                neighbour.schedule(origin, now)
            return
        entry = self._rib.entries.get(origin)
        if entry is None or not entry.has_candidates():
            return
        if entry.selected and entry.adjacencies[entry.selected].seqno > request.seqno:
            # The selected route is new enough. Its advert was not sent yet, or has not arrived.
            neighbour.schedule(origin, now)
        else:
            effects += self._requester.forward(request, entry, neighbour.peer, now)

    # --------------------------------------------------------------- digests, leases

    def _send_digests(self, now: float, effects: list[Effect]) -> None:
        self._advertiser.flush(now, effects)
        if self._digests.begins_round(now):
            self.observed.advance(now)
            self._requester.expire(now)
        for peer in self._digests.take(self._neighbours, now):
            neighbour = self._neighbours.get(peer)
            if neighbour is not None and neighbour.has_begun:
                effects.append(SendMessage(peer, neighbour.digest()))

    def _digest_received(self, neighbour: Neighbour, digest: Digest, now: float, effects: list[Effect]) -> None:
        neighbour.acknowledged(digest.acknowledged)
        is_match = neighbour.matches(digest)
        if is_match:
            neighbour.expires_at = now + self._options.lease_s
        elif is_match is False:
            effects += [Count("routing_digests_differ"), *neighbour.solicit(now)]

    def _schedule_expiry(self, when: float) -> None:
        self._expiry_at = min(self._expiry_at, when)

    def _expire(self, now: float, effects: list[Effect]) -> None:
        self._expiry_at = NEVER
        for neighbour in self._neighbours.values():
            if neighbour.origins and neighbour.expires_at <= now:
                effects += [Count("routing_leases_expired"), *neighbour.solicit(now)]
                for entry in self._rib.entries_via(neighbour.peer):
                    self._receiver.remove_candidate(entry, neighbour, "its lease expired", now, effects)
                neighbour.forget_received()
            if neighbour.origins:
                self._schedule_expiry(neighbour.expires_at)
        expired, next_at = self._rib.expire_tombstones(now)
        for entry in expired:
            effects.append(ChangeOffers(entry.origin, is_complete=True))
            self._origin_isolated(entry, now)
        if next_at is not None:
            self._schedule_expiry(next_at)

    # ------------------------------------------------------------------ sending

    def _flush(self, now: float, effects: list[Effect]) -> None:
        self._advance_origin(now)
        self._advertiser.flush(now, effects)
