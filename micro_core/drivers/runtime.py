"""Starts the drivers that the settings select, for a Client, a Service or a standalone component."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from micro_core.config import Settings, load_settings
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, DriverContext, Role
from micro_core.contract.registry import Registry
from micro_core.contract.transport import Transport
from micro_core.drivers.construction import build, build_hooks, build_site_drivers
from micro_core.drivers.selection import check_tables, drivers_of
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.plugins import Catalog, Hooks


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Started drivers and the settings they come from. The broker is created when it is first used."""

    settings: Settings
    catalog: Catalog
    context: DriverContext
    registry: Registry
    transport: Transport
    registries: tuple[str, ...] = ()
    """Qualified names of the registries that `registry` queries, e.g. `registry:local`."""
    broker: Broker | None = None
    hooks: Hooks = field(default_factory=Hooks)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def proxy(self) -> str:
        """Service or address of the node through which calls go, or empty."""
        return self.settings.node.proxy

    async def open_broker(self) -> Broker:
        """Return the selected broker, started. Raises ConfigError, Unreachable."""
        async with self._opening:
            if self.broker is None:
                entries = drivers_of(self.catalog, self.settings, Role.BROKER)
                broker: Broker = build(self.catalog, self.settings, entries[0], self.context)
                try:
                    await broker.start()
                except BaseException:
                    await broker.close()
                    raise
                self.broker = broker
            return self.broker

    def interceptors(self, side: str) -> list[Callable[..., Any]]:
        """Return the interceptors of the cross-cutting plugins for calls on `side` ("client" or "server")."""
        return self.hooks.interceptors(side)

    async def close(self) -> None:
        """Close the drivers. Safe to call twice."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.transport.close)
            stack.push_async_callback(self.registry.close)
            if self.broker is not None:
                stack.push_async_callback(self.broker.close)


async def build_runtime(
    settings: Settings | None = None,
    *,
    catalog: Catalog | None = None,
    counters: CountersInMemory | None = None,
    starts_registry: bool = True,
) -> Runtime:
    """Create and start transport and registry. The drivers count with `counters`.

    With `starts_registry=False` the registry is not started, for calls to a given address: they work while its server
    does not answer.

    Raises:
        ConfigError: or a subclass, if the settings or a plugin are invalid.
        Unreachable: the registry does not answer.
    """
    settings = settings if settings is not None else load_settings()
    catalog = catalog if catalog is not None else Catalog.discover()
    check_tables(catalog, settings)
    drivers = build_site_drivers(catalog, settings, process_context(settings, counters=counters))
    hooks = build_hooks(catalog, settings, drivers.context)
    async with AsyncExitStack() as stack:
        # Close also after a failed start, which may have opened something.
        stack.push_async_callback(drivers.transport.close)
        await drivers.transport.start()
        stack.push_async_callback(drivers.registry.close)
        if starts_registry:
            await drivers.registry.start()
        stack.pop_all()
    return Runtime(
        settings=settings,
        catalog=catalog,
        context=drivers.context,
        registry=drivers.registry,
        registries=drivers.registry_names,
        transport=drivers.transport,
        hooks=hooks,
    )


def process_context(settings: Settings, *, counters: CountersInMemory | None = None) -> DriverContext:
    """Return the context for the drivers of a process that is not a node."""
    return DriverContext(
        # It has the form of a node id. No node has this id, because there is no key for it.
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
    """Return the interceptors of the plugins, which are the outer ones, followed by those of the program."""
    return (*(runtime.interceptors(side) if runtime is not None else ()), *own)
