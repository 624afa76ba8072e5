"""Background tasks: failures are counted and logged, cancelling waits for the end of every task."""

from __future__ import annotations

import asyncio
import logging

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
