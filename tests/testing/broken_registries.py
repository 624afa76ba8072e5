"""Registries that each violate one clause of the contract, derived from a correct one."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.contract import (
    Driver,
    DriverContext,
    Instance,
    NoOptions,
    Registry,
    RegistryEvent,
    RegistryEventKind,
    RegistryWatch,
    Unreachable,
)
from micro_core.testing import DriverUnderTest, Faults, RegistryConformance


class Correct(MemoryRegistry):
    """Fulfils the contract. Its `back_end` can be unavailable or contain garbage."""

    back_end: BackEnd

    async def instances(self, service: str | None = None) -> list[Instance]:
        self.back_end.check()
        if self.back_end.has_garbage:
            self.drop()
        return await super().instances(service)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        self.back_end.check()
        await super().register(instance, lease_s=lease_s)

    def drop(self) -> None:
        self._context.counters.add("registry_garbage")


class BackEnd(Faults):
    def __init__(self) -> None:
        self.is_available = True
        self.has_garbage = False
        self.ends: dict[str, float] = {}

    def check(self) -> None:
        if not self.is_available:
            raise Unreachable("the back end is not available")

    async def kill(self) -> None:
        self.is_available = False

    async def restart(self) -> None:
        self.is_available = True

    async def wipe(self) -> None:
        self.is_available = True

    async def garbage(self, context: DriverContext) -> None:
        self.has_garbage = True


class Watch:
    """A watch whose events are filtered by `change`."""

    def __init__(self, watch: RegistryWatch, change: Callable[[Any], AsyncIterator[RegistryEvent]]) -> None:
        self._watch = watch
        self._change = change

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        return self._change(self._watch)

    async def close(self) -> None:
        await self._watch.close()


class ListsOnlyThreeInstances(Correct):
    async def instances(self, service: str | None = None) -> list[Instance]:
        return (await super().instances(service))[:3]


class Reorders(Correct):
    async def watch(self, service: str | None = None) -> RegistryWatch:
        async def swapped(watch: Any) -> AsyncIterator[RegistryEvent]:
            delayed: RegistryEvent | None = None
            async for event in watch:
                if event.kind is not RegistryEventKind.UPDATED:
                    yield event
                elif delayed is None:
                    delayed = event
                else:
                    yield event
                    yield delayed
                    delayed = None

        return Watch(await super().watch(service), swapped)


class RestoresDeregisteredRecords(Correct):
    async def deregister(self, instance: Instance) -> None:
        await super().deregister(instance)
        asyncio.get_running_loop().call_later(0.1, self._restore, instance)

    def _restore(self, instance: Instance) -> None:
        if self._hub is not None:
            self._hub.put(instance, lease_s=60, owner=self)


class LeaksTask(Correct):
    async def start(self) -> None:
        await super().start()
        self.task = asyncio.create_task(asyncio.Event().wait(), name="leaked")


class LeaksFile(Correct):
    async def start(self) -> None:
        await super().start()
        self.file = open("/dev/null")  # noqa: SIM115, ASYNC230, PTH123 - the violation: it stays open
        _kept.append(self.file)


_kept: list[Any] = []


class BlocksEventLoop(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - the violation: it blocks
        await super().register(instance, lease_s=lease_s)


class StartsTaskInCreate(Correct):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.task = asyncio.get_running_loop().create_task(asyncio.sleep(0))


class NeverExpiresRecords(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=60)


class ExpiresRecordsEarly(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=lease_s / 3)


class ReportsEveryRenewal(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=lease_s)
        assert self._hub is not None
        self._hub._publish([RegistryEvent(kind=RegistryEventKind.UPDATED, instance=instance)])


class MixesSites(Correct):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(replace(context, site="everywhere"))


class LosesMetadata(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(replace(instance, metadata={}), lease_s=lease_s)


class WritesRecordsInTwoHalves(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        metadata = dict(list(instance.metadata.items())[: len(instance.metadata) // 2])
        await super().register(replace(instance, metadata=metadata), lease_s=lease_s)
        await asyncio.sleep(0)
        await super().register(instance, lease_s=lease_s)


class RemovesBeforeReplacing(Correct):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().deregister(instance)
        await asyncio.sleep(0)
        await super().register(instance, lease_s=lease_s)


class SharesMonotonicTime(Correct):
    """Stores the end of a lease as `now()` of the writer, which other processes cannot interpret."""

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        self.back_end.ends[instance.id] = self._context.clock.now() + lease_s
        await super().register(instance, lease_s=60)

    async def instances(self, service: str | None = None) -> list[Instance]:
        now = self._context.clock.now()
        return [each for each in await super().instances(service) if self.back_end.ends[each.id] > now]


class KeepsRecordsAfterClose(Correct):
    async def close(self) -> None:
        self._hub = None


class KeepsWatchesOpenAfterClose(Correct):
    async def close(self) -> None:
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.remove_owned(self)
            hub.detach(self._watches)


class HangsDuringOutage(Correct):
    async def instances(self, service: str | None = None) -> list[Instance]:
        while not self.back_end.is_available:
            await asyncio.sleep(0.01)
        return await super().instances(service)


class RaisesOnGarbage(Correct):
    async def instances(self, service: str | None = None) -> list[Instance]:
        if self.back_end.has_garbage:
            raise ValueError("not JSON")
        return await super().instances(service)


class DoesNotCountGarbage(Correct):
    """Drops garbage without counting it."""

    def drop(self) -> None:
        """Count nothing."""


class Kit(RegistryConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    lease_s = 0.4
    timeout_s = 1.0  # short, because broken drivers never do what is awaited
    capabilities: frozenset[str] = frozenset()

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        back_end = BackEnd()

        def create(_options: NoOptions, context: DriverContext) -> Registry:
            registry = self.driver_class(context)
            registry.back_end = back_end
            return registry

        driver: Driver[Registry] = Driver(
            name="broken", summary="A driver that violates the contract.", options=NoOptions, create=create
        )
        return DriverUnderTest(driver=dataclasses.replace(driver, capabilities=self.capabilities), faults=back_end)


class TestCorrect(Kit):
    driver_class = Correct
    timeout_s = 10.0


class TestListsOnlyThreeInstances(Kit):
    driver_class = ListsOnlyThreeInstances


class TestReorders(Kit):
    driver_class = Reorders


class TestRestoresDeregisteredRecords(Kit):
    driver_class = RestoresDeregisteredRecords


class TestLeaksTask(Kit):
    driver_class = LeaksTask


class TestLeaksFile(Kit):
    driver_class = LeaksFile


class TestBlocksEventLoop(Kit):
    driver_class = BlocksEventLoop


class TestStartsTaskInCreate(Kit):
    driver_class = StartsTaskInCreate


class TestNeverExpiresRecords(Kit):
    driver_class = NeverExpiresRecords


class TestExpiresRecordsEarly(Kit):
    driver_class = ExpiresRecordsEarly


class TestReportsEveryRenewal(Kit):
    driver_class = ReportsEveryRenewal


class TestMixesSites(Kit):
    driver_class = MixesSites


class TestLosesMetadata(Kit):
    driver_class = LosesMetadata


class TestWritesRecordsInTwoHalves(Kit):
    driver_class = WritesRecordsInTwoHalves


class TestRemovesBeforeReplacing(Kit):
    driver_class = RemovesBeforeReplacing


class TestSharesMonotonicTime(Kit):
    driver_class = SharesMonotonicTime


class TestKeepsRecordsAfterClose(Kit):
    driver_class = KeepsRecordsAfterClose


class TestKeepsWatchesOpenAfterClose(Kit):
    driver_class = KeepsWatchesOpenAfterClose


class TestHangsDuringOutage(Kit):
    driver_class = HangsDuringOutage


class TestRaisesOnGarbage(Kit):
    driver_class = RaisesOnGarbage


class TestDoesNotCountGarbage(Kit):
    driver_class = DoesNotCountGarbage


class TestDeclaresMisspelledCapability(Kit):
    driver_class = Correct
    capabilities = frozenset({"wacth"})
