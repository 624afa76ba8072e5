"""Comparison of the routes of a router with a registry that changes during the comparison."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.driver import CountersInMemory, DriverContext
from micro_core.contract.registry import Instance
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.routing.router import Router

OLD = Instance(service="old", id="old-1", address="tcp://127.0.0.1:1")
NEW = Instance(service="new", id="new-1", address="tcp://127.0.0.1:2")


class SlowRegistry(MemoryRegistry):
    """A registry whose responses are computed at once and returned when `may_return` is set."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def instances(self, service: str | None = None) -> Any:
        found = await super().instances(service)
        await self.may_return.wait()
        return found


async def test_comparison_does_not_undo_changes_reported_during_the_read() -> None:
    counters, logger = CountersInMemory(), logging.getLogger("test")
    context = DriverContext(
        node_id="n" * 32,
        network=f"net-{random.random()}",
        site="eu",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logger,
        counters=counters,
    )
    registry, elsewhere = SlowRegistry(context), MemoryRegistry(context)
    for one in (registry, elsewhere):
        await one.start()
    await elsewhere.register(OLD, lease_s=30)
    router = Router(
        network=context.network,
        site=context.site,
        table=MemoryTable(logger=logger, counters=counters),
        environment=Environment.from_context(context),
        incarnation=1,
    )
    await router.start(registry)
    async with asyncio.timeout(10):
        registry.may_return.clear()
        comparing = asyncio.ensure_future(router._reconcile(registry))
        await asyncio.sleep(0)
        await elsewhere.register(NEW, lease_s=30)
        await elsewhere.deregister(OLD)
        while router.services() != ["new"]:
            await asyncio.sleep(0)
        registry.may_return.set()
        await comparing
    assert router.services() == ["new"]
    await router.close()
    for one in (registry, elsewhere):
        await one.close()
