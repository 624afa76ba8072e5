"""Closing: within a time limit, in reverse order, and all components even if one fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest

from micro_core.contract import CountersInMemory
from micro_core.contract.errors import Unreachable
from micro_core.lifecycle.closing import Closing


@pytest.fixture
def counters() -> CountersInMemory:
    return CountersInMemory()


@pytest.fixture
def closing(counters: CountersInMemory) -> Closing:
    return Closing(
        timeout_s=0.05, logger=logging.getLogger("test.closing"), counters=counters, failure_counter="close_failures"
    )


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("error", [Unreachable("no answer"), OSError("disk full"), TimeoutError()])
async def test_failed_close_is_counted_and_logged(
    closing: Closing, counters: CountersInMemory, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def fail() -> None:
        raise error

    await closing.close(fail)
    assert counters.values == {"close_failures": 1}
    assert [record.message for record in caplog.records] == ["component not closed cleanly"]


async def test_close_that_hangs_is_ended_at_the_time_limit(closing: Closing, counters: CountersInMemory) -> None:
    await closing.close(hang)
    assert counters.values == {"close_failures": 1}


async def test_stack_closes_in_reverse_order_and_after_failures(closing: Closing, counters: CountersInMemory) -> None:
    closed: list[int] = []

    async def close(number: int) -> None:
        closed.append(number)
        if number == 2:
            raise Unreachable("no answer")

    stack = AsyncExitStack()
    for number in (1, 2, 3):
        closing.push(stack, lambda number=number: close(number))  # type: ignore[misc]
    await stack.aclose()
    assert closed == [3, 2, 1]
    assert counters.values == {"close_failures": 1}


async def test_cancellation_is_raised_after_the_other_components_are_closed(closing: Closing) -> None:
    closed: list[str] = []

    async def close() -> None:
        closed.append("lower")

    stack = AsyncExitStack()
    closing.push(stack, close)
    closing.push(stack, hang)
    task = asyncio.get_running_loop().create_task(stack.aclose())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == ["lower"]
