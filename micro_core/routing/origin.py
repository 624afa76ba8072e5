"""The services of this site as this router advertises them. Pure.

Services are advertised, their instances are not. An announcement contains the versions and the binary logarithm of the
number of instances, so that the restart of one of three instances changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from micro_core.contract.table import ANY_SERVICE, LOCAL_LINK, Route
from micro_core.routing.damping import Damper
from micro_core.routing.events import Announce, DeleteRoute, LocalInstance, PutRoute
from micro_core.routing.explain import CandidateStatus, RouteCandidate
from micro_core.routing.messages import MAX_VERSIONS


@dataclass(frozen=True, slots=True)
class Offer:
    """The properties of a service that are advertised."""

    versions: tuple[str, ...]
    capacity: int
    load_us: int = 0
    """Mean waiting time at the instances in microseconds: the metric at the origin."""


def offer_of(instances: Mapping[str, LocalInstance]) -> Offer | None:
    """Aggregate the instances of a service. Returns None if there are no instances."""
    if not instances:
        return None
    versions = sorted({instance.version for instance in instances.values() if instance.version})
    load_us = sum(instance.load_us for instance in instances.values()) // len(instances)
    return Offer(tuple(versions[:MAX_VERSIONS]), len(instances).bit_length() - 1, load_us)


@dataclass(slots=True)
class OwnService:
    """A service of this site, with the offer that was advertised last and its sequence number."""

    instances: dict[str, LocalInstance] = field(default_factory=dict)
    offer: Offer | None = None
    sequence: int = 0


@dataclass(slots=True)
class Origin:
    """The services of which this router is the origin.

    All services share one sequence number, which only increases within an incarnation.
    """

    router: str
    network: str
    site: str
    incarnation: int
    services: dict[str, OwnService] = field(default_factory=dict)
    is_draining: bool = False
    """Nothing is advertised any more."""
    damper: Damper = field(default_factory=Damper)
    _sequence: int = 0

    def put(self, service: str, instance_id: str, instance: LocalInstance) -> list[PutRoute | DeleteRoute] | None:
        """Add or replace an instance. Returns the changes of the table, None if the instance is unchanged."""
        own = self.services.setdefault(service, OwnService())
        before = own.instances.get(instance_id)
        if before == instance:
            return None
        own.instances[instance_id] = instance
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
        return self._address_removed(service, instance)

    def sequence_of(self, service: str) -> int:
        """Return the sequence number of the last change of a known service."""
        return self.services[service].sequence

    def _address_removed(self, service: str, instance: LocalInstance) -> list[PutRoute | DeleteRoute]:
        others = self.services[service].instances.values()
        if service == ANY_SERVICE or any(other.address == instance.address for other in others):
            return []
        return [DeleteRoute(self.route(service, instance).key)]

    def current_offer(self, service: str) -> Offer | None:
        """Return the offer of a known service that is to be advertised now. None means a withdrawal."""
        return None if self.is_draining else offer_of(self.services[service].instances)

    def is_withdrawal_due(self, service: str) -> bool:
        """Return whether the service was advertised and has no instance any more. This is advertised immediately."""
        return self.services[service].offer is not None and self.current_offer(service) is None

    def refresh(self, service: str, now: float) -> bool:
        """Assign a new sequence number to a service if its current offer differs from the advertised one.

        Returns False if the new offer is suppressed because the service has been flapping. Withdrawals are never
        suppressed.
        """
        own = self.services.get(service)
        offer = self.current_offer(service) if own is not None else None
        if own is None or offer == own.offer:
            return True
        if offer is not None:
            if not self.damper.may_announce(service, now):
                return False
            if own.offer is not None and (own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity):
                self.damper.record_change(service, now)
        self._sequence += 1
        own.offer, own.sequence = offer, self._sequence
        return True

    def increment_sequence(self, service: str) -> None:
        """Assign a new sequence number to an unchanged, known service: another router requested it."""
        own = self.services[service]
        self._sequence += 1
        own.sequence = self._sequence

    def forget_removed(self, advertised: Collection[tuple[str, str]]) -> None:
        """Delete the services that have no instances and that are not in `advertised` (origin, service)."""
        for service, own in [*self.services.items()]:
            if not own.instances and own.offer is None and (self.router, service) not in advertised:
                del self.services[service]

    def announcement(self, service: str) -> Announce | None:
        """Return the announcement of a service, None if it is not advertised."""
        own = self.services.get(service)
        if own is None or own.offer is None:
            return None
        return Announce(
            origin=self.router,
            incarnation=self.incarnation,
            sequence=own.sequence,
            service=service,
            versions=own.offer.versions,
            capacity=own.offer.capacity,
            site=self.site,
            network=self.network,
            metric_us=own.offer.load_us,
            path=(self.router,),
            load_us=own.offer.load_us,
        )

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
