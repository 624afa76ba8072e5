"""What the parts of the registry's kit share: records, ways to wait for them, services that renew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import ClassVar

import pytest

from micro_core.contract import Endpoint, EndpointKind, Instance, Registry, RegistryEventKind, Role, Unreachable
from micro_core.testing.kit.conformance import Conformance
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until
from micro_core.testing.kit.watch_recorder import Follower

CREATED, UPDATED, DELETED = RegistryEventKind.CREATED, RegistryEventKind.UPDATED, RegistryEventKind.DELETED

GREETER = Instance(
    service="go.micro.srv.greeter",
    id="greeter-1",
    address="tcp://127.0.0.1:4001",
    version="1.2",
    metadata={"zone": "a", "ключ": "värde"},
    endpoints=(
        Endpoint(name="Say.Hello", request={"type": "object"}, response={"type": "object"}, idempotent=True),
        Endpoint(name="orders.created", kind=EndpointKind.SUBSCRIBER, queue="workers", description="Counts orders."),
    ),
)
OTHER = replace(GREETER, service="go.micro.srv.other", id="other-1")
LONG_S = 60.0
"""A lease that does not end while a part runs."""


class RegistryKit(Conformance[Registry]):
    """Attributes and helpers; the parts are in the classes that inherit it."""

    role = Role.REGISTRY

    lease_s: ClassVar[float] = 1.0
    """The shortest lease that the back end keeps well; parts wait for several of them."""

    changes_in_a_storm: ClassVar[int] = 2_000
    """Changes made while a watcher does not read."""

    large_record_bytes: ClassVar[int] = 48_000
    """A record that the back end takes, and that is not written in one moment."""

    async def exercise(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        follower = await Follower(reader, None, self.patience_s).start()
        await writer.register(GREETER, lease_s=LONG_S)
        await follower.heard(lambda: GREETER.id in follower.standing, "watchers hear of a new record")
        await self.stands(reader, GREETER)
        await writer.deregister(GREETER)
        await follower.heard(lambda: GREETER.id not in follower.standing, "watchers hear that a record is gone")
        await follower.close()

    async def stands(self, registry: Registry, *expected: Instance, service: str | None = None) -> None:
        """Wait until exactly these records stand."""
        found: list[Instance] = []

        async def look() -> bool:
            found[:] = await registry.instances(service)
            return by_id(found) == by_id(expected) and len(found) == len(expected)

        try:
            await until(look, self.patience_s, "instances")
        except pytest.fail.Exception:
            assert by_id(found) == by_id(expected), "instances returns the live records, each whole and once"
            assert len(found) == len(expected), "instances returns each record once"

    async def shows(self, follower: Follower, *expected: Instance) -> None:
        """Wait until a watcher was told that exactly these records stand."""
        clause = "watchers learn what stands, and of nothing else"
        await follower.heard(lambda: by_id(follower.standing.values()) == by_id(expected), clause)

    @asynccontextmanager
    async def following(self, registry: Registry, service: str | None = None) -> AsyncIterator[Follower]:
        """A watcher that reads all the time."""
        follower = await Follower(registry, service, self.patience_s).start()
        try:
            yield follower
        finally:
            await follower.cancel()
            await follower.watch.close()

    async def replace_often(self, registry: Registry) -> None:
        """Replace a large record by the next one, for half a second."""
        end = time.monotonic() + 0.5
        for number in range(1, self.changes_in_a_storm):
            await registry.register(large_record(number, self.large_record_bytes), lease_s=LONG_S)
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0)

    async def a_mayfly_passes(self, registry: Registry, lease_s: float) -> None:
        """Let one lease go by, by the back end's own time: a record is registered, never renewed, and goes."""
        mayfly = replace(GREETER, service="go.micro.srv.mayfly", id="mayfly")
        await registry.register(mayfly, lease_s=lease_s)

        async def is_gone() -> bool:
            return not await registry.instances(mayfly.service)

        await until(is_gone, lease_s + 1 + self.patience_s, "a record that is not renewed disappears")


def by_id(instances: Iterable[Instance]) -> dict[str, Instance]:
    """Instances by their id."""
    return {instance.id: instance for instance in instances}


def large_record(number: int, size_bytes: int) -> Instance:
    """A record of about this size that has its number at the beginning and at the end."""
    values = dict.fromkeys((f"part-{place:02}" for place in range(size_bytes // 1_000)), str(number).rjust(1_000, "."))
    return replace(GREETER, metadata={"n": str(number), **values})


class Renewal:
    """A record that is kept registered, as a service keeps its own: at a third of its lease."""

    def __init__(self, registry: Registry, instance: Instance, lease_s: float) -> None:
        self.longest_gap_s = 0.0
        """The longest time between two renewals that were taken."""
        self._registry = registry
        self._instance = instance
        self._lease_s = lease_s

    async def renew(self) -> None:
        """Once, and then for ever."""
        await self._registry.register(self._instance, lease_s=self._lease_s)
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self._registry.register(self._instance, lease_s=self._lease_s)
            except Unreachable:
                # The back end is away; the next round tries again.
                continue
            last, before = time.monotonic(), last
            self.longest_gap_s = max(self.longest_gap_s, last - before)


@asynccontextmanager
async def renewed(registry: Registry, instance: Instance, lease_s: float) -> AsyncIterator[Renewal]:
    """Keep a record registered meanwhile."""
    renewal = Renewal(registry, instance, lease_s)
    task = asyncio.create_task(renewal.renew())
    try:
        yield renewal
        if task.done():
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
