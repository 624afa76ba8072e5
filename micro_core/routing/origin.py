"""What this site provides, aggregated: a service is advertised, its instances are not.

An announcement tells the versions and the logarithm of the number of instances, so that one of three being
restarted changes nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from micro_core.routing.events import Announce, LocalInstance
from micro_core.routing.messages import MAX_VERSIONS
from micro_core.spec.table import LOCAL_LINK, Route


@dataclass(frozen=True, slots=True)
class Offer:
    """What is told of a service."""

    versions: tuple[str, ...]
    capacity: int


def offer_of(instances: Mapping[str, LocalInstance]) -> Offer | None:
    """The offer of a set of instances; None for none."""
    if not instances:
        return None
    versions = sorted({instance.version for instance in instances.values() if instance.version})
    return Offer(tuple(versions[:MAX_VERSIONS]), len(instances).bit_length() - 1)


@dataclass(slots=True)
class OwnService:
    """A service of this site, with the offer that was last given out and its sequence."""

    instances: dict[str, LocalInstance] = field(default_factory=dict)
    offer: Offer | None = None
    sequence: int = 0


@dataclass(slots=True)
class Origin:
    """The origin's side of this router: one sequence for all its services, never restarted in one incarnation."""

    router: str
    network: str
    site: str
    incarnation: int
    services: dict[str, OwnService] = field(default_factory=dict)
    is_withdrawn: bool = False
    _sequence: int = 0
    _beat: int = 0

    def put(self, service: str, instance_id: str, instance: LocalInstance) -> LocalInstance | None:
        """Add or replace an instance; returns the one that stood before."""
        own = self.services.setdefault(service, OwnService())
        before = own.instances.get(instance_id)
        own.instances[instance_id] = instance
        return before

    def remove(self, service: str, instance_id: str) -> LocalInstance | None:
        own = self.services.get(service)
        return None if own is None else own.instances.pop(instance_id, None)

    def renew(self, service: str) -> bool:
        """Bring the offer in line with the instances; True when it changed and got a new sequence."""
        own = self.services.get(service)
        if own is None:
            return False
        offer = None if self.is_withdrawn else offer_of(own.instances)
        if offer == own.offer:
            return False
        self._sequence += 1
        own.offer, own.sequence = offer, self._sequence
        return True

    def announce(self, service: str) -> Announce | None:
        """The service as it is offered now; None where it is not."""
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
            metric_us=0,
            path=(self.router,),
        )

    def route(self, service: str, instance: LocalInstance) -> Route:
        """The route to an instance of this site."""
        return Route(
            service=service,
            address=instance.address,
            gateway="",
            network=self.network,
            router=self.router,
            link=LOCAL_LINK,
            metric=0,
            site=self.site,
            version=instance.version,
        )

    def next_beat(self) -> int:
        self._beat += 1
        return self._beat
