"""`micro registry`: the registry of a site as a process of its own."""

from __future__ import annotations

from dataclasses import replace

from micro_core.config import build_options
from micro_core.contract.driver import Role
from micro_core.contract.names import REGISTRY_SERVICE
from micro_core.contract.registry import Registry
from micro_core.drivers.construction import build_registry, build_transport
from micro_core.drivers.runtime import process_context
from micro_core.drivers.selection import check_tables
from micro_core.node.assembly import node_name
from micro_core.plugins import Entry
from micro_core.rpc.service import Service
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import component_metadata
from micro_core.standalone.registry.client import ServiceRegistryOptions
from micro_core.standalone.registry.server import RegistryEndpoints

OWN_DRIVER = "registry:service"
"""The driver with which other processes use this registry."""


class RegistryComponent(Component):
    """A registry for the driver `registry:service`. By default it listens at the address in the options of that driver.

    The records are stored in the other registries that the settings name, or else in memory.
    """

    async def start(self) -> None:
        """Start the registry.

        Raises:
            ConfigError: the settings are invalid.
            Conflict: the address is in use.
        """
        settings, catalog = self._settings, self._catalog
        check_tables(catalog, settings)
        context = process_context(settings, counters=self._counters)
        transport = build_transport(catalog, settings, context)
        self._close_later(transport.close)
        await transport.start()
        context = replace(context, transport=transport)
        entries = self._storage_entries()

        def open_registry(network: str, site: str) -> Registry:
            return build_registry(catalog, settings, entries, replace(context, network=network, site=site))

        endpoints = RegistryEndpoints(open_registry)
        self._close_later(endpoints.close)
        service = Service(
            REGISTRY_SERVICE,
            registry=await endpoints.of(context.network, context.site),
            transport=transport,
            metadata=component_metadata(context.node_id, node_name(settings), context.site),
            address=self._listen_address or self._default_address(),
            lease_s=settings.node.lease,
            counters=context.counters,
        )
        endpoints.add_to(service.server)
        self._close_later(service.stop)
        await service.start()
        self.address = service.address
        self.introduction = [
            f"registry of site {context.site}, network {context.network}",
            f"  records   {', '.join(entry.qualified for entry in entries)}",
            f"  calls     {self.address}",
        ]

    def _storage_entries(self) -> list[Entry]:
        named = self._catalog.select(self._settings.plugin_names, blocked=self._settings.node.block)
        chosen = [entry for entry in named if entry.role is Role.REGISTRY and entry.qualified != OWN_DRIVER]
        return chosen or self._catalog.builtin(Role.REGISTRY, ("memory",))

    def _default_address(self) -> str:
        entry = self._catalog.find(OWN_DRIVER)
        options = build_options(ServiceRegistryOptions, self._settings.plugin_values(*entry.option_tables), entry.name)
        return options.address
