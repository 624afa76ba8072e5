"""`micro registry` and `micro broker`: what a site's services meet at, each in a process of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.builtin.transport.joined import JoinedTransport
from micro_core.config import Settings, build_options
from micro_core.contract.driver import Role
from micro_core.contract.registry import Instance, Registry
from micro_core.drivers.runtime import build, build_runtime, check_tables, drivers_of, process_context
from micro_core.node.assembly import node_name
from micro_core.plugins import Catalog, Entry
from micro_core.rpc.registration import Registration
from micro_core.rpc.service import Service
from micro_core.standalone.discovery import BROKER_SERVICE, Standing, component_metadata
from micro_core.standalone.registry.client import ServiceRegistryOptions
from micro_core.standalone.registry.protocol import REGISTRY_SERVICE
from micro_core.standalone.registry.server import RegistryEndpoints

OWN_DRIVER = "registry:service"


class RegistryComponent:
    """A registry for `registry:service`, which listens where that driver looks for it.

    Its records are those of the other registries that the settings name, or its own, in memory, where there is none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        address: str = "",
        say: Callable[[str], None],
        catalog: Catalog | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog if catalog is not None else Catalog.discover()
        self._listen_address = address
        self._say = say
        self._standing = Standing()
        self._facts: list[str] = []
        self.address = ""

    async def start(self) -> None:
        """Raises ConfigError, Conflict where the address is taken, and what the back end raises."""
        settings, catalog = self._settings, self._catalog
        check_tables(catalog, settings)
        context = process_context(settings)
        transport = JoinedTransport(
            [build(catalog, settings, entry, context) for entry in drivers_of(catalog, settings, Role.TRANSPORT)]
        )
        self._standing.add(transport.close)
        await transport.start()
        context = replace(context, transport=transport)
        entries = self._back_ends()

        def open_registry(network: str, site: str) -> Registry:
            own = replace(context, network=network, site=site)
            registries = [build(catalog, settings, entry, own) for entry in entries]
            return registries[0] if len(registries) == 1 else JoinedRegistry(registries, context.counters)

        endpoints = RegistryEndpoints(open_registry)
        self._standing.add(endpoints.close)
        service = Service(
            REGISTRY_SERVICE,
            registry=await endpoints.of(context.network, context.site),
            transport=transport,
            metadata=component_metadata(context.node_id, node_name(settings), context.site),
            address=self._listen_address or self._where_clients_look(),
            lease_s=settings.node.lease,
            counters=context.counters,
        )
        endpoints.add_to(service.server)
        self._standing.add(service.stop)
        await service.start()
        self.address = service.address
        self._facts = [
            f"registry of site {context.site}, network {context.network}",
            f"  records   {', '.join(entry.qualified for entry in entries)}",
            f"  calls at  {self.address}",
        ]

    async def stop(self) -> None:
        """Refuse new requests, finish those that run, end."""
        await self._standing.end()

    def introduction(self) -> list[str]:
        return self._facts

    def _back_ends(self) -> list[Entry]:
        named = self._catalog.select(self._settings.plugin_names, blocked=self._settings.node.block)
        chosen = [entry for entry in named if entry.role is Role.REGISTRY and entry.qualified != OWN_DRIVER]
        return chosen or self._catalog.builtin(Role.REGISTRY, ("memory",))

    def _where_clients_look(self) -> str:
        entry = self._catalog.find(OWN_DRIVER)
        options = build_options(ServiceRegistryOptions, self._settings.plugin_values(*entry.option_tables), entry.name)
        return options.address


class BrokerComponent:
    """The site's topics, for services, commands and proxies: they find it as `go.micro.broker`."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: str = "",
        say: Callable[[str], None],
        catalog: Catalog | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog if catalog is not None else Catalog.discover()
        self._listen_address = address
        self._say = say
        self._standing = Standing()
        self._facts: list[str] = []
        self.address = ""

    async def start(self) -> None:
        """Raises ConfigError, Conflict where the address is taken, Unreachable (the registry is away)."""
        runtime = await build_runtime(self._settings, catalog=self._catalog)
        self._standing.add(runtime.close)
        context = runtime.context
        host = BrokerHost(node_id=context.node_id, counters=context.counters, logger=context.logger)
        self._standing.add(host.close)
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
        self._standing.add(registration.close)
        await registration.start()
        self._facts = [f"broker of site {context.site}, network {context.network}", f"  topics at {self.address}"]

    async def stop(self) -> None:
        """Withdraw, send what is queued, end."""
        await self._standing.end()

    def introduction(self) -> list[str]:
        return self._facts
