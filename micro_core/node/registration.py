"""The records of a node in the registry of its site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from micro_core.contract.driver import Counters
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.registry import Endpoint, Instance, Registry
from micro_core.lifecycle.closing import Closing
from micro_core.node.description import NodeDescription
from micro_core.rpc.registration import Registration


class NodeRegistrations:
    """Registers the services of a node, and renews their leases of `lease_s` seconds until they are withdrawn."""

    def __init__(self, registry: Registry, *, node: NodeDescription, lease_s: float, counters: Counters) -> None:
        self._registry = registry
        self._node = node
        self._lease_s = lease_s
        self._counters = counters
        self._registrations: list[Registration] = []

    async def add_node(self, address: str, *, tunnel_addresses: Sequence[str], endpoints: Sequence[Endpoint]) -> None:
        """Register the node itself, `go.micro.network`. Raises Unreachable, TooLarge."""
        await self.add(NETWORK_SERVICE, address, metadata=self._node.metadata(tunnel_addresses), endpoints=endpoints)

    async def add(
        self, service: str, address: str, *, metadata: Mapping[str, str], endpoints: Sequence[Endpoint] = ()
    ) -> None:
        """Register a service that the node or one of its components provides. Raises Unreachable, TooLarge."""
        instance = Instance(
            service=service,
            id=f"{service}-{self._node.node_id}",
            address=address,
            metadata=dict(metadata),
            endpoints=tuple(endpoints),
        )
        registration = Registration(self._registry, instance, lease_s=self._lease_s, counters=self._counters)
        self._registrations.append(registration)
        await registration.start()

    async def renew(self) -> None:
        """Renew all leases now: they may have expired while this process was suspended. Failures are counted and repeated."""
        for registration in [*self._registrations]:
            await registration.update(registration.instance)

    async def withdraw(self, closing: Closing) -> None:
        """Withdraw all records, in the order in which they were added. Safe to call twice.

        A record that cannot be withdrawn remains until its lease expires. Cancellation ends the withdrawal of one record; the
        others follow.
        """
        registrations, self._registrations = self._registrations, []
        async with AsyncExitStack() as stack:
            for registration in reversed(registrations):
                closing.push(stack, registration.close)
