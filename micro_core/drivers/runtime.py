"""The drivers that the settings name, built and started: what a Client or Service without arguments stands on.

A driver that is named in `plugins` takes the place of its role's default. Transports and resolvers are added to it
instead, unless blocked: an address of either kind can then be dialled, and nodes of one site find each other.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.builtin.transport.joined import JoinedTransport
from micro_core.config import Settings, build_options, load_settings
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, Driver, DriverContext, Role
from micro_core.contract.errors import ConfigError
from micro_core.contract.registry import Registry
from micro_core.contract.transport import Transport
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.plugins import Catalog, Entry, Hooks

DEFAULTS: dict[Role, tuple[str, ...]] = {
    Role.REGISTRY: ("local",),
    # Both, so that an address of either kind can be dialled; services listen on the first.
    Role.TRANSPORT: ("tcp", "unix"),
    Role.BROKER: ("node",),
    Role.TUNNEL: (),
    Role.TABLE: ("memory",),
    Role.RESOLVER: ("registry",),
}
"""What serves where nothing of a role is named: all of it works with nothing installed."""

SEVERAL = (Role.TRANSPORT, Role.RESOLVER)
"""Roles whose defaults stand beside what is named."""


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Started drivers, and the settings they come from. The broker is built when it is first wanted."""

    settings: Settings
    catalog: Catalog
    context: DriverContext
    registry: Registry
    transport: Transport
    registries: tuple[str, ...] = ()
    """What `registry` asks, as people name it: `registry:local`."""
    broker: Broker | None = None
    hooks: Hooks = field(default_factory=Hooks)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def proxy(self) -> str:
        """The node through which calls go; empty for none."""
        return self.settings.node.proxy

    async def open_broker(self) -> Broker:
        """The settings' broker, started. Raises ConfigError, Unreachable."""
        async with self._opening:
            if self.broker is None:
                entries = drivers_of(self.catalog, self.settings, Role.BROKER)
                broker: Broker = build(self.catalog, self.settings, entries[0], self.context)
                await broker.start()
                self.broker = broker
            return self.broker

    def interceptors(self, side: str) -> list[Callable[..., Any]]:
        """What the cross-cutting plugins in use put round every call on `side` ("client" or "server")."""
        return self.hooks.interceptors(side)

    async def close(self) -> None:
        """Close the drivers. Safe to call twice."""
        if self.broker is not None:
            await self.broker.close()
        await self.registry.close()
        await self.transport.close()


async def build_runtime(settings: Settings | None = None, *, catalog: Catalog | None = None) -> Runtime:
    """Build and start registry and transport. Raises ConfigError and its kind, Unreachable."""
    settings = settings if settings is not None else load_settings()
    catalog = catalog if catalog is not None else Catalog.discover()
    check_tables(catalog, settings)
    context = process_context(settings)
    transport = JoinedTransport(
        [build(catalog, settings, entry, context) for entry in drivers_of(catalog, settings, Role.TRANSPORT)]
    )
    context = replace(context, transport=transport)
    entries = drivers_of(catalog, settings, Role.REGISTRY)
    registries: list[Registry] = [build(catalog, settings, entry, context) for entry in entries]
    registry = registries[0] if len(registries) == 1 else JoinedRegistry(registries, context.counters)
    context = replace(context, registry=registry)
    hooks = build_hooks(catalog, settings, context)
    await transport.start()
    try:
        await registry.start()
    except BaseException:
        await transport.close()
        raise
    return Runtime(
        settings=settings,
        catalog=catalog,
        context=context,
        registry=registry,
        registries=tuple(entry.qualified for entry in entries),
        transport=transport,
        hooks=hooks,
    )


def drivers_of(catalog: Catalog, settings: Settings, role: Role) -> list[Entry]:
    """The drivers of `role` that the settings mean, in order. Raises PluginMissing, PluginAmbiguous, ConfigError."""
    blocked = settings.node.block
    named = [entry for entry in catalog.select(settings.plugin_names, blocked=blocked) if entry.role is role]
    if len(named) > 1 and role in (Role.TABLE, Role.BROKER):
        names = ", ".join(entry.name for entry in named)
        raise ConfigError(f"several drivers are named for the role {role.value}: {names}", hint="name one")
    if named and role not in SEVERAL:
        return named
    defaults = catalog.builtin(role, DEFAULTS[role], blocked=blocked)
    found = list(dict.fromkeys([*named, *defaults]))
    if not found and role not in (Role.TUNNEL, Role.RESOLVER):
        raise ConfigError(f"every driver for the role {role.value} is blocked", hint="take one -p no:NAME away")
    return found


def check_tables(catalog: Catalog, settings: Settings) -> None:
    """Raise PluginMissing for a [plugins.NAME] whose plugin is not there: its options would be lost in silence."""
    for word in settings.plugin_tables():
        if not any(entry.has_name(word) for entry in catalog.entries):
            catalog.find(word)


def build(catalog: Catalog, settings: Settings, entry: Entry, context: DriverContext) -> Any:
    """The driver's object, built and not started. Raises PluginBroken, OptionError."""
    return _created(catalog.load(entry), settings, entry, context)


def _created(driver: Driver[Any], settings: Settings, entry: Entry, context: DriverContext) -> Any:
    options: Any = build_options(driver.options, settings.plugin_values(*entry.option_tables), entry.name)
    logger = logging.getLogger(f"micro.{entry.qualified}")
    return driver.create(options, replace(context, logger=logger))


def hooks_of(catalog: Catalog, settings: Settings) -> list[Entry]:
    """The cross-cutting plugins that the settings name, in order. Raises PluginMissing, PluginAmbiguous."""
    named = catalog.select(settings.plugin_names, blocked=settings.node.block)
    return [entry for entry in named if entry.role is None]


def build_hooks(catalog: Catalog, settings: Settings, context: DriverContext) -> Hooks:
    """The cross-cutting plugins that the settings name, built with their options. Raises PluginBroken, OptionError."""
    from micro_core.plugins.loading import check_hooks

    plugins: list[object] = []
    for entry in hooks_of(catalog, settings):
        loaded = catalog.load_hooks_of(entry)
        plugins.append(loaded.plugin)
        if loaded.driver is not None:
            plugins.append(check_hooks(entry, _created(loaded.driver, settings, entry, context)))
    return Hooks(plugins, context.counters)


def process_context(settings: Settings, *, counters: CountersInMemory | None = None) -> DriverContext:
    """What drivers of a process that is not a node are lent."""
    return DriverContext(
        # The shape of a node's id, and never one: nobody holds its key.
        node_id=base64.b32encode(secrets.token_bytes(20)).decode().lower(),
        network=settings.node.network,
        site=settings.node.site,
        state_dir=str(settings.state_dir()),
        clock=SystemClock(),
        random=random.Random(),  # noqa: S311 - jitter
        logger=logging.getLogger("micro"),
        counters=counters if counters is not None else CountersInMemory(),
    )


def joined_interceptors(runtime: Runtime | None, side: str, own: Sequence[Any]) -> tuple[Any, ...]:
    """The hooks' interceptors outside, the program's own inside."""
    return (*(runtime.interceptors(side) if runtime is not None else ()), *own)
