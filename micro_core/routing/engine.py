"""The routing engine: `handle(event, now) -> effects`. Distance and path vectors with origin versions; pure.

- An origin stamps what it says of a service with (incarnation, sequence); older words never replace newer ones, and a
  withdrawal leaves a tombstone, so a late advert resurrects nothing.
- Each advert carries the path of routers; one with our own id is a loop and refused, and nothing is told to a
  neighbour that the way goes through (split horizon).
- Only ways that are surely free of loops are used (RFC 8966's feasibility condition); who is left without one asks
  the origin for a later sequence.
- Every way has a lease, renewed by its neighbour's digests: a checksum of all it told. Where the sums differ the full
  table is asked for. A dead link takes its ways at once.
- Good news waits up to half a second and is told as its net effect; a withdrawal that leaves no way goes at once.

- What this site's own services do is damped here, at the origin, before anybody hears of it (damping.py).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from micro_core.contract.clock import Random
from micro_core.contract.table import RouteKey
from micro_core.routing import sequence_requests
from micro_core.routing.damping import Damper
from micro_core.routing.events import (
    Ack,
    Advert,
    Announce,
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
    NeighbourUp,
    Release,
    RoutingEvent,
    SendMessage,
    SequenceRequest,
    Solicit,
    ToldEverything,
    Withdraw,
    WithdrawAll,
)
from micro_core.routing.explain import Way, compared, ways_of
from micro_core.routing.export_filter import Exports
from micro_core.routing.import_filter import refusal_of
from micro_core.routing.metric import SteadyCost, add
from micro_core.routing.neighbour import Key, Neighbour
from micro_core.routing.options import EngineOptions
from micro_core.routing.origin import Origin
from micro_core.routing.policy import Export, policy_for
from micro_core.routing.rib import Known
from micro_core.routing.rib_entry import TOMBSTONE_S, Candidate

STORY_LENGTH = 1_000
"""Entries kept of what happened, for explanations."""


class Engine:
    """One router's view. All state is changed by `handle` and `wake` only."""

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
        """What other origins withdraw, by `origin service`: seen and shown, and held by nobody but them."""
        self._origin = Origin(router=router, network=network, site=site, incarnation=incarnation, damper=self.damper)
        self._known = Known()
        self._exports = Exports(self._origin, self._known)
        self._neighbours: dict[str, Neighbour] = {}
        self._number = incarnation
        """Adverts of a new link are numbered from here: above those of earlier links and lives."""
        self._digest_at: float | None = None
        self._lease_at: float | None = None
        self._story: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=STORY_LENGTH)

    # ---------------------------------------------------------------- the outside

    def handle(self, event: RoutingEvent, now: float) -> list[Effect]:
        """Take one event; returns what must be done, in order."""
        effects: list[Effect] = []
        match event:
            case MessageReceived(peer, message):
                neighbour = self._neighbours.get(peer)
                if neighbour is None:
                    return [Count("routing_messages_from_strangers")]
                match message:
                    case Advert():
                        self._advert(neighbour, message, now, effects)
                    case Ack(number):
                        neighbour.acknowledged(number)
                    case Solicit():
                        effects += self._full_table(neighbour, now)
                    case Digest():
                        self._digest(neighbour, message, now, effects)
                    case SequenceRequest():
                        self._sequence_requested(neighbour, message, now, effects)
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
                neighbour = self._neighbours[peer] = Neighbour(peer, SteadyCost(cost_us), self._number)
                neighbour.policy = policy_for(self._options.policies, name, site)
                neighbour.cost.cost_us += neighbour.policy.cost_us
                effects += self._full_table(neighbour, now)
                neighbour.expires_at = now + self._options.lease_s
                self._watch_lease(neighbour.expires_at)
                if self._digest_at is None:
                    self._digest_at = now + self._options.lease_s / 3
            case NeighbourCost(peer, cost_us):
                neighbour = self._neighbours.get(peer)
                if neighbour is not None and neighbour.cost.measured(cost_us + neighbour.policy.cost_us):
                    for key in sorted(neighbour.learned):
                        if self._known.ways[key].recost(peer, neighbour.cost.cost_us):
                            self._chosen_anew(key, now, effects)
            case NeighbourDown(peer):
                self._neighbour_down(peer, now, effects)
            case Release(service):
                if self.damper.release(service):
                    self._note(now, service, "let out by hand")
                    self._mark((self.router, service), now)
            case WithdrawAll():
                self._origin.is_withdrawn = True
                for service in sorted(self._origin.services):
                    self._tell_origin(service, now)
                # Nor is this router a way to others.
                for key in self._known.ways:
                    self._mark(key, now)
        self._flush(now, effects)
        return effects

    @property
    def wake_at(self) -> float | None:
        """When `wake` is next needed."""
        times = [neighbour.wake_at() for neighbour in self._neighbours.values()]
        times += [self._digest_at, self._lease_at, self.damper.wake_at]
        return min((moment for moment in times if moment is not None), default=None)

    def wake(self, now: float) -> list[Effect]:
        """Called at `wake_at`: digests, leases, what is to be told and told again."""
        effects: list[Effect] = []
        if self._digest_at is not None and now >= self._digest_at:
            self._digest_at = now + self._options.lease_s / 3 * self._random.uniform(0.9, 1.0)
            effects += [SendMessage(peer, neighbour.digest()) for peer, neighbour in self._neighbours.items()]
            told = {key for neighbour in self._neighbours.values() for key in (*neighbour.told, *neighbour.dirty)}
            self._origin.forget_past(told)
            self.observed.due(now)
        if self._lease_at is not None and now >= self._lease_at:
            self._expire(now, effects)
        for service in self.damper.due(now):
            self._note(now, service, "let out")
            self._mark((self.router, service), now)
        for neighbour in self._neighbours.values():
            again = neighbour.resend(now)
            if again is None:
                effects += [Count("routing_neighbours_resynced"), *self._full_table(neighbour, now)]
            else:
                effects += again
        self._flush(now, effects)
        return effects

    def explain(
        self, service: str, now: float, waiting_us: Callable[[RouteKey], int], stale: Iterable[Way] = ()
    ) -> list[Way]:
        """Every way to a service: those of this site, those that neighbours tell, and the `stale` ones."""
        ways = self._origin.ways(service, now)
        learned = {key[0]: known for key, known in self._known.ways.items() if key[1] == service}
        link_us = {peer: neighbour.cost.cost_us for peer, neighbour in self._neighbours.items()}
        return compared([*ways, *ways_of(learned, link_us), *stale], waiting_us)

    def configured_us(self, peer: str) -> int:
        """What policy adds to the cost of the link to a neighbour; 0 for who is none."""
        neighbour = self._neighbours.get(peer)
        return neighbour.policy.cost_us if neighbour is not None else 0

    def leases(self) -> dict[str, float]:
        """By neighbour of whom something was learned: when all of it dies."""
        return {peer: neighbour.expires_at for peer, neighbour in self._neighbours.items() if neighbour.learned}

    def story(self, service: str) -> list[tuple[float, str]]:
        """What happened to a service, oldest first: (when, what)."""
        return [(when, what.format(*details)) for when, name, what, details in self._story if name == service]

    # ------------------------------------------------------------------ this site

    def _instance_up(
        self, service: str, instance_id: str, instance: LocalInstance, now: float, effects: list[Effect]
    ) -> None:
        changes = self._origin.put(service, instance_id, instance)
        if changes is not None:
            effects += changes
            self._note(now, service, "instance {} at {}", instance_id, instance.address)
            self._tell_origin(service, now)

    def _instance_down(self, service: str, instance_id: str, now: float, effects: list[Effect]) -> None:
        changes = self._origin.remove(service, instance_id, now)
        if changes is not None:
            effects += changes
            self._note(now, service, "instance {} gone", instance_id)
            self._tell_origin(service, now)

    def _tell_origin(self, service: str, now: float) -> None:
        key = (self.router, service)
        if self._origin.is_withdrawal_due(service):
            self._origin.renew(service, now)
            self._mark(key, now)
        else:
            # Whether there is any news at all is decided when the time comes: gone and back is none.
            self._mark(key, now + self._coalesce_s())

    def _renew(self, service: str, now: float) -> None:
        if not self._origin.renew(service, now):
            self._note(now, service, "held back: it has been flapping")

    # ---------------------------------------------------------------- neighbours

    def _neighbour_down(self, peer: str, now: float, effects: list[Effect]) -> None:
        neighbour = self._neighbours.pop(peer, None)
        if neighbour is None:
            return
        self._number = max(self._number, neighbour.number)
        for key in sorted(neighbour.learned):
            self._drop(key, neighbour, "its link is gone", now, effects)

    def _advert(self, neighbour: Neighbour, advert: Advert, now: float, effects: list[Effect]) -> None:
        is_next, answer = neighbour.accepts(advert)
        effects += answer
        if not is_next:
            effects.append(Count("routing_adverts_out_of_order"))
            return
        for entry in advert.entries:
            key = (entry.origin, entry.service)
            neighbour.hears(key, entry.checksum() if isinstance(entry, Announce) else 0)
            if entry.origin == self.router:
                effects.append(Count("routing_entries_of_our_own"))
            elif isinstance(entry, Withdraw):
                self._withdraw(neighbour, key, entry, now, effects)
            else:
                self._announce(neighbour, key, entry, now, effects)
        if advert.ends and neighbour.confirmed is not None:
            for key in sorted(neighbour.learned - neighbour.confirmed):
                self._drop(key, neighbour, "not in the full table", now, effects)
            neighbour.confirmed = None
            neighbour.expires_at = now + self._options.lease_s
            effects.append(ToldEverything(neighbour.peer))

    def _announce(self, neighbour: Neighbour, key: Key, announce: Announce, now: float, effects: list[Effect]) -> None:
        refusal = refusal_of(
            announce,
            router=self.router,
            neighbour=neighbour,
            learned=self._known.ways.get(key),
            incarnation=self._known.incarnation_of(announce.origin),
        )
        if refusal:
            effects.append(Count(refusal))
            self._drop(key, neighbour, refusal, now, effects)
            return
        self._new_life(announce.origin, announce.incarnation, now, effects)
        learned = self._known.made(key)
        if announce.at > learned.newest:
            learned.newest, learned.is_withdrawn = announce.at, False
        if neighbour.confirmed is not None:
            neighbour.confirmed.add(key)
        neighbour.learned.add(key)
        self._watch_lease(neighbour.expires_at)
        metric_us = add(announce.metric_us, neighbour.cost.cost_us)
        learned.candidates[neighbour.peer] = Candidate(announce, metric_us)
        self._note(now, announce.service, "via {:.8} at {} µs", neighbour.peer, metric_us)
        self._chosen_anew(key, now, effects)

    def _withdraw(self, neighbour: Neighbour, key: Key, withdraw: Withdraw, now: float, effects: list[Effect]) -> None:
        learned = self._known.ways.get(key)
        if not withdraw.is_final or learned is None or withdraw.at <= learned.newest:
            self._drop(key, neighbour, "withdrawn by the neighbour", now, effects)
            return
        # The origin's own word, newer than all we hold: no way is left, whoever still advertises one.
        learned.newest, learned.is_withdrawn = withdraw.at, True
        self.observed.lost(f"{key[0]} {key[1]}", now)
        for peer in [*learned.candidates]:
            self._drop(key, self._neighbours[peer], "withdrawn by its origin", now, effects)

    def _digest(self, neighbour: Neighbour, digest: Digest, now: float, effects: list[Effect]) -> None:
        agrees = neighbour.agrees(digest)
        if agrees:
            neighbour.expires_at = now + self._options.lease_s
            self._ask_for_starved(neighbour, now, effects)
        elif agrees is False:
            effects += [Count("routing_digests_differ"), SendMessage(neighbour.peer, Solicit())]

    def _ask_for_starved(self, neighbour: Neighbour, now: float, effects: list[Effect]) -> None:
        """A request may have been lost: whoever still has no way that is free of loops asks again."""
        for key in sorted(neighbour.learned):
            learned = self._known.ways[key]
            if learned.is_starved():
                effects += sequence_requests.ask(key, learned, now)

    def _new_life(self, origin: str, incarnation: int, now: float, effects: list[Effect]) -> None:
        """A later incarnation: nothing of the earlier one stands."""
        if not self._known.begins_life(origin, incarnation):
            return
        for key in self._known.of_origin(origin):
            for peer, candidate in [*self._known.ways[key].candidates.items()]:
                if candidate.announce.incarnation < incarnation:
                    self._drop(key, self._neighbours[peer], "of an earlier life of its origin", now, effects)

    # ------------------------------------------------------------------- choosing

    def _drop(self, key: Key, neighbour: Neighbour, why: str, now: float, effects: list[Effect]) -> None:
        neighbour.learned.discard(key)
        learned = self._known.ways.get(key)
        if learned is None:
            return
        candidate = learned.candidates.pop(neighbour.peer, None)
        if candidate is None:
            return
        self._note(now, key[1], "via {:.8}: {}", neighbour.peer, why)
        self._chosen_anew(key, now, effects)
        if not learned.candidates:
            # Its version is remembered for a while: late adverts of an older one must resurrect nothing.
            learned.empty_since = now
            self._watch_lease(now + TOMBSTONE_S)

    def _chosen_anew(self, key: Key, now: float, effects: list[Effect]) -> None:
        learned = self._known.ways[key]
        told = (learned.best != "", learned.distance[0])
        effects += learned.settle()
        if learned.is_starved():
            effects += sequence_requests.ask(key, learned, now)
        is_awaited = learned.requested[1] > 0 and learned.distance[0] > learned.requested[0]
        if is_awaited:
            # Others asked, and may have no way until they hear.
            learned.requested = ((0, 0), 0.0)
        if is_awaited or not learned.best:
            delay_s = 0.0
        elif told == (True, learned.distance[0]):
            delay_s = self._coalesce_s()
        else:
            # News of the origin has been coalesced there: here it waits only for what comes with it.
            delay_s = self._options.relay_s * self._random.uniform(0.5, 1.0)
        self._mark(key, now + delay_s)

    # ------------------------------------------------------------------ feasibility

    def _sequence_requested(
        self, neighbour: Neighbour, request: SequenceRequest, now: float, effects: list[Effect]
    ) -> None:
        key = (request.origin, request.service)
        if request.origin == self.router:
            own = self._origin.services.get(request.service)
            if own is not None and own.offer is not None:
                if request.at >= (self._origin.incarnation, own.sequence):
                    self._origin.renew_sequence(request.service)
                self._mark(key, now)
            return
        learned = self._known.ways.get(key)
        if learned is None or not learned.candidates:
            return
        if learned.best and learned.candidates[learned.best].announce.at > request.at:
            # What is held here will do; it may not have been told, or not have arrived.
            neighbour.mark(key, now)
        else:
            effects += sequence_requests.pass_on(request, learned, neighbour.peer, now)

    def _mark(self, key: Key, when: float) -> None:
        for neighbour in self._neighbours.values():
            neighbour.mark(key, when)
            if neighbour.policy.export is Export.BEST:
                # Another origin of the service may be the best one now.
                for origin in self._known.origins_of(key[1]):
                    neighbour.mark((origin, key[1]), when)

    def _full_table(self, neighbour: Neighbour, now: float) -> list[Effect]:
        for service in self._origin.services:
            self._renew(service, now)
        keys = [(self.router, service) for service in self._origin.services] + list(self._known.ways)
        return neighbour.tell_everything(sorted(keys), functools.partial(self._exports.to, neighbour), now)

    def _flush(self, now: float, effects: list[Effect]) -> None:
        for neighbour in self._neighbours.values():
            if neighbour.flush_at is None or now < neighbour.flush_at:
                continue
            for origin, service in sorted(neighbour.dirty):
                if origin == self.router:
                    self._renew(service, now)
            export = functools.partial(self._exports.to, neighbour)
            effects += neighbour.flush(export, self._exports.withdrawal, now)

    # ------------------------------------------------------------------ table, time

    def _watch_lease(self, when: float) -> None:
        if self._lease_at is None or when < self._lease_at:
            self._lease_at = when

    def _expire(self, now: float, effects: list[Effect]) -> None:
        self._lease_at = None
        for neighbour in self._neighbours.values():
            if neighbour.learned and neighbour.expires_at <= now:
                effects += [Count("routing_leases_expired"), SendMessage(neighbour.peer, Solicit())]
                for key in sorted(neighbour.learned):
                    self._drop(key, neighbour, "its lease ran out", now, effects)
                neighbour.forget_heard()
            if neighbour.learned:
                self._watch_lease(neighbour.expires_at)
        tombstone_at = self._known.forget_tombstones(now)
        if tombstone_at is not None:
            self._watch_lease(tombstone_at)

    def _coalesce_s(self) -> float:
        return self._options.coalesce_s * self._random.uniform(0.5, 1.0)

    def _note(self, now: float, service: str, what: str, *details: object) -> None:
        # Written out when somebody asks: every entry of every advert comes through here.
        self._story.append((now, service, what, details))
