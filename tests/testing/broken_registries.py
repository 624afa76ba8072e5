"""Registries that break one promise each, made from one that keeps them all."""

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


class Sound(MemoryRegistry):
    """Keeps every promise; `back_end` can be away or hold garbage."""

    back_end: BackEnd

    async def instances(self, service: str | None = None) -> list[Instance]:
        self.back_end.check()
        if self.back_end.holds_garbage:
            self.drop()
        return await super().instances(service)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        self.back_end.check()
        await super().register(instance, lease_s=lease_s)

    def drop(self) -> None:
        self._context.counters.add("registry_garbage")


class BackEnd(Faults):
    def __init__(self) -> None:
        self.is_away = False
        self.holds_garbage = False
        self.ends: dict[str, float] = {}

    def check(self) -> None:
        if self.is_away:
            raise Unreachable("the back end is away")

    async def kill(self) -> None:
        self.is_away = True

    async def restart(self) -> None:
        self.is_away = False

    async def wipe(self) -> None:
        self.is_away = False

    async def garbage(self, context: DriverContext) -> None:
        self.holds_garbage = True


class Watch:
    """A watch whose events go through `change`."""

    def __init__(self, watch: RegistryWatch, change: Callable[[Any], AsyncIterator[RegistryEvent]]) -> None:
        self._watch = watch
        self._change = change

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        return self._change(self._watch)

    async def close(self) -> None:
        await self._watch.close()


class Forgets(Sound):
    async def instances(self, service: str | None = None) -> list[Instance]:
        return (await super().instances(service))[:3]


class Reorders(Sound):
    async def watch(self, service: str | None = None) -> RegistryWatch:
        async def swapped(watch: Any) -> AsyncIterator[RegistryEvent]:
            held: RegistryEvent | None = None
            async for event in watch:
                if event.kind is not RegistryEventKind.UPDATED:
                    yield event
                elif held is None:
                    held = event
                else:
                    yield event
                    yield held
                    held = None

        return Watch(await super().watch(service), swapped)


class Resurrects(Sound):
    async def deregister(self, instance: Instance) -> None:
        await super().deregister(instance)
        asyncio.get_running_loop().call_later(0.1, self._again, instance)

    def _again(self, instance: Instance) -> None:
        if self._hub is not None:
            self._hub.put(instance, lease_s=60, owner=self)


class LeaksATask(Sound):
    async def start(self) -> None:
        await super().start()
        self.task = asyncio.create_task(asyncio.sleep(3_600), name="leaked")


class LeaksAFile(Sound):
    async def start(self) -> None:
        await super().start()
        self.file = open("/dev/null")  # noqa: SIM115, ASYNC230, PTH123 - that it stays open is the point
        _kept.append(self.file)


_kept: list[Any] = []


class BlocksTheLoop(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - that it blocks is the point
        await super().register(instance, lease_s=lease_s)


class WorksWhenItIsMade(Sound):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.task = asyncio.get_running_loop().create_task(asyncio.sleep(0))


class NeverEndsALease(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=60)


class EndsALeaseEarly(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=lease_s / 3)


class TellsEveryRenewal(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(instance, lease_s=lease_s)
        assert self._hub is not None
        self._hub._publish([RegistryEvent(kind=RegistryEventKind.UPDATED, instance=instance)])


class MixesSites(Sound):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(replace(context, site="everywhere"))


class LosesMetadata(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().register(replace(instance, metadata={}), lease_s=lease_s)


class WritesInHalves(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        metadata = dict(list(instance.metadata.items())[: len(instance.metadata) // 2])
        await super().register(replace(instance, metadata=metadata), lease_s=lease_s)
        await asyncio.sleep(0)
        await super().register(instance, lease_s=lease_s)


class WritesInTwoSteps(Sound):
    async def register(self, instance: Instance, *, lease_s: float) -> None:
        await super().deregister(instance)
        await asyncio.sleep(0)
        await super().register(instance, lease_s=lease_s)


class EndsLeasesByItsOwnClock(Sound):
    """Keeps the end of a lease where all registries read it, as seconds of the clock of the one that wrote it."""

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        self.back_end.ends[instance.id] = self._context.clock.now() + lease_s
        await super().register(instance, lease_s=60)

    async def instances(self, service: str | None = None) -> list[Instance]:
        now = self._context.clock.now()
        return [each for each in await super().instances(service) if self.back_end.ends[each.id] > now]


class LeavesItsRecords(Sound):
    async def close(self) -> None:
        if self._hub is not None:
            self._hub._book._standing = {}  # type: ignore[attr-defined]  # what it forgets it does not withdraw
        self._hub = None


class HangsWatchers(Sound):
    async def close(self) -> None:
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.remove_owned(self)
            hub.detach(self._watches)


class HangsWhenAway(Sound):
    async def instances(self, service: str | None = None) -> list[Instance]:
        while self.back_end.is_away:
            await asyncio.sleep(0.01)
        return await super().instances(service)


class StumblesOverGarbage(Sound):
    async def instances(self, service: str | None = None) -> list[Instance]:
        if self.back_end.holds_garbage:
            raise ValueError("not JSON")
        return await super().instances(service)


class SwallowsGarbage(Sound):
    """Drops it, which is right, and counts nothing."""

    def drop(self) -> None:
        """Nobody hears of it."""


class Kit(RegistryConformance):
    """The kit of one of them."""

    made: type[Sound]
    lease_s = 0.4
    patience_s = 1.0  # what never comes is not waited for any longer
    capabilities: frozenset[str] = frozenset()

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        back_end = BackEnd()

        def create(_options: NoOptions, context: DriverContext) -> Registry:
            made = self.made(context)
            made.back_end = back_end
            return made

        driver: Driver[Registry] = Driver(name="broken", summary="Breaks.", options=NoOptions, create=create)
        return DriverUnderTest(driver=dataclasses.replace(driver, capabilities=self.capabilities), faults=back_end)


class TestSound(Kit):
    made = Sound
    patience_s = 10.0


class TestForgets(Kit):
    made = Forgets


class TestReorders(Kit):
    made = Reorders


class TestResurrects(Kit):
    made = Resurrects


class TestLeaksATask(Kit):
    made = LeaksATask


class TestLeaksAFile(Kit):
    made = LeaksAFile


class TestBlocksTheLoop(Kit):
    made = BlocksTheLoop


class TestWorksWhenItIsMade(Kit):
    made = WorksWhenItIsMade


class TestNeverEndsALease(Kit):
    made = NeverEndsALease


class TestEndsALeaseEarly(Kit):
    made = EndsALeaseEarly


class TestTellsEveryRenewal(Kit):
    made = TellsEveryRenewal


class TestMixesSites(Kit):
    made = MixesSites


class TestLosesMetadata(Kit):
    made = LosesMetadata


class TestWritesInHalves(Kit):
    made = WritesInHalves


class TestWritesInTwoSteps(Kit):
    made = WritesInTwoSteps


class TestEndsLeasesByItsOwnClock(Kit):
    made = EndsLeasesByItsOwnClock


class TestLeavesItsRecords(Kit):
    made = LeavesItsRecords


class TestHangsWatchers(Kit):
    made = HangsWatchers


class TestHangsWhenAway(Kit):
    made = HangsWhenAway


class TestStumblesOverGarbage(Kit):
    made = StumblesOverGarbage


class TestSwallowsGarbage(Kit):
    made = SwallowsGarbage


class TestHasATypo(Kit):
    made = Sound
    capabilities = frozenset({"wacth"})
