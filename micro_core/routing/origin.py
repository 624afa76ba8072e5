"""The services of this site as this router advertises them: the versioned list of its offers. Pure.

Services are advertised, their instances are not. Changes are combined: new services, versions and removals for half a second,
load and capacity for two seconds. Both have hysteresis, so that the recycling of instances changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from micro_core.contract.clock import Random
from micro_core.contract.table import ANY_SERVICE, LOCAL_LINK, Offer, Route
from micro_core.routing.damping import Damper
from micro_core.routing.entries import OfferEntry, OriginAnnounce, Seqno
from micro_core.routing.events import DeleteRoute, LocalInstance, PutRoute
from micro_core.routing.explain import CandidateStatus, RouteCandidate
from micro_core.routing.messages import MAX_VERSIONS
from micro_core.routing.metric import is_significant
from micro_core.routing.offer_list import OfferList
from micro_core.routing.options import EngineOptions

CAPACITY_GROWTH = 1.4
"""A larger number of instances is advertised if it has grown by more than this factor."""
CAPACITY_DROP_S = 30.0
"""A smaller number of instances is advertised after this time, or at once if it is less than half."""

MAX_RAISED = 2**61
"""A sequence number above this is not believed: this router does not raise its own above it."""

NEVER = float("inf")


def offer_of(service: str, instances: Mapping[str, LocalInstance]) -> Offer | None:
    """Aggregate the instances of a service. Returns None if there are no instances."""
    if not instances:
        return None
    versions = sorted({instance.version for instance in instances.values() if instance.version})
    load_us = sum(instance.load_us for instance in instances.values()) // len(instances)
    return Offer(service, tuple(versions[:MAX_VERSIONS]), len(instances), load_us)


@dataclass(slots=True)
class OwnService:
    """A service of this site, with the offer that was advertised last."""

    instances: dict[str, LocalInstance] = field(default_factory=dict)
    offer: Offer | None = None
    lower_since: float | None = None
    """Since when the number of instances has been below the advertised one."""


class Origin:
    """The services of which this router is the origin."""

    def __init__(
        self,
        *,
        router: str,
        network: str,
        site: str,
        incarnation: int,
        damper: Damper,
        random: Random,
        options: EngineOptions,
    ) -> None:
        self.router = router
        self.network = network
        self.site = site
        self.incarnation = incarnation
        self.sequence = 1
        self.damper = damper
        self.services: dict[str, OwnService] = {}
        self.offers = OfferList(incarnation)
        self.is_draining = False
        """Nothing is advertised any more."""
        self._random = random
        self._options = options
        self._pending: dict[str, None] = {}
        self._pending_at = NEVER
        self._slow: dict[str, None] = {}
        self._slow_at = NEVER
        self._slow_sent_at = -NEVER
        self._drops: dict[str, float] = {}
        """When a smaller number of instances is to be advertised, by service."""

    @property
    def seqno(self) -> Seqno:
        """The current sequence number."""
        return (self.incarnation, self.sequence)

    # --------------------------------------------------------------- instances

    def put(
        self, service: str, instance_id: str, instance: LocalInstance, now: float
    ) -> list[PutRoute | DeleteRoute] | None:
        """Add or replace an instance. Returns the changes of the table, None if the instance is unchanged."""
        own = self.services.setdefault(service, OwnService())
        before = own.instances.get(instance_id)
        if before == instance:
            return None
        own.instances[instance_id] = instance
        self._schedule(service, own, now)
        if service == ANY_SERVICE:
            # The default route is advertised to neighbours. In the own table it would lead nowhere.
            return []
        changes: list[PutRoute | DeleteRoute] = []
        if before is not None and before.address != instance.address:
            changes += self._address_removed(service, before)
        return [*changes, PutRoute(self.route(service, instance))]

    def remove(self, service: str, instance_id: str, now: float) -> list[PutRoute | DeleteRoute] | None:
        """Remove an instance. Returns the changes of the table, None if the instance is unknown."""
        own = self.services.get(service)
        instance = own.instances.pop(instance_id, None) if own is not None else None
        if own is None or instance is None:
            return None
        if not own.instances:
            self.damper.record_loss(service, now)
        self._schedule(service, own, now)
        changes = self._address_removed(service, instance)
        if not own.instances and own.offer is None:
            del self.services[service]
        return changes

    def _address_removed(self, service: str, instance: LocalInstance) -> list[PutRoute | DeleteRoute]:
        others = self.services[service].instances.values()
        if service == ANY_SERVICE or any(other.address == instance.address for other in others):
            return []
        return [DeleteRoute(self.route(service, instance).key)]

    # ------------------------------------------------------------ what is advertised

    def reuse(self, service: str, now: float) -> None:
        """Advertise a service at once: its suppression has ended."""
        self._pending[service] = None
        self._pending_at = min(self._pending_at, now)

    def hurry(self, now: float) -> None:
        """Do not combine the pending changes with later ones: the full table is about to be sent."""
        if self._pending:
            self._pending_at = min(self._pending_at, now)

    @property
    def wake_at(self) -> float:
        """When `advance` must be called next, in clock seconds."""
        when = min(self._pending_at, self._slow_at)
        return min(when, *self._drops.values()) if self._drops else when

    def advance(self, now: float) -> tuple[list[str], list[str]]:
        """Add the changes that are due to the list of offers.

        Returns the services that may have changed, and those that were suppressed because they have been flapping. The
        first list is empty if nothing has changed.
        """
        due: dict[str, None] = {}
        if self._pending_at <= now:
            due, self._pending, self._pending_at = self._pending, {}, NEVER
        if self._slow_at <= now:
            due.update(self._slow)
            self._slow, self._slow_at, self._slow_sent_at = {}, NEVER, now
        if self._drops:
            for service in [service for service, when in self._drops.items() if when <= now]:
                del self._drops[service]
                due[service] = None
        version = self.offers.version
        suppressed = [service for service in due if not self._refresh(service, now)]
        return ([] if self.offers.version == version else [*due]), suppressed

    def announcement(self) -> OriginAnnounce:
        """Return the announcement of this router."""
        return OriginAnnounce(
            origin=self.router,
            seqno=self.seqno,
            site=self.site,
            network=self.network,
            metric_us=0,
            path=(self.router,),
        )

    def raise_above(self, seqno: Seqno, *, is_requested: bool) -> bool:
        """Raise the sequence number above one that other routers request, or know, e.g. from before a restart with a wrong clock.

        One that was not requested must reach all routers, so it needs a later incarnation.

        Returns False if it is greater already, or if `seqno` is absurdly high.
        """
        incarnation, sequence = seqno
        if seqno < self.seqno or incarnation >= MAX_RAISED or sequence >= MAX_RAISED:
            return False
        if not is_requested and seqno == self.seqno:
            return False
        if incarnation == self.incarnation and is_requested:
            self.sequence = sequence + 1
        else:
            self.restart(incarnation + 1)
        return True

    def restart(self, incarnation: int) -> None:
        """Continue as a later incarnation, with the same offers."""
        self.incarnation, self.sequence = incarnation, 1
        before, self.offers = self.offers, OfferList(self.incarnation)
        for entry in before.entries.values():
            self.offers.put(OfferEntry(entry.offer, self.offers.version + 1))
            self.offers.version += 1

    def _schedule(self, service: str, own: OwnService, now: float) -> None:
        """Schedule the advertisement of what has changed about a service."""
        offer, advertised = offer_of(service, own.instances), own.offer
        if offer is None and advertised is None:
            # Never advertised: nothing is to be withdrawn.
            self._drops.pop(service, None)
        elif offer is None:
            # A withdrawal that leaves no instance is sent at once.
            self._pending[service] = None
            self._pending_at = now
        elif advertised is None or offer.versions != advertised.versions:
            self._pending[service] = None
            if self._pending_at == NEVER:
                self._pending_at = now + self._options.coalesce_s * self._random.uniform(0.5, 1.0)
        elif offer.capacity != advertised.capacity or offer.load_us != advertised.load_us:
            self._slow[service] = None
            if self._slow_at == NEVER:
                delay_s = self._options.coalesce_s * self._random.uniform(0.5, 1.0)
                self._slow_at = max(now + delay_s, self._slow_sent_at + self._options.slow_s)

    def _refresh(self, service: str, now: float) -> bool:
        """Add the current offer of a service to the list if it differs from the advertised one.

        Returns False if the new offer is suppressed because the service has been flapping. Withdrawals are never
        suppressed.
        """
        own = self.services.get(service)
        if own is None:
            return True
        offer = None if self.is_draining else offer_of(service, own.instances)
        if offer is None:
            if own.offer is not None:
                self.offers.version += 1
                self.offers.remove(service, self.offers.version)
                own.offer = own.lower_since = None
            self._drops.pop(service, None)
            if not own.instances:
                del self.services[service]
            return True
        offer = self._steady(own, offer, now)
        if offer == own.offer:
            return True
        if not self.damper.may_announce(service, now):
            return False
        if own.offer is not None and (own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity):
            self.damper.record_change(service, now)
        own.offer = offer
        self.offers.version += 1
        self.offers.put(OfferEntry(offer, self.offers.version))
        return True

    def _steady(self, own: OwnService, offer: Offer, now: float) -> Offer:
        """Return `offer` with the advertised load and capacity if the current ones differ too little, or not for long."""
        advertised = own.offer
        if advertised is None:
            return offer
        capacity = advertised.capacity
        if offer.capacity >= advertised.capacity:
            own.lower_since = None
            self._drops.pop(offer.service, None)
            if offer.capacity > advertised.capacity * CAPACITY_GROWTH:
                capacity = offer.capacity
        else:
            if own.lower_since is None:
                own.lower_since = now
            if offer.capacity < advertised.capacity / 2 or now >= own.lower_since + CAPACITY_DROP_S:
                capacity, own.lower_since = offer.capacity, None
                self._drops.pop(offer.service, None)
            else:
                self._drops[offer.service] = own.lower_since + CAPACITY_DROP_S
        load_us = offer.load_us if is_significant(offer.load_us, advertised.load_us) else advertised.load_us
        return replace(offer, capacity=capacity, load_us=load_us)

    # -------------------------------------------------------------------- explain

    def candidates(self, service: str, now: float) -> list[RouteCandidate]:
        """Return the instances of a service on this site as route candidates.

        If the service is not advertised because it is suppressed or the node is draining, an additional candidate
        without an address has this status.
        """
        own = self.services.get(service)
        if own is None:
            return []
        suppressed = [flap for flap in self.damper.statuses(now) if flap.service == service and flap.is_suppressed]
        found = [
            RouteCandidate(
                status=CandidateStatus.SPARE,
                why="",
                origin=self.router,
                site=self.site,
                via="",
                address=instance.address,
                path=(),
                announced_us=instance.load_us,
                load_us=instance.load_us,
                link_us=0,
                total_us=instance.load_us,
                versions=(instance.version,) if instance.version else (),
                key=self.route(service, instance).key,
            )
            for instance in own.instances.values()
        ]
        why = ""
        if self.is_draining:
            status, why = CandidateStatus.DRAINING, "the node is stopping: the service is withdrawn from neighbours"
        elif suppressed and own.offer is None and own.instances:
            reuse_in_s = (suppressed[0].reuse_at or now) - now
            status = CandidateStatus.SUPPRESSED
            why = f"the service has been flapping: it is advertised to neighbours again in {reuse_in_s:.0f} s"
        if why and found:
            found.append(replace(found[0], status=status, why=why, address=""))
        return found

    def route(self, service: str, instance: LocalInstance) -> Route:
        """Return the route to an instance of this site."""
        return Route(
            service=service,
            address=instance.address,
            gateway="",
            network=self.network,
            router=self.router,
            link=LOCAL_LINK,
            metric=instance.load_us,
            site=self.site,
            version=instance.version,
            load_us=instance.load_us,
        )
