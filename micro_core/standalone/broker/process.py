"""`micro broker`: the broker of a site as a process of its own."""

from __future__ import annotations

import secrets

from micro_core.builtin.broker.host import BrokerHost
from micro_core.contract.names import BROKER_SERVICE
from micro_core.contract.registry import Instance
from micro_core.node.assembly import node_name
from micro_core.rpc.registration import Registration
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import component_metadata


class BrokerComponent(Component):
    """The broker of a site. Services, commands and proxies find it as `go.micro.broker`."""

    async def start(self) -> None:
        """Start the broker.

        Raises:
            ConfigError: the settings are invalid.
            Conflict: the address is in use.
            Unreachable: the registry does not answer.
        """
        runtime = await self._start_runtime()
        context = runtime.context
        host = BrokerHost(node_id=context.node_id, counters=context.counters, logger=context.logger)
        self._close_later(host.close)
        await host.start(runtime.transport, self._listen_address)
        self.address = host.address
        instance = Instance(
            service=BROKER_SERVICE,
            id=f"{BROKER_SERVICE}-{secrets.token_hex(6)}",
            address=host.address,
            metadata=component_metadata(context.node_id, node_name(self._settings), context.site),
        )
        registration = Registration(
            runtime.registry, instance, lease_s=self._settings.node.lease, counters=context.counters
        )
        self._close_later(registration.close)
        await registration.start()
        self.introduction = [
            f"broker of site {context.site}, network {context.network}",
            f"  topics    {self.address}",
        ]
