"""The routing engine: `handle(event, now) -> effects`. Distance and path vectors with origin versions; pure.

- An origin stamps what it says of a service with (incarnation, sequence); older words never replace newer ones, and a
  withdrawal leaves a tombstone, so a late advert resurrects nothing.
- Each advert carries the path of routers; one with our own id is a loop and refused, and nothing is told to a
  neighbour that the way goes through (split horizon).
- Every way has a lease, renewed by its origin's beats; a dead link takes its ways at once.
- Good news waits up to half a second and is told as its net effect; a withdrawal that leaves no way goes at once.

Held for what comes next: `_export` is where policies per neighbour go, `_tell_origin` where damping goes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from micro_core.routing.events import (
    Ack,
    Advert,
    Announce,
    Beat,
    Count,
    DeleteRoute,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutRoute,
    RoutingEvent,
    SendMessage,
    Solicit,
    Withdraw,
    WithdrawAll,
)
from micro_core.routing.learned import TOMBSTONE_S, Candidate, Learned
from micro_core.routing.metric import SteadyCost, add
from micro_core.routing.neighbour import Key, Neighbour
from micro_core.routing.origin import Origin
from micro_core.spec.clock import Random
from micro_core.wire import limits

STORY_LENGTH = 1_000
"""Entries kept of what happened, for explanations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Times of the engine, in seconds."""

    lease_s: float = 90.0
    """How long a way stands without a beat of its origin."""

    coalesce_s: float = 0.5
    """Changes within this time are told together; jittered down to half."""


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
        self._origin = Origin(router=router, network=network, site=site, incarnation=incarnation)
        self._learned: dict[Key, Learned] = {}
        self._by_origin: dict[str, set[Key]] = {}
        self._neighbours: dict[str, Neighbour] = {}
        self._incarnations: dict[str, int] = {}
        self._beats: dict[str, tuple[int, int]] = {}
        self._number = incarnation
        """Adverts of a new link are numbered from here: above those of earlier links and lives."""
        self._beat_at: float | None = None
        self._lease_at: float | None = None
        self._story: deque[tuple[float, str, str]] = deque(maxlen=STORY_LENGTH)

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
                    case Beat():
                        self._beat(neighbour, message, now, effects)
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
            case NeighbourUp(peer, cost_us):
                if peer in self._neighbours:
                    self._neighbour_down(peer, now, effects)
                neighbour = self._neighbours[peer] = Neighbour(peer, SteadyCost(cost_us), self._number)
                effects += self._full_table(neighbour, now)
                if self._beat_at is None:
                    self._beat_at = now + self._options.lease_s / 3
            case NeighbourCost(peer, cost_us):
                neighbour = self._neighbours.get(peer)
                if neighbour is not None and neighbour.cost.measured(cost_us):
                    for key in sorted(neighbour.learned):
                        if self._learned[key].recost(peer, neighbour.cost.cost_us):
                            self._put(key, peer, effects)
                            self._chosen_anew(key, now, effects)
            case NeighbourDown(peer):
                self._neighbour_down(peer, now, effects)
            case WithdrawAll():
                self._origin.is_withdrawn = True
                for service in sorted(self._origin.services):
                    self._tell_origin(service, now)
        self._flush(now, effects)
        return effects

    @property
    def wake_at(self) -> float | None:
        """When `wake` is next needed."""
        times = [neighbour.wake_at() for neighbour in self._neighbours.values()]
        times += [self._beat_at, self._lease_at]
        return min((moment for moment in times if moment is not None), default=None)

    def wake(self, now: float) -> list[Effect]:
        """Called at `wake_at`: beats, leases, what is to be told and told again."""
        effects: list[Effect] = []
        if self._beat_at is not None and now >= self._beat_at:
            self._beat_at = now + self._options.lease_s / 3 * self._random.uniform(0.9, 1.0)
            beat = Beat(self.router, self._origin.incarnation, self._origin.next_beat())
            effects += [SendMessage(peer, beat) for peer in self._neighbours]
        if self._lease_at is not None and now >= self._lease_at:
            self._expire(now, effects)
        for neighbour in self._neighbours.values():
            again = neighbour.resend(now)
            if again is None:
                effects += [Count("routing_neighbours_resynced"), *self._full_table(neighbour, now)]
            else:
                effects += again
        self._flush(now, effects)
        return effects

    def story(self, service: str) -> list[tuple[float, str]]:
        """What happened to a service, oldest first: (when, what)."""
        return [(when, what) for when, name, what in self._story if name == service]

    # ------------------------------------------------------------------ this site

    def _instance_up(
        self, service: str, instance_id: str, instance: LocalInstance, now: float, effects: list[Effect]
    ) -> None:
        before = self._origin.put(service, instance_id, instance)
        if before == instance:
            return
        if before is not None and before.address != instance.address:
            self._delete_local(service, before, effects)
        effects.append(PutRoute(self._origin.route(service, instance)))
        self._note(now, service, f"instance {instance_id} at {instance.address}")
        self._tell_origin(service, now)

    def _instance_down(self, service: str, instance_id: str, now: float, effects: list[Effect]) -> None:
        gone = self._origin.remove(service, instance_id)
        if gone is None:
            return
        self._delete_local(service, gone, effects)
        self._note(now, service, f"instance {instance_id} gone")
        self._tell_origin(service, now)

    def _delete_local(self, service: str, instance: LocalInstance, effects: list[Effect]) -> None:
        others = self._origin.services[service].instances.values()
        if all(other.address != instance.address for other in others):
            effects.append(DeleteRoute(self._origin.route(service, instance).key))

    def _tell_origin(self, service: str, now: float) -> None:
        """Where damping of this origin's events belongs: everything it announces passes here."""
        own = self._origin.services[service]
        key = (self.router, service)
        if own.offer is not None and (not own.instances or self._origin.is_withdrawn):
            self._origin.renew(service)
            self._mark(key, now)
        else:
            # Whether there is any news at all is decided when the time comes: gone and back is none.
            self._mark(key, now + self._coalesce_s())

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

    def _announce(self, neighbour: Neighbour, key: Key, announce: Announce, now: float, effects: list[Effect]) -> None:
        refusal = self._refusal(neighbour, key, announce)
        if refusal:
            effects.append(Count(refusal))
            self._drop(key, neighbour, refusal, now, effects)
            return
        self._new_life(announce.origin, announce.incarnation, now, effects)
        learned = self._learned.setdefault(key, Learned())
        self._by_origin.setdefault(key[0], set()).add(key)
        if announce.at > learned.newest:
            learned.newest, learned.is_withdrawn = announce.at, False
        if neighbour.confirmed is not None:
            neighbour.confirmed.add(key)
        neighbour.learned.add(key)
        metric_us = add(announce.metric_us, neighbour.cost.cost_us)
        learned.candidates[neighbour.peer] = Candidate(announce, metric_us, now + self._options.lease_s)
        self._watch_lease(now + self._options.lease_s)
        self._note(now, announce.service, f"via {neighbour.peer[:8]} at {metric_us} µs")
        self._put(key, neighbour.peer, effects)
        self._chosen_anew(key, now, effects)

    def _refusal(self, neighbour: Neighbour, key: Key, announce: Announce) -> str:
        if self.router in announce.path:
            return "routing_loops_refused"
        if announce.path[0] != announce.origin or announce.path[-1] != neighbour.peer:
            return "routing_paths_refused"
        if len(announce.path) >= limits.MAX_HOPS:
            return "routing_paths_too_long"
        if announce.incarnation < self._incarnations.get(announce.origin, 0):
            return "routing_entries_outdated"
        learned = self._learned.get(key)
        if learned is not None and (
            announce.at < learned.newest or (announce.at == learned.newest and learned.is_withdrawn)
        ):
            return "routing_entries_outdated"
        if key not in neighbour.learned and len(neighbour.learned) >= limits.MAX_ROUTES_PER_NEIGHBOUR:
            return "routing_routes_over_the_bound"
        return ""

    def _withdraw(self, neighbour: Neighbour, key: Key, withdraw: Withdraw, now: float, effects: list[Effect]) -> None:
        learned = self._learned.get(key)
        if not withdraw.is_final or learned is None or withdraw.at <= learned.newest:
            self._drop(key, neighbour, "withdrawn by the neighbour", now, effects)
            return
        # The origin's own word, newer than all we hold: no way is left, whoever still advertises one.
        learned.newest, learned.is_withdrawn = withdraw.at, True
        for peer in [*learned.candidates]:
            self._drop(key, self._neighbours[peer], "withdrawn by its origin", now, effects)

    def _beat(self, neighbour: Neighbour, beat: Beat, now: float, effects: list[Effect]) -> None:
        if beat.origin in neighbour.lapsed:
            # It believes that we still hold what it told of this origin.
            effects.append(SendMessage(neighbour.peer, Solicit()))
        if beat.origin == self.router or beat.origin not in self._by_origin:
            # Whoever knows no way to the origin has told of none, and has nobody to pass its beats to.
            return
        if beat.incarnation < self._incarnations.get(beat.origin, 0):
            effects.append(Count("routing_entries_outdated"))
            return
        self._new_life(beat.origin, beat.incarnation, now, effects)
        keys = self._by_origin[beat.origin]
        for key in keys:
            candidate = self._learned[key].candidates.get(neighbour.peer)
            if candidate is not None:
                candidate.expires_at = now + self._options.lease_s
        number = (beat.incarnation, beat.number)
        if number > self._beats.get(beat.origin, (0, 0)):
            self._beats[beat.origin] = number
            # Back to the sender too, where it holds a way through us: its own is not proof that ours still stands.
            told = [n.peer for n in self._neighbours.values() if any(key in n.told for key in keys)]
            effects += [SendMessage(peer, beat) for peer in told]

    def _new_life(self, origin: str, incarnation: int, now: float, effects: list[Effect]) -> None:
        """A later incarnation: nothing of the earlier one stands."""
        if incarnation <= self._incarnations.get(origin, 0):
            return
        self._incarnations[origin] = incarnation
        for key in sorted(self._by_origin.get(origin, ())):
            for peer, candidate in [*self._learned[key].candidates.items()]:
                if candidate.announce.incarnation < incarnation:
                    self._drop(key, self._neighbours[peer], "of an earlier life of its origin", now, effects)

    # ------------------------------------------------------------------- choosing

    def _drop(self, key: Key, neighbour: Neighbour, why: str, now: float, effects: list[Effect]) -> None:
        neighbour.learned.discard(key)
        learned = self._learned.get(key)
        if learned is None:
            return
        candidate = learned.candidates.pop(neighbour.peer, None)
        if candidate is None:
            return
        effects.append(DeleteRoute(candidate.route(neighbour.peer).key))
        self._note(now, key[1], f"via {neighbour.peer[:8]}: {why}")
        self._chosen_anew(key, now, effects)
        if not learned.candidates:
            # Its version is remembered for a while: late adverts of an older one must resurrect nothing.
            learned.empty_since = now
            self._watch_lease(now + TOMBSTONE_S)

    def _chosen_anew(self, key: Key, now: float, effects: list[Effect]) -> None:  # noqa: ARG002 - same shape as others
        learned = self._learned[key]
        learned.choose()
        self._mark(key, now if not learned.best else now + self._coalesce_s())

    def _mark(self, key: Key, when: float) -> None:
        for neighbour in self._neighbours.values():
            neighbour.mark(key, when)

    def _export(self, neighbour: Neighbour, key: Key) -> Announce | None:
        """What `neighbour` should hold for `key`: where policies per neighbour belong."""
        if key[0] == self.router:
            return self._origin.announce(key[1])
        learned = self._learned.get(key)
        if learned is None or not learned.best or learned.best == neighbour.peer:
            return None
        onward = learned.announce_onward(self.router)
        return None if onward is None or neighbour.peer in onward.path else onward

    def _withdrawal(self, key: Key) -> Withdraw:
        """Final when the origin itself withdrew; otherwise only our own way is gone, and others may have one."""
        origin, service = key
        if origin == self.router:
            version, is_final = (self._origin.incarnation, self._origin.services[service].sequence), True
        else:
            learned = self._learned.get(key, Learned())
            version, is_final = learned.newest, learned.is_withdrawn
        incarnation, sequence = version
        return Withdraw(origin=origin, incarnation=incarnation, sequence=sequence, service=service, is_final=is_final)

    def _full_table(self, neighbour: Neighbour, now: float) -> list[Effect]:
        for service in self._origin.services:
            self._origin.renew(service)
        keys = [(self.router, service) for service in self._origin.services] + list(self._learned)
        return neighbour.tell_everything(sorted(keys), lambda key: self._export(neighbour, key), now)

    def _flush(self, now: float, effects: list[Effect]) -> None:
        for neighbour in self._neighbours.values():
            if neighbour.flush_at is None or now < neighbour.flush_at:
                continue
            for origin, service in neighbour.dirty:
                if origin == self.router:
                    self._origin.renew(service)
            effects += neighbour.flush(lambda key, to=neighbour: self._export(to, key), self._withdrawal, now)  # type: ignore[misc]

    # ------------------------------------------------------------------ table, time

    def _put(self, key: Key, peer: str, effects: list[Effect]) -> None:
        effects.append(PutRoute(self._learned[key].candidates[peer].route(peer)))

    def _watch_lease(self, when: float) -> None:
        if self._lease_at is None or when < self._lease_at:
            self._lease_at = when

    def _expire(self, now: float, effects: list[Effect]) -> None:
        self._lease_at = None
        for key in sorted(self._learned):
            learned = self._learned[key]
            for peer, candidate in [*learned.candidates.items()]:
                if candidate.expires_at <= now:
                    effects.append(Count("routing_leases_expired"))
                    self._neighbours[peer].lapsed.add(key[0])
                    self._drop(key, self._neighbours[peer], "its lease ran out", now, effects)
                else:
                    self._watch_lease(candidate.expires_at)
            if not learned.candidates:
                if now >= learned.empty_since + TOMBSTONE_S:
                    self._forget(key)
                else:
                    self._watch_lease(learned.empty_since + TOMBSTONE_S)

    def _forget(self, key: Key) -> None:
        del self._learned[key]
        self._by_origin[key[0]].discard(key)
        if not self._by_origin[key[0]]:
            for about_origins in (self._by_origin, self._incarnations, self._beats):
                about_origins.pop(key[0], None)

    def _coalesce_s(self) -> float:
        return self._options.coalesce_s * self._random.uniform(0.5, 1.0)

    def _note(self, now: float, service: str, what: str) -> None:
        self._story.append((now, service, what))
