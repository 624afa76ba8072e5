"""The routing engine: `handle(event, now) -> effects`. A path-vector protocol with sequence numbers. Pure.

- An origin assigns (incarnation, sequence) to everything it advertises. An older advert never replaces a newer one. A
  withdrawal leaves a tombstone, so that a late advert does not bring the route back.
- Every announcement contains the path of routers. A path that contains this router is a loop and is rejected. A route
  is not advertised to the routers on its path (split horizon).
- Only feasible routes are used, i.e. routes that are guaranteed to be free of loops (RFC 8966 section 3.5.1). Without
  a feasible route, the engine requests a newer sequence number from the origin (seqno_requests.py).
- Every route has a lease, which digests of its neighbour renew. A digest is a checksum of all routes that the neighbour
  has advertised. After a mismatch, the engine requests the full table. When a link closes, its routes are removed.
- Changes within half a second are advertised as their net effect. A withdrawal that leaves no route is sent at once.
- Flaps of services of this site are damped here, at the origin, before they are advertised (damping.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace

from micro_core.contract.clock import Random
from micro_core.contract.table import RouteKey
from micro_core.routing import seqno_requests
from micro_core.routing.damping import Damper
from micro_core.routing.events import (
    Ack,
    Advert,
    Announce,
    Count,
    Digest,
    Effect,
    FullTableReceived,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    ReuseService,
    RoutingEvent,
    SendMessage,
    SeqnoRequest,
    Solicit,
    Withdraw,
    WithdrawAll,
)
from micro_core.routing.explain import RouteCandidate, candidates_of, compare
from micro_core.routing.export_filter import ExportFilter
from micro_core.routing.history import History
from micro_core.routing.import_filter import rejection_of
from micro_core.routing.metric import SteadyCost, add
from micro_core.routing.neighbour import Key, Neighbour
from micro_core.routing.options import EngineOptions
from micro_core.routing.origin import Origin
from micro_core.routing.policy import ExportScope, policy_for
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import TOMBSTONE_S, Candidate


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
        self._random = random
        self._options = options or EngineOptions()
        self.damper = Damper(self._options.damping)
        self.observed = Damper(replace(self._options.damping, dry_run=True))
        """Flaps of services of other origins, as "origin service". For display only: they are suppressed at the origin."""
        self._origin = Origin(router=router, network=network, site=site, incarnation=incarnation, damper=self.damper)
        self._rib = Rib()
        self._export_filter = ExportFilter(self._origin, self._rib)
        self._neighbours: dict[str, Neighbour] = {}
        self._advert_number = incarnation
        """The adverts of a new link have numbers above this, so that they exceed those of earlier links and runs."""
        self._digest_at: float | None = None
        self._expiry_at: float | None = None
        self._history = History()

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
                        self._advert_received(neighbour, message, now, effects)
                    case Ack(number):
                        neighbour.acknowledged(number)
                    case Solicit():
                        effects += self._full_table(neighbour, now)
                    case Digest():
                        self._digest_received(neighbour, message, now, effects)
                    case SeqnoRequest():
                        self._seqno_requested(neighbour, message, now, effects)
            case InstanceUp(service, instance_id, instance):
                self._instance_up(service, instance_id, instance, now, effects)
            case InstanceDown(service, instance_id):
                self._instance_down(service, instance_id, now, effects)
            case LocalServices(services):
                for service in [*self._origin.services]:
                    for instance_id in [*self._origin.services[service].instances]:
                        if instance_id not in services.get(service, {}):
                            self._instance_down(service, instance_id, now, effects)
                for service, instances in services.items():
                    for instance_id, instance in instances.items():
                        self._instance_up(service, instance_id, instance, now, effects)
            case NeighbourUp(peer, cost_us, name, site):
                if peer in self._neighbours:
                    self._neighbour_down(peer, now, effects)
                neighbour = self._neighbours[peer] = Neighbour(peer, SteadyCost(cost_us), self._advert_number)
                neighbour.policy = policy_for(self._options.policies, name, site)
                neighbour.cost.cost_us += neighbour.policy.cost_us
                effects += self._full_table(neighbour, now)
                neighbour.expires_at = now + self._options.lease_s
                self._schedule_expiry(neighbour.expires_at)
                if self._digest_at is None:
                    self._digest_at = now + self._options.lease_s / 3
            case NeighbourCost(peer, cost_us):
                neighbour = self._neighbours.get(peer)
                if neighbour is not None and neighbour.cost.update(cost_us + neighbour.policy.cost_us):
                    for key in sorted(neighbour.accepted):
                        if self._rib.entries[key].update_link_cost(peer, neighbour.cost.cost_us):
                            self._select_route(key, now, effects)
            case NeighbourDown(peer):
                self._neighbour_down(peer, now, effects)
            case ReuseService(service):
                if self.damper.reuse(service):
                    self._history.record(now, service, "suppression ended by an operator")
                    self._schedule((self.router, service), now)
            case WithdrawAll():
                self._origin.is_draining = True
                for service in sorted(self._origin.services):
                    self._schedule_own(service, now)
                # Routes to other origins are withdrawn, too: this router does not forward any more.
                for key in self._rib.entries:
                    self._schedule(key, now)
        self._flush(now, effects)
        return effects

    @property
    def wake_at(self) -> float | None:
        """When `wake` must be called next. None if nothing is pending."""
        times = [neighbour.wake_at() for neighbour in self._neighbours.values()]
        times += [self._digest_at, self._expiry_at, self.damper.wake_at]
        return min((moment for moment in times if moment is not None), default=None)

    def wake(self, now: float) -> list[Effect]:
        """Process everything that is due: digests, expired leases, scheduled and unacknowledged adverts.

        To be called at `wake_at`. Returns the effects to carry out, in order.
        """
        effects: list[Effect] = []
        if self._digest_at is not None and now >= self._digest_at:
            self._digest_at = now + self._options.lease_s / 3 * self._random.uniform(0.9, 1.0)
            effects += [SendMessage(peer, neighbour.digest()) for peer, neighbour in self._neighbours.items()]
            advertised = {
                key for neighbour in self._neighbours.values() for key in (*neighbour.advertised, *neighbour.scheduled)
            }
            self._origin.forget_removed(advertised)
            self.observed.advance(now)
        if self._expiry_at is not None and now >= self._expiry_at:
            self._expire(now, effects)
        for service in self.damper.advance(now):
            self._history.record(now, service, "suppression ended")
            self._schedule((self.router, service), now)
        for neighbour in self._neighbours.values():
            resent = neighbour.resend(now)
            if resent is None:
                effects += [Count("routing_neighbours_resynced"), *self._full_table(neighbour, now)]
            else:
                effects += resent
        self._flush(now, effects)
        return effects

    def explain(
        self, service: str, now: float, waiting_us: Callable[[RouteKey], int], stale: Iterable[RouteCandidate] = ()
    ) -> list[RouteCandidate]:
        """Return all routes to a service, best first: instances of this site, learned routes, and the `stale` ones.

        `waiting_us` returns the waiting time that the proxy measured on a route, in microseconds.
        """
        candidates = self._origin.candidates(service, now)
        entries = {key[0]: entry for key, entry in self._rib.entries.items() if key[1] == service}
        link_us = {peer: neighbour.cost.cost_us for peer, neighbour in self._neighbours.items()}
        return compare([*candidates, *candidates_of(entries, link_us), *stale], waiting_us)

    def configured_us(self, peer: str) -> int:
        """Return the cost that the policy adds to the link to a neighbour, 0 for an unknown peer."""
        neighbour = self._neighbours.get(peer)
        return neighbour.policy.cost_us if neighbour is not None else 0

    def leases(self) -> dict[str, float]:
        """Return when the routes of each neighbour expire. Neighbours without accepted routes are left out."""
        return {peer: neighbour.expires_at for peer, neighbour in self._neighbours.items() if neighbour.accepted}

    def history(self, service: str) -> list[tuple[float, str]]:
        """Return the recorded events of a service, oldest first: (clock seconds, description)."""
        return self._history.events_of(service)

    # ------------------------------------------------------------------ this site

    def _instance_up(
        self, service: str, instance_id: str, instance: LocalInstance, now: float, effects: list[Effect]
    ) -> None:
        changes = self._origin.put(service, instance_id, instance)
        if changes is not None:
            effects += changes
            self._history.record(now, service, "instance {} at {}", instance_id, instance.address)
            self._schedule_own(service, now)

    def _instance_down(self, service: str, instance_id: str, now: float, effects: list[Effect]) -> None:
        changes = self._origin.remove(service, instance_id, now)
        if changes is not None:
            effects += changes
            self._history.record(now, service, "instance {} removed", instance_id)
            self._schedule_own(service, now)

    def _schedule_own(self, service: str, now: float) -> None:
        key = (self.router, service)
        if self._origin.is_withdrawal_due(service):
            self._origin.refresh(service, now)
            self._schedule(key, now)
        else:
            # The net change is computed when the delay has passed. A removal and an addition may cancel out.
            self._schedule(key, now + self._coalesce_delay_s())

    def _refresh_own(self, service: str, now: float) -> None:
        if not self._origin.refresh(service, now):
            self._history.record(now, service, "suppressed: it has been flapping")

    # ---------------------------------------------------------------- neighbours

    def _neighbour_down(self, peer: str, now: float, effects: list[Effect]) -> None:
        neighbour = self._neighbours.pop(peer, None)
        if neighbour is None:
            return
        self._advert_number = max(self._advert_number, neighbour.number)
        for key in sorted(neighbour.accepted):
            self._remove_candidate(key, neighbour, "link closed", now, effects)

    def _advert_received(self, neighbour: Neighbour, advert: Advert, now: float, effects: list[Effect]) -> None:
        is_next, response = neighbour.check_order(advert)
        effects += response
        if not is_next:
            effects.append(Count("routing_adverts_out_of_order"))
            return
        for entry in advert.entries:
            key = (entry.origin, entry.service)
            neighbour.record_received(key, entry.checksum() if isinstance(entry, Announce) else 0)
            if entry.origin == self.router:
                effects.append(Count("routing_own_entries_refused"))
            elif isinstance(entry, Withdraw):
                self._withdrawal_received(neighbour, key, entry, now, effects)
            else:
                self._announcement_received(neighbour, key, entry, now, effects)
        if advert.ends and neighbour.confirmed is not None:
            for key in sorted(neighbour.accepted - neighbour.confirmed):
                self._remove_candidate(key, neighbour, "not in the full table", now, effects)
            neighbour.confirmed = None
            neighbour.expires_at = now + self._options.lease_s
            effects.append(FullTableReceived(neighbour.peer))

    def _announcement_received(
        self, neighbour: Neighbour, key: Key, announce: Announce, now: float, effects: list[Effect]
    ) -> None:
        rejection = rejection_of(
            announce,
            router=self.router,
            neighbour=neighbour,
            entry=self._rib.entries.get(key),
            incarnation=self._rib.incarnation_of(announce.origin),
        )
        if rejection:
            effects.append(Count(rejection))
            self._remove_candidate(key, neighbour, rejection, now, effects)
            return
        self._update_incarnation(announce.origin, announce.incarnation, now, effects)
        entry = self._rib.get_or_create(key)
        if announce.seqno > entry.newest_seqno:
            entry.newest_seqno, entry.is_withdrawn = announce.seqno, False
        if neighbour.confirmed is not None:
            neighbour.confirmed.add(key)
        neighbour.accepted.add(key)
        self._schedule_expiry(neighbour.expires_at)
        metric_us = add(announce.metric_us, neighbour.cost.cost_us)
        entry.candidates[neighbour.peer] = Candidate(announce, metric_us)
        self._history.record(now, announce.service, "via {:.8} at {} µs", neighbour.peer, metric_us)
        self._select_route(key, now, effects)

    def _withdrawal_received(
        self, neighbour: Neighbour, key: Key, withdraw: Withdraw, now: float, effects: list[Effect]
    ) -> None:
        entry = self._rib.entries.get(key)
        if not withdraw.is_final or entry is None or withdraw.seqno <= entry.newest_seqno:
            self._remove_candidate(key, neighbour, "withdrawn by the neighbour", now, effects)
            return
        # The origin itself withdrew the service, so the routes of all other neighbours are outdated, too.
        entry.newest_seqno, entry.is_withdrawn = withdraw.seqno, True
        self.observed.record_loss(f"{key[0]} {key[1]}", now)
        for peer in [*entry.candidates]:
            self._remove_candidate(key, self._neighbours[peer], "withdrawn by its origin", now, effects)

    def _digest_received(self, neighbour: Neighbour, digest: Digest, now: float, effects: list[Effect]) -> None:
        is_match = neighbour.matches(digest)
        if is_match:
            neighbour.expires_at = now + self._options.lease_s
            self._repeat_seqno_requests(neighbour, now, effects)
        elif is_match is False:
            effects += [Count("routing_digests_differ"), SendMessage(neighbour.peer, Solicit())]

    def _repeat_seqno_requests(self, neighbour: Neighbour, now: float, effects: list[Effect]) -> None:
        # An earlier request may have been lost.
        for key in sorted(neighbour.accepted):
            entry = self._rib.entries[key]
            if entry.is_starved():
                effects += seqno_requests.request_seqno(key, entry, now)

    def _update_incarnation(self, origin: str, incarnation: int, now: float, effects: list[Effect]) -> None:
        """Record the incarnation of an origin. A later one makes all routes of earlier ones invalid."""
        if not self._rib.update_incarnation(origin, incarnation):
            return
        for key in self._rib.keys_of_origin(origin):
            for peer, candidate in [*self._rib.entries[key].candidates.items()]:
                if candidate.announce.incarnation < incarnation:
                    self._remove_candidate(key, self._neighbours[peer], "its origin restarted", now, effects)

    # ------------------------------------------------------------------- route selection

    def _remove_candidate(self, key: Key, neighbour: Neighbour, reason: str, now: float, effects: list[Effect]) -> None:
        neighbour.accepted.discard(key)
        entry = self._rib.entries.get(key)
        if entry is None:
            return
        candidate = entry.candidates.pop(neighbour.peer, None)
        if candidate is None:
            return
        self._history.record(now, key[1], "via {:.8}: {}", neighbour.peer, reason)
        self._select_route(key, now, effects)
        if not entry.candidates:
            # The sequence number is kept for a while, so that late adverts of an older one are rejected.
            entry.empty_since = now
            self._schedule_expiry(now + TOMBSTONE_S)

    def _select_route(self, key: Key, now: float, effects: list[Effect]) -> None:
        entry = self._rib.entries[key]
        before = (entry.selected != "", entry.feasibility_distance[0])
        effects += entry.select()
        if entry.is_starved():
            effects += seqno_requests.request_seqno(key, entry, now)
        seqno = entry.feasibility_distance[0]
        is_requested = entry.last_request[1] > 0 and seqno > entry.last_request[0]
        if is_requested:
            # Other routers requested this sequence number and may have no route until they receive it.
            entry.last_request = ((0, 0), 0.0)
        if is_requested or not entry.selected:
            delay_s = 0.0
        elif before == (True, seqno):
            delay_s = self._coalesce_delay_s()
        else:
            # The origin has combined its changes already. Wait only for other entries of the same advert.
            delay_s = self._options.relay_s * self._random.uniform(0.5, 1.0)
        self._schedule(key, now + delay_s)

    def _seqno_requested(self, neighbour: Neighbour, request: SeqnoRequest, now: float, effects: list[Effect]) -> None:
        key = (request.origin, request.service)
        if request.origin == self.router:
            own = self._origin.services.get(request.service)
            if own is not None and own.offer is not None:
                if request.seqno >= (self._origin.incarnation, own.sequence):
                    self._origin.increment_sequence(request.service)
                self._schedule(key, now)
            return
        entry = self._rib.entries.get(key)
        if entry is None or not entry.candidates:
            return
        if entry.selected and entry.candidates[entry.selected].announce.seqno > request.seqno:
            # The selected route is new enough. Its advert was not sent yet, or has not arrived.
            neighbour.schedule(key, now)
        else:
            effects += seqno_requests.forward(request, entry, neighbour.peer, now)

    # ------------------------------------------------------------------ advertising

    def _schedule(self, key: Key, when: float) -> None:
        for neighbour in self._neighbours.values():
            neighbour.schedule(key, when)
            if neighbour.policy.export is ExportScope.BEST:
                # The best origin of the service may be a different one now.
                for origin in self._rib.origins_of(key[1]):
                    neighbour.schedule((origin, key[1]), when)

    def _full_table(self, neighbour: Neighbour, now: float) -> list[Effect]:
        for service in self._origin.services:
            self._refresh_own(service, now)
        keys = [(self.router, service) for service in self._origin.services] + list(self._rib.entries)
        export = functools.partial(self._export_filter.announcement, neighbour)
        return neighbour.send_full_table(sorted(keys), export, now)

    def _flush(self, now: float, effects: list[Effect]) -> None:
        for neighbour in self._neighbours.values():
            if neighbour.flush_at is None or now < neighbour.flush_at:
                continue
            for origin, service in sorted(neighbour.scheduled):
                if origin == self.router:
                    self._refresh_own(service, now)
            export = functools.partial(self._export_filter.announcement, neighbour)
            effects += neighbour.flush(export, self._export_filter.withdrawal, now)

    def _coalesce_delay_s(self) -> float:
        return self._options.coalesce_s * self._random.uniform(0.5, 1.0)

    # ------------------------------------------------------------------ expiry

    def _schedule_expiry(self, when: float) -> None:
        if self._expiry_at is None or when < self._expiry_at:
            self._expiry_at = when

    def _expire(self, now: float, effects: list[Effect]) -> None:
        self._expiry_at = None
        for neighbour in self._neighbours.values():
            if neighbour.accepted and neighbour.expires_at <= now:
                effects += [Count("routing_leases_expired"), SendMessage(neighbour.peer, Solicit())]
                for key in sorted(neighbour.accepted):
                    self._remove_candidate(key, neighbour, "its lease expired", now, effects)
                neighbour.forget_received()
            if neighbour.accepted:
                self._schedule_expiry(neighbour.expires_at)
        tombstone_at = self._rib.expire_tombstones(now)
        if tombstone_at is not None:
            self._schedule_expiry(tombstone_at)
