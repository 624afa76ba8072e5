"""Background tasks: failures are counted and logged, cancelling waits for the end of every task."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from micro_core.contract import CountersInMemory
from micro_core.lifecycle.background_tasks import BackgroundTasks

LOG = logging.getLogger("test.background")


@pytest.fixture
def counters() -> CountersInMemory:
    return CountersInMemory()


@pytest.fixture
def tasks(counters: CountersInMemory) -> BackgroundTasks:
    return BackgroundTasks(component="test", logger=LOG, counters=counters, failure_counter="test_tasks_failed")


async def test_failure_is_counted_and_logged(
    tasks: BackgroundTasks, counters: CountersInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    tasks.start(fail())
    await tasks.wait()
    assert counters.values == {"test_tasks_failed": 1}
    assert [record.message for record in caplog.records] == ["background task failed"]
    assert len(tasks) == 0


async def test_finished_task_is_forgotten(tasks: BackgroundTasks, counters: CountersInMemory) -> None:
    async def finish() -> None: ...

    task = tasks.start(finish())
    assert len(tasks) == 1
    await tasks.wait()
    assert task.done()
    assert len(tasks) == 0
    assert counters.values == {}


async def test_cancel_ends_every_task_and_may_be_repeated(tasks: BackgroundTasks, counters: CountersInMemory) -> None:
    ended: list[int] = []

    async def run(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    for number in range(3):
        tasks.start(run(number))
    await asyncio.sleep(0)
    await tasks.cancel()
    await tasks.cancel()
    assert ended == [0, 1, 2]
    assert len(tasks) == 0
    assert counters.values == {}


async def test_running_tasks_are_returned_in_the_order_of_their_start(tasks: BackgroundTasks) -> None:
    async def run() -> None:
        await asyncio.Event().wait()

    started = tuple(tasks.start(run()) for _ in range(3))
    assert tasks.running == started
    await tasks.cancel()
    assert tasks.running == ()


async def test_task_is_kept_when_its_component_is_dropped(counters: CountersInMemory) -> None:
    async def run() -> None:
        await asyncio.get_running_loop().create_future()

    tasks = BackgroundTasks(component="test", logger=LOG, counters=counters, failure_counter="test_tasks_failed")
    kept = weakref.ref(tasks.start(run()))
    del tasks
    await asyncio.sleep(0)
    gc.collect()
    task = kept()
    assert task is not None
    task.cancel()
    await asyncio.wait([task])
