"""Routing messages over sessions: a router that restarts while its link is open receives the full table."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import CountersInMemory, DriverContext, Instance, LinkEvent
from micro_core.contract.registry import RegistryWatch
from micro_core.contract.table import NETWORK_LINK
from micro_core.contract.watching import WatchSet
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.network import adverts as module
from micro_core.network.adverts import Adverts
from micro_core.routing.router import Router
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost

TIMEOUT_S = 10.0
LOG = logging.getLogger("test")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Site:
    """A tunnel that stays open, and routers on top of it that start and stop."""

    name: str
    tunnel: TunnelHost
    counters: CountersInMemory
    starts: int = 0
    services: tuple[str, ...] = ()
    adverts: Adverts | None = None

    def handle_link_event(self, event: LinkEvent) -> None:
        if self.adverts is not None:
            self.adverts.handle_link_event(event)

    async def start(self) -> None:
        self.starts += 1
        self.table = MemoryTable(logger=LOG, counters=self.counters)
        environment = Environment(
            node_id=self.tunnel.node_id,
            clock=SystemClock(),
            random=random.Random(self.starts),
            logger=LOG,
            counters=self.counters,
        )
        self.router = Router(
            network="go.micro",
            site=self.name,
            table=self.table,
            environment=environment,
            incarnation=self.starts * 1_000_000,
        )
        self.adverts = Adverts(tunnel=self.tunnel, router=self.router, environment=environment)
        self.router.set_sender(self.adverts.send)
        # In the order of `micro router`: the first advert then contains the full table.
        await self.router.start(Records(self.services))  # type: ignore[arg-type]  # the methods that a router calls
        self.adverts.start()

    async def stop(self) -> None:
        assert self.adverts is not None
        await self.adverts.close()
        await self.router.close()

    def has_route(self, service: str) -> bool:
        return any(route.link == NETWORK_LINK for route in self.router.lookup(service))


class Records:
    """The read methods of a registry."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._instances = [Instance(service=name, id=f"{name}-1", address="tcp://127.0.0.1:1") for name in services]

    async def instances(self) -> list[Instance]:
        return self._instances

    async def watch(self) -> RegistryWatch:
        return WatchSet().open(None, self._instances)


async def make(name: str) -> Site:
    counters = CountersInMemory()
    context = DriverContext(
        node_id=name,
        network="go.micro",
        site=name,
        state_dir="",
        clock=SystemClock(),
        random=random.Random(name),
        logger=LOG,
        counters=counters,
    )
    tunnel = TunnelHost(
        identity=NodeIdentity.from_private_bytes(name.encode().ljust(32, b"\0")),
        name=name,
        site=name,
        network="go.micro",
        token="secret",
        listeners=[(MemoryTunnel(MemoryTunnelOptions(), context), f"adverts-{name}")],
        environment=Environment.from_context(context),
        incarnation=1,
    )
    await tunnel.connect()
    site = Site(name, tunnel, counters, services=(f"service.of.{name}",))
    tunnel.set_event_handler(site.handle_link_event)
    return site


@pytest.fixture
async def sites(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Site, Site]]:
    monkeypatch.setattr(module, "INITIAL_REOPEN_DELAY_S", 0.02)
    eu, us = await make("eu"), await make("us")
    yield eu, us
    for site in (eu, us):
        if site.starts:
            await site.stop()
        await site.tunnel.close()


async def test_router_started_after_its_link_exchanges_full_tables(sites: tuple[Site, Site]) -> None:
    eu, us = sites
    await us.start()
    await eu.tunnel.link_to("memory://adverts-us")
    # The channel has no listener at eu yet, so us opens its session again and again.
    await until(lambda: us.counters.values.get("network_adverts_reopened", 0) > 0)
    await eu.start()
    await until(lambda: eu.has_route("service.of.us") and us.has_route("service.of.eu"))


async def test_restarted_router_receives_the_full_table_and_its_routes_have_no_gap(sites: tuple[Site, Site]) -> None:
    eu, us = sites
    await us.start()
    await eu.start()
    await eu.tunnel.link_to("memory://adverts-us")
    await until(lambda: eu.has_route("service.of.us") and us.has_route("service.of.eu"))
    gaps = 0

    async def sample() -> None:
        nonlocal gaps
        while True:
            gaps += not us.has_route("service.of.eu")
            await asyncio.sleep(0)

    sampling = asyncio.get_running_loop().create_task(sample())
    reopened = us.counters.values.get("network_adverts_reopened", 0)
    await eu.stop()
    await eu.start()
    await until(lambda: eu.has_route("service.of.us"))
    await until(lambda: us.counters.values.get("network_adverts_reopened", 0) > reopened)
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    assert gaps == 0, "the service of eu and the route to it existed all the time"
    assert us.has_route("service.of.eu")


async def test_both_routers_may_restart_at_once(sites: tuple[Site, Site]) -> None:
    eu, us = sites
    await us.start()
    await eu.start()
    await eu.tunnel.link_to("memory://adverts-us")
    await until(lambda: eu.has_route("service.of.us") and us.has_route("service.of.eu"))
    await eu.stop()
    await us.stop()
    await eu.start()
    await us.start()
    await until(lambda: eu.has_route("service.of.us") and us.has_route("service.of.eu"))


async def test_end_of_a_link_removes_the_routes_through_it(sites: tuple[Site, Site]) -> None:
    eu, us = sites
    await us.start()
    await eu.start()
    await eu.tunnel.link_to("memory://adverts-us")
    await until(lambda: eu.has_route("service.of.us"))
    await eu.tunnel.unlink(us.tunnel.node_id)
    await until(lambda: not eu.has_route("service.of.us") and not us.has_route("service.of.eu"))
    await eu.tunnel.link_to("memory://adverts-us")
    await until(lambda: eu.has_route("service.of.us") and us.has_route("service.of.eu"))
