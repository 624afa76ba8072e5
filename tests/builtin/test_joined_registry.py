"""A joined registry while one of its registries fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Instance,
    NoOptions,
    RegistryEventKind,
    RegistryWatch,
    Unreachable,
)

GREETER = Instance(service="go.micro.srv.greeter", id="greeter-1", address="tcp://127.0.0.1:4001")


class Flaky(MemoryRegistry):
    """A registry whose calls fail while `is_failing` is set."""

    is_failing = False

    async def start(self) -> None:
        await super().start()
        self._check()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        self._check()
        await super().register(instance, lease_s=lease_s)

    async def instances(self, service: str | None = None) -> list[Instance]:
        self._check()
        return await super().instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        self._check()
        return await super().watch(service)

    def _check(self) -> None:
        if self.is_failing:
            raise Unreachable("unreachable for a test")


Pair = tuple[JoinedRegistry, MemoryRegistry, Flaky, CountersInMemory]


@pytest.fixture
async def pair(make_context: Callable[..., DriverContext]) -> Pair:
    steady = memory_registry.create(NoOptions(), make_context(network="one"))
    flaky = Flaky(make_context(network="two"))
    counters = CountersInMemory()
    return JoinedRegistry([steady, flaky], counters), steady, flaky, counters


async def test_failing_registry_does_not_prevent_writes_and_reads(pair: Pair) -> None:
    joined, steady, flaky, counters = pair
    flaky.is_failing = True
    await joined.start()
    await joined.register(GREETER, lease_s=30)
    assert await joined.instances() == await steady.instances() == [GREETER]
    assert counters.values["registry_failures"] == 3
    await joined.close()


async def test_first_error_is_raised_if_all_registries_fail(make_context: Callable[..., DriverContext]) -> None:
    registries = [Flaky(make_context(network=name)) for name in ("one", "two")]
    joined = JoinedRegistry(registries, CountersInMemory())
    await joined.start()
    for registry in registries:
        registry.is_failing = True
    with pytest.raises(Unreachable, match="unreachable for a test"):
        await joined.instances()
    await joined.close()


async def test_record_is_deleted_when_the_last_registry_has_removed_it(pair: Pair) -> None:
    joined, steady, flaky, _ = pair
    await joined.start()
    watch = await joined.watch()
    events = aiter(watch)
    await steady.register(GREETER, lease_s=30)
    await flaky.register(GREETER, lease_s=30)
    async with asyncio.timeout(5):
        assert (await anext(events)).kind is RegistryEventKind.CREATED
        await steady.deregister(GREETER)
        await flaky.deregister(GREETER)
        assert (await anext(events)).kind is RegistryEventKind.DELETED
    assert await joined.instances() == []
    await joined.close()


async def test_record_of_the_earlier_registry_takes_precedence(pair: Pair) -> None:
    joined, steady, flaky, _ = pair
    await joined.start()
    await flaky.register(replace(GREETER, version="later"), lease_s=30)
    await steady.register(replace(GREETER, version="earlier"), lease_s=30)
    assert [instance.version for instance in await joined.instances()] == ["earlier"]
    await joined.close()


async def test_registry_that_works_again_is_watched_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_core.builtin.registry import joined as joined_registry

    monkeypatch.setattr(joined_registry, "RETRY_S", 0.01)
    joined, _, flaky, _ = pair
    await joined.start()
    flaky.is_failing = True
    watch = await joined.watch()
    flaky.is_failing = False
    await flaky.register(GREETER, lease_s=30)
    async with asyncio.timeout(5):
        event = await anext(aiter(watch))
    assert event.instance == GREETER
    await joined.close()
