"""The instances of this site as the registry reports them, converted into events for the routing engine. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from micro_core.contract.names import LOAD_KEY, NETWORK_SERVICE, NODE_KEY, SCOPE_KEY, SITE_SCOPE, interest_name
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
        self._site_nodes: dict[str, str] = {}
        """Node ids of the nodes of this site, by instance id."""

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
        self._site_nodes = {i.id: i.metadata[NODE_KEY] for i in found.values() if _is_node(i)}
        return [self._local_services()]

    def put(self, instance: Instance) -> list[RoutingEvent]:
        """Add or replace an instance."""
        before = self._instances.get(instance.id)
        self._instances[instance.id] = instance
        self._changed_ids.add(instance.id)
        events: list[RoutingEvent] = []
        if _is_node(instance):
            self._site_nodes[instance.id] = instance.metadata[NODE_KEY]
            events.append(self._local_services())
        provided = dict(self._provided(instance))
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
        events: list[RoutingEvent] = []
        if self._site_nodes.pop(instance_id, None) is not None:
            events.append(self._local_services())
        # Interest may have been advertised while this node was the leader.
        events += [InstanceDown(name, instance_id) for name, _ in self._provided(instance, always_with_interest=True)]
        return events

    def _is_leader(self) -> bool:
        """Return whether this node advertises interest: only one node per site does, so that messages arrive once."""
        return self._node_id <= min(self._site_nodes.values(), default=self._node_id)

    def _provided(
        self, instance: Instance, *, always_with_interest: bool = False
    ) -> Iterable[tuple[str, LocalInstance]]:
        """Yield the names under which an instance is advertised: its service and the topics it subscribes to."""
        if instance.metadata.get(SCOPE_KEY) == SITE_SCOPE:
            return
        local = LocalInstance(
            address=instance.address, version=instance.version, load_us=_parse_load(instance.metadata.get(LOAD_KEY, ""))
        )
        yield instance.service, local
        # Messages are not distributed by load, so interest is advertised without it.
        subscriber = LocalInstance(address=instance.address, version=instance.version)
        if always_with_interest or self._is_leader():
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


def _is_node(instance: Instance) -> bool:
    return instance.service == NETWORK_SERVICE and NODE_KEY in instance.metadata
