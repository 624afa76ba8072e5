"""The drivers that the settings name, built and started: what a Client, a Service or a node stands on."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from micro_core.builtin.joined_registry import JoinedRegistry
from micro_core.builtin.joined_transport import JoinedTransport
from micro_core.builtin.system_clock import SystemClock
from micro_core.config import Settings, build_options, load_settings
from micro_core.plugins import Catalog, Entry
from micro_core.spec.broker import Broker
from micro_core.spec.driver import Counters, CountersInMemory, DriverContext, Role
from micro_core.spec.errors import ConfigError
from micro_core.spec.names import check_network_name, check_site
from micro_core.spec.registry import Registry
from micro_core.spec.transport import Transport

DEFAULT_WORDS: dict[Role, tuple[str, ...]] = {
    Role.REGISTRY: ("registry:local",),
    Role.TRANSPORT: ("transport:tcp", "transport:unix"),
    Role.BROKER: ("broker:node",),
    Role.TUNNEL: (),
    Role.TABLE: ("table:memory",),
    Role.RESOLVER: ("resolver:registry",),
}
"""What serves where no plugin of a role is named: all of it works with nothing installed."""


class Toolbox:
    """Settings and catalog together: picks and builds drivers. Nothing is imported before it is built."""

    def __init__(self, settings: Settings, catalog: Catalog | None = None, counters: Counters | None = None) -> None:
        self.settings = settings
        self.catalog = catalog if catalog is not None else Catalog.discover()
        self.counters: Counters = counters if counters is not None else CountersInMemory()
        node = settings.node
        self.chosen = self.catalog.select(node.plugins, blocked=node.block)
        self._check_tables()

    def entries(self, role: Role) -> list[Entry]:
        """The plugins of a role: those named, else the defaults; with the registry resolver always among them."""
        named = [entry for entry in self.chosen if entry.role is role]
        if role is Role.TABLE and len(named) > 1:
            raise ConfigError("a node has one route table", hint=f"choose one of {', '.join(e.name for e in named)}")
        defaults = self.catalog.select(DEFAULT_WORDS[role], blocked=self.settings.node.block)
        if role in (Role.TRANSPORT, Role.RESOLVER):
            return [*named, *(entry for entry in defaults if entry not in named)]
        return named or defaults

    def context(self, node_id: str) -> DriverContext:
        """What drivers are lent, before there is a registry or transport."""
        node = self.settings.node
        return DriverContext(
            node_id=node_id,
            network=check_network_name(node.network),
            site=check_site(node.site),
            state_dir=str(self.settings.state_dir()),
            clock=SystemClock(),
            random=random.SystemRandom(),
            logger=logging.getLogger("micro"),
            counters=self.counters,
        )

    def build(self, entry: Entry, context: DriverContext) -> Any:
        """The driver's object, with its options out of the settings. Raises PluginBroken, OptionError."""
        driver = self.catalog.load(entry)
        words = (entry.name, entry.qualified, entry.name + "_" + (entry.role.value if entry.role else ""))
        options: Any = build_options(driver.options, self.settings.plugin_values(*words), entry.name)
        return driver.create(options, context)

    def build_all(self, role: Role, context: DriverContext) -> list[Any]:
        return [self.build(entry, context) for entry in self.entries(role)]

    def transport(self, context: DriverContext) -> Transport:
        return JoinedTransport(self.build_all(Role.TRANSPORT, context))

    def registry(self, context: DriverContext) -> Registry:
        built: Sequence[Registry] = self.build_all(Role.REGISTRY, context)
        return built[0] if len(built) == 1 else JoinedRegistry(built, self.counters)

    def broker(self, context: DriverContext) -> Broker:
        """One broker: the first that is named."""
        entries = self.entries(Role.BROKER)
        if len(entries) > 1:
            raise ConfigError("a site has one broker", hint=f"choose one of {', '.join(e.name for e in entries)}")
        broker: Broker = self.build(entries[0], context)
        return broker

    def _check_tables(self) -> None:
        for word in self.settings.plugin_tables():
            if not any(entry.answers_to(word) for entry in self.catalog.entries):
                self.catalog.find(word)


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Started drivers, and what else the settings say."""

    registry: Registry
    transport: Transport
    broker: Broker | None
    proxy: str
    site: str
    settings: Any

    async def close(self) -> None:
        """Close the drivers."""
        if self.broker is not None:
            await self.broker.close()
        await self.registry.close()
        await self.transport.close()


async def build_runtime(settings: Any = None) -> Runtime:
    """Load settings (unless given), build the drivers they name, start them. Raises ConfigError, Unreachable."""
    chosen: Settings = settings if settings is not None else load_settings()
    # Reading distributions' metadata and a settings file: a few milliseconds of blocking, off the loop.
    toolbox = await asyncio.to_thread(Toolbox, chosen)
    context = toolbox.context(f"client-{secrets.token_hex(8)}")
    transport, registry = toolbox.transport(context), toolbox.registry(context)
    broker = toolbox.broker(replace(context, registry=registry, transport=transport))
    runtime = Runtime(
        registry=registry,
        transport=transport,
        broker=broker,
        proxy=chosen.node.proxy,
        site=chosen.node.site,
        settings=chosen,
    )
    try:
        await transport.start()
        await registry.start()
        await broker.start()
    except BaseException:
        await runtime.close()
        raise
    return runtime
