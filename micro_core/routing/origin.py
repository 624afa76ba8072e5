"""What this site provides, aggregated: a service is advertised, its instances are not.

An announcement tells the versions and the logarithm of the number of instances, so that one of three being
restarted changes nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from micro_core.contract.table import ANY_SERVICE, LOCAL_LINK, Route
from micro_core.routing.damping import Damper
from micro_core.routing.events import Announce, DeleteRoute, LocalInstance, PutRoute
from micro_core.routing.explain import Standing, Way
from micro_core.routing.messages import MAX_VERSIONS


@dataclass(frozen=True, slots=True)
class Offer:
    """What is told of a service."""

    versions: tuple[str, ...]
    capacity: int
    load_us: int = 0
    """Mean waiting at the instances: what a call costs here before it has gone anywhere."""


def offer_of(instances: Mapping[str, LocalInstance]) -> Offer | None:
    """The offer of a set of instances; None for none."""
    if not instances:
        return None
    versions = sorted({instance.version for instance in instances.values() if instance.version})
    load_us = sum(instance.load_us for instance in instances.values()) // len(instances)
    return Offer(tuple(versions[:MAX_VERSIONS]), len(instances).bit_length() - 1, load_us)


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
    damper: Damper = field(default_factory=Damper)
    _sequence: int = 0

    def put(self, service: str, instance_id: str, instance: LocalInstance) -> list[PutRoute | DeleteRoute] | None:
        """Add or replace an instance; what becomes of the table, None when it stood just so."""
        own = self.services.setdefault(service, OwnService())
        before = own.instances.get(instance_id)
        if before == instance:
            return None
        own.instances[instance_id] = instance
        if service == ANY_SERVICE:
            # To others a way to everything; here it would lead nowhere.
            return []
        changes: list[PutRoute | DeleteRoute] = []
        if before is not None and before.address != instance.address:
            changes += self._gone(service, before)
        return [*changes, PutRoute(self.route(service, instance))]

    def remove(self, service: str, instance_id: str, now: float) -> list[PutRoute | DeleteRoute] | None:
        """Remove an instance; what becomes of the table, None when it was not known."""
        own = self.services.get(service)
        instance = own.instances.pop(instance_id, None) if own is not None else None
        if own is None or instance is None:
            return None
        if not own.instances:
            self.damper.lost(service, now)
        return self._gone(service, instance)

    def sequence_of(self, service: str) -> int:
        """Of what was given out last."""
        return self.services[service].sequence

    def _gone(self, service: str, instance: LocalInstance) -> list[PutRoute | DeleteRoute]:
        others = self.services[service].instances.values()
        if service == ANY_SERVICE or any(other.address == instance.address for other in others):
            return []
        return [DeleteRoute(self.route(service, instance).key)]

    def wanted(self, service: str) -> Offer | None:
        """What the instances of a known service amount to now."""
        return None if self.is_withdrawn else offer_of(self.services[service].instances)

    def is_withdrawal_due(self, service: str) -> bool:
        """Something was offered, and nothing is left: this waits for nobody."""
        return self.services[service].offer is not None and self.wanted(service) is None

    def renew(self, service: str, now: float) -> bool:
        """Give out what is wanted, with a new sequence, where it differs from what was given out.

        False where it has to wait: good news of a service that has been flapping is held back, bad news never.
        """
        own = self.services.get(service)
        offer = self.wanted(service) if own is not None else None
        if own is None or offer == own.offer:
            return True
        if offer is not None:
            if not self.damper.may_announce(service, now):
                return False
            if own.offer is not None and (own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity):
                self.damper.changed(service, now)
        self._sequence += 1
        own.offer, own.sequence = offer, self._sequence
        return True

    def renew_sequence(self, service: str) -> None:
        """Tell the same offer with a later sequence: somebody has lost every way that is surely free of loops."""
        own = self.services[service]
        self._sequence += 1
        own.sequence = self._sequence

    def forget_past(self, told: Collection[tuple[str, str]]) -> None:
        """Services that are neither here nor told of to anybody: names that were offered once are not kept."""
        for service, own in [*self.services.items()]:
            if not own.instances and own.offer is None and (self.router, service) not in told:
                del self.services[service]

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
            metric_us=own.offer.load_us,
            path=(self.router,),
            load_us=own.offer.load_us,
        )

    def ways(self, service: str, now: float) -> list[Way]:
        """This site's instances of a service, as ways; and what neighbours are told of them."""
        own = self.services.get(service)
        if own is None:
            return []
        held = [flap for flap in self.damper.view(now) if flap.service == service and flap.is_held]
        found = [
            Way(
                standing=Standing.SPARE,
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
        note = ""
        if self.is_withdrawn:
            standing, note = Standing.DRAINING, "the node is stopping: neighbours are told that nothing is here"
        elif held and own.offer is None and own.instances:
            until_s = (held[0].release_at or now) - now
            standing, note = Standing.HELD, f"it has been flapping: neighbours hear of it in {until_s:.0f} s"
        if note and found:
            found.append(replace(found[0], standing=standing, why=note, address=""))
        return found

    def route(self, service: str, instance: LocalInstance) -> Route:
        """The route to an instance of this site."""
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
        )
