"""Tests of `changes`, `WatchQueue` and `WatchSet`."""

import asyncio
from dataclasses import replace

from micro_core.contract import (
    CountersInMemory,
    Instance,
    RegistryEvent,
    RegistryEventKind,
    WatchQueue,
    WatchSet,
    changes,
)

CREATED, UPDATED, DELETED, RESYNC = (
    RegistryEventKind.CREATED,
    RegistryEventKind.UPDATED,
    RegistryEventKind.DELETED,
    RegistryEventKind.RESYNC,
)
ONE = Instance(service="greeter", id="one", address="tcp://127.0.0.1:1")
TWO = replace(ONE, id="two")


def created(instance: Instance) -> RegistryEvent:
    return RegistryEvent(kind=CREATED, instance=instance)


def test_changes_describe_the_change_of_a_record() -> None:
    changed, moved = replace(ONE, version="2"), replace(ONE, service="other")
    assert changes(None, None) == []
    assert changes(ONE, replace(ONE)) == []
    assert changes(None, ONE) == [created(ONE)]
    assert changes(ONE, changed) == [RegistryEvent(kind=UPDATED, instance=changed)]
    assert changes(ONE, None) == [RegistryEvent(kind=DELETED, instance=ONE)]
    assert changes(ONE, moved) == [RegistryEvent(kind=DELETED, instance=ONE), created(moved)]


async def test_events_follow_the_initial_ones_in_order() -> None:
    watch = WatchQueue(initial=[created(ONE)])
    watch.offer(created(TWO))
    assert [await anext(watch), await anext(watch)] == [created(ONE), created(TWO)]


async def test_waiting_reader_receives_the_next_event() -> None:
    watch = WatchQueue("greeter")
    reading = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    watch.offer(created(replace(ONE, service="other")))
    watch.offer(created(ONE))
    async with asyncio.timeout(5):
        assert await reading == created(ONE)


async def test_cancelled_reader_loses_no_event() -> None:
    watch = WatchQueue()
    reading = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    watch.offer(created(ONE))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    async with asyncio.timeout(5):
        assert await anext(watch) == created(ONE)


async def test_overflow_replaces_queued_events_by_one_resync() -> None:
    counters = CountersInMemory()
    watch = WatchQueue(initial=[created(ONE)], capacity=2, counters=counters)
    for number in range(4):
        watch.offer(created(replace(ONE, id=str(number))))
    assert await anext(watch) == created(ONE)
    assert (await anext(watch)).kind is RESYNC
    assert await anext(watch) == created(replace(ONE, id="3"))
    assert counters.values == {"registry_watch_events_dropped": 3}


async def test_initial_events_may_exceed_the_capacity() -> None:
    existing = [replace(ONE, id=str(number)) for number in range(100)]
    watches = WatchSet(capacity=3)
    watch = watches.open("greeter", [*existing, replace(ONE, service="other")])
    assert [(await anext(watch)).instance for _ in existing] == existing


async def test_close_ends_waiting_readers_and_removes_the_watch() -> None:
    watches = WatchSet()
    watch, other = watches.open(None, [ONE]), watches.open(None, [])
    await watch.close()
    await watch.close()
    watch.offer(created(TWO))
    assert [event async for event in watch] == []
    assert len(watches) == 1
    reading = asyncio.ensure_future(anext(other, None))
    await asyncio.sleep(0)
    await watches.close()
    async with asyncio.timeout(5):
        assert await reading is None
    assert len(watches) == 0
