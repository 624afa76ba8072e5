"""Shared code of the registry kit: test records, assertions that wait for records, and renewal of leases."""

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
from micro_core.testing.kit.watch_recorder import WatchRecorder

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
LONG_LEASE_S = 60.0
"""A lease that is longer than any check."""


class RegistryKit(Conformance[Registry]):
    """Class attributes and helper methods of the registry kit. The checks are in its subclasses."""

    role = Role.REGISTRY

    lease_s: ClassVar[float] = 1.0
    """The shortest lease in seconds that the back end handles precisely. Checks wait for several leases."""

    burst_changes: ClassVar[int] = 2_000
    """Number of changes that are made while a watcher does not read."""

    large_record_bytes: ClassVar[int] = 48_000
    """Approximate size of a record that the back end accepts and that is too large to be written in one step."""

    async def exercise(self, harness: Harness[Registry]) -> None:
        """Register, watch and deregister a record."""
        writer, reader = await harness.open(), await harness.open()
        recorder = await WatchRecorder(reader, None, self.timeout_s).start()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await recorder.wait_until(lambda: GREETER.id in recorder.records, "watchers receive CREATED for a new record")
        await self.expect_instances(reader, GREETER)
        await writer.deregister(GREETER)
        await recorder.wait_until(
            lambda: GREETER.id not in recorder.records, "watchers receive DELETED for a removed record"
        )
        await recorder.close()

    async def expect_instances(self, registry: Registry, *expected: Instance, service: str | None = None) -> None:
        """Wait until `instances` returns exactly these records."""
        found: list[Instance] = []

        async def is_expected() -> bool:
            found[:] = await registry.instances(service)
            return by_id(found) == by_id(expected) and len(found) == len(expected)

        try:
            await until(is_expected, self.timeout_s, "instances")
        except pytest.fail.Exception:
            assert by_id(found) == by_id(expected), "instances returns exactly the live records, each complete"
            assert len(found) == len(expected), "instances returns each record once"

    async def expect_watched(self, recorder: WatchRecorder, *expected: Instance) -> None:
        """Wait until the events of a watch add up to exactly these records."""
        clause = "the events of a watch add up to the live records"
        await recorder.wait_until(lambda: by_id(recorder.records.values()) == by_id(expected), clause)

    @asynccontextmanager
    async def watching(self, registry: Registry, service: str | None = None) -> AsyncIterator[WatchRecorder]:
        """Open a watch that is read continuously until the end of the block."""
        recorder = await WatchRecorder(registry, service, self.timeout_s).start()
        try:
            yield recorder
        finally:
            await recorder.cancel()
            await recorder.watch.close()

    async def replace_repeatedly(self, registry: Registry) -> None:
        """Replace a large record again and again for half a second."""
        end = time.monotonic() + 0.5
        for number in range(1, self.burst_changes):
            await registry.register(large_record(number, self.large_record_bytes), lease_s=LONG_LEASE_S)
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0)

    async def wait_for_a_lease(self, registry: Registry, lease_s: float) -> None:
        """Wait until a record that is not renewed has expired, so that a lease has passed on the clock of the back end."""
        unrenewed = replace(GREETER, service="go.micro.srv.unrenewed", id="unrenewed")
        await registry.register(unrenewed, lease_s=lease_s)

        async def has_expired() -> bool:
            return not await registry.instances(unrenewed.service)

        await until(has_expired, lease_s + 1 + self.timeout_s, "a record that is not renewed expires")


def by_id(instances: Iterable[Instance]) -> dict[str, Instance]:
    """Return instances by their id."""
    return {instance.id: instance for instance in instances}


def large_record(number: int, size_bytes: int) -> Instance:
    """Return a record of about this size that contains its number at the beginning and at the end."""
    values = dict.fromkeys((f"value-{index:02}" for index in range(size_bytes // 1_000)), str(number).rjust(1_000, "."))
    return replace(GREETER, metadata={"n": str(number), **values})


class Renewal:
    """Renews a record after every third of its lease, as a service does."""

    def __init__(self, registry: Registry, instance: Instance, lease_s: float) -> None:
        self.max_gap_s = 0.0
        """The longest time between two successful renewals."""
        self._registry = registry
        self._instance = instance
        self._lease_s = lease_s

    async def renew(self) -> None:
        """Register the record, and renew it until cancelled. Raises the error of the first registration."""
        await self._registry.register(self._instance, lease_s=self._lease_s)
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self._registry.register(self._instance, lease_s=self._lease_s)
            except Unreachable:
                # The back end is not available. Try again after the next interval.
                continue
            last, before = time.monotonic(), last
            self.max_gap_s = max(self.max_gap_s, last - before)


@asynccontextmanager
async def renewed(registry: Registry, instance: Instance, lease_s: float) -> AsyncIterator[Renewal]:
    """Keep a record registered until the end of the block."""
    renewal = Renewal(registry, instance, lease_s)
    task = asyncio.create_task(renewal.renew())
    try:
        yield renewal
        if task.done():
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
