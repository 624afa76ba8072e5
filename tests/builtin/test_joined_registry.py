"""Several registries as one, while one of them is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
    """A registry that can be away."""

    is_away = False

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
        if self.is_away:
            raise Unreachable("away for a test")


Pair = tuple[JoinedRegistry, MemoryRegistry, Flaky, CountersInMemory]


@pytest.fixture
async def pair(make_context: Callable[..., DriverContext]) -> Pair:
    steady = memory_registry.create(NoOptions(), make_context(network="one"))
    flaky = Flaky(make_context(network="two"))
    counters = CountersInMemory()
    return JoinedRegistry([steady, flaky], counters), steady, flaky, counters


async def test_one_that_is_away_stops_neither_writing_nor_reading(pair: Pair) -> None:
    joined, steady, flaky, counters = pair
    flaky.is_away = True
    await joined.start()
    await joined.register(GREETER, lease_s=30)
    assert await joined.instances() == await steady.instances() == [GREETER]
    assert counters.values["registry_failures"] == 3
    await joined.close()


async def test_when_all_are_away_the_first_reason_is_told(make_context: Callable[..., DriverContext]) -> None:
    parts = [Flaky(make_context(network=name)) for name in ("one", "two")]
    joined = JoinedRegistry(parts, CountersInMemory())
    await joined.start()
    for part in parts:
        part.is_away = True
    with pytest.raises(Unreachable, match="away for a test"):
        await joined.instances()
    await joined.close()


async def test_a_record_is_gone_when_the_last_registry_has_lost_it(pair: Pair) -> None:
    joined, steady, flaky, _ = pair
    await joined.start()
    watch = await joined.watch()
    seen = aiter(watch)
    await steady.register(GREETER, lease_s=30)
    await flaky.register(GREETER, lease_s=30)
    async with asyncio.timeout(5):
        assert (await anext(seen)).kind is RegistryEventKind.CREATED
        await steady.deregister(GREETER)
        await flaky.deregister(GREETER)
        assert (await anext(seen)).kind is RegistryEventKind.DELETED
    assert await joined.instances() == []
    await joined.close()


async def test_the_earlier_registry_counts_where_both_know_an_instance(pair: Pair) -> None:
    from dataclasses import replace

    joined, steady, flaky, _ = pair
    await joined.start()
    await flaky.register(replace(GREETER, version="later"), lease_s=30)
    await steady.register(replace(GREETER, version="earlier"), lease_s=30)
    assert [instance.version for instance in await joined.instances()] == ["earlier"]
    await joined.close()


async def test_a_registry_that_was_away_is_watched_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_core.builtin.registry import joined as joined_registry

    monkeypatch.setattr(joined_registry, "RETRY_S", 0.01)
    joined, _, flaky, _ = pair
    await joined.start()
    flaky.is_away = True
    watch = await joined.watch()
    flaky.is_away = False
    await flaky.register(GREETER, lease_s=30)
    async with asyncio.timeout(5):
        event = await anext(aiter(watch))
    assert event.instance == GREETER
    await joined.close()
