"""Creates drivers with the options from the settings, without starting them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.builtin.transport.joined import JoinedTransport
from micro_core.config import Settings, build_options
from micro_core.contract.driver import Driver, DriverContext, Role
from micro_core.contract.registry import Registry
from micro_core.contract.transport import Transport
from micro_core.drivers.selection import drivers_of, hooks_of
from micro_core.plugins import Catalog, Entry, Hooks


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDrivers:
    """The drivers through which a process takes part in its site, created and not started."""

    transport: Transport
    registry: Registry
    registry_names: tuple[str, ...]
    """Qualified names of the registries that `registry` queries, e.g. `registry:local`."""
    context: DriverContext
    """The context for further drivers. It contains transport and registry."""


def build_site_drivers(catalog: Catalog, settings: Settings, context: DriverContext) -> SiteDrivers:
    """Create the transport and the registry that the settings select. Raises ConfigError or a subclass."""
    transport = build_transport(catalog, settings, context)
    context = replace(context, transport=transport)
    entries = drivers_of(catalog, settings, Role.REGISTRY)
    registry = build_registry(catalog, settings, entries, context)
    return SiteDrivers(
        transport=transport,
        registry=registry,
        registry_names=tuple(entry.qualified for entry in entries),
        context=replace(context, registry=registry),
    )


def build_transport(catalog: Catalog, settings: Settings, context: DriverContext) -> Transport:
    """Create the selected transports, joined into one that dials by the scheme of an address."""
    return JoinedTransport(build_all(catalog, settings, Role.TRANSPORT, context))


def build_registry(catalog: Catalog, settings: Settings, entries: Sequence[Entry], context: DriverContext) -> Registry:
    """Create the registries of `entries`, joined into one if there are several."""
    registries: list[Registry] = [build(catalog, settings, entry, context) for entry in entries]
    return registries[0] if len(registries) == 1 else JoinedRegistry(registries, context.counters)


def build_all(catalog: Catalog, settings: Settings, role: Role, context: DriverContext) -> list[Any]:
    """Create the selected drivers of `role`, in order."""
    return [build(catalog, settings, entry, context) for entry in drivers_of(catalog, settings, role)]


def build(catalog: Catalog, settings: Settings, entry: Entry, context: DriverContext) -> Any:
    """Create the object of one driver. Raises PluginBroken, OptionError."""
    return _create(catalog.load(entry), settings, entry, context)


def build_hooks(catalog: Catalog, settings: Settings, context: DriverContext) -> Hooks:
    """Create the cross-cutting plugins that the settings name. Raises PluginBroken, OptionError."""
    from micro_core.plugins.loading import check_hooks

    plugins: list[object] = []
    for entry in hooks_of(catalog, settings):
        loaded = catalog.load_hooks_of(entry)
        plugins.append(loaded.plugin)
        if loaded.driver is not None:
            plugins.append(check_hooks(entry, _create(loaded.driver, settings, entry, context)))
    return Hooks(plugins, context.counters)


def _create(driver: Driver[Any], settings: Settings, entry: Entry, context: DriverContext) -> Any:
    options: Any = build_options(driver.options, settings.plugin_values(*entry.option_tables), entry.name)
    logger = logging.getLogger(f"micro.{entry.qualified}")
    return driver.create(options, replace(context, logger=logger))
