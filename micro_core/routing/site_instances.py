"""The instances of this site as the registry reports them, converted into events for the routing engine. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from micro_core.contract.names import LOAD_KEY, SCOPE_KEY, SITE_SCOPE, interest_name
from micro_core.contract.registry import EndpointKind, Instance
from micro_core.contract.table import ANY_SERVICE
from micro_core.routing.events import InstanceDown, InstanceUp, LocalInstance, LocalServices, RoutingEvent

MAX_LOAD_US = 10_000_000
"""Upper bound of the reported load. Larger values are reduced to it."""


class SiteInstances:
    """The registered instances of one site, by id."""

    def __init__(self, *, node_id: str, is_gateway: bool) -> None:
        self._node_id = node_id
        self._is_gateway = is_gateway
        self._instances: dict[str, Instance] = {}
        self._changed_ids: set[str] = set()
        """The instances that the watch has reported since `begin_comparison`."""

    def begin_comparison(self) -> None:
        """Begin to record changes. To be called before the registry is read for `replace_all`."""
        self._changed_ids.clear()

    def replace_all(self, instances: Iterable[Instance]) -> list[RoutingEvent]:
        """Replace all instances by those that were read from the registry since `begin_comparison`."""
        found = {instance.id: instance for instance in instances}
        # Changes that the watch has reported meanwhile may be newer than the result of the read.
        for instance_id in self._changed_ids:
            found.pop(instance_id, None)
            if instance_id in self._instances:
                found[instance_id] = self._instances[instance_id]
        self._instances = found
        return [self._local_services()]

    def put(self, instance: Instance) -> list[RoutingEvent]:
        """Add or replace an instance."""
        before = self._instances.get(instance.id)
        self._instances[instance.id] = instance
        self._changed_ids.add(instance.id)
        provided = dict(self._provided(instance))
        events: list[RoutingEvent] = []
        if before is not None:
            events += [InstanceDown(name, instance.id) for name, _ in self._provided(before) if name not in provided]
        events += [InstanceUp(name, instance.id, local) for name, local in provided.items()]
        return events

    def remove(self, instance_id: str) -> list[RoutingEvent]:
        """Remove an instance. Unknown ids are ignored."""
        instance = self._instances.pop(instance_id, None)
        self._changed_ids.add(instance_id)
        if instance is None:
            return []
        return [InstanceDown(name, instance_id) for name, _ in self._provided(instance)]

    def _provided(self, instance: Instance) -> Iterable[tuple[str, LocalInstance]]:
        """Yield the names under which an instance is advertised: its service and the topics it subscribes to."""
        if instance.metadata.get(SCOPE_KEY) == SITE_SCOPE:
            return
        local = LocalInstance(
            address=instance.address, version=instance.version, load_us=_parse_load(instance.metadata.get(LOAD_KEY, ""))
        )
        yield instance.service, local
        # Messages are not distributed by load, so interest is advertised without it.
        subscriber = LocalInstance(address=instance.address, version=instance.version)
        for endpoint in instance.endpoints:
            if endpoint.kind is EndpointKind.SUBSCRIBER:
                yield interest_name(endpoint.name), subscriber

    def _local_services(self) -> LocalServices:
        services: dict[str, dict[str, LocalInstance]] = defaultdict(dict)
        for instance in self._instances.values():
            for name, local in self._provided(instance):
                services[name][instance.id] = local
        if self._is_gateway:
            services[ANY_SERVICE][self._node_id] = LocalInstance(address="")
        return LocalServices(services)


def _parse_load(text: str) -> int:
    """Parse the load that an instance reports. Invalid values count as 0."""
    return min(int(text), MAX_LOAD_US) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
