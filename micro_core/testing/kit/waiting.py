"""Waiting for a condition with a timeout. A failure names the violated clause of the contract, and no test hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

POLL_INTERVAL_S = 0.01


def fail(clause: str) -> NoReturn:
    """Fail the test with the violated clause of the contract."""
    __tracebackhide__ = True
    pytest.fail(clause)


async def within(seconds: float, awaitable: Awaitable[T], clause: str) -> T:
    """Return the result of `awaitable`; cancel it and fail with `clause` if it takes longer than `seconds`.

    Exceptions of the awaitable are passed on, including a TimeoutError of its own.

    Args:
        seconds: Maximum time in seconds.
        awaitable: A coroutine, task or future.
        clause: The clause of the contract that is violated by a longer wait.
    """
    __tracebackhide__ = True
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if not scope.expired():
            raise
    fail(f"{clause}: no result within {seconds:.3g} s")


async def until(condition: Callable[[], object | Awaitable[object]], seconds: float, clause: str) -> None:
    """Wait until `condition()` is true; fail with `clause` if it is still false after `seconds`.

    Args:
        condition: A function or coroutine function. It is evaluated every 10 ms, and a last time after the timeout.
        seconds: Maximum time in seconds.
        clause: The clause of the contract that is violated if the condition stays false.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while True:
        # Evaluate once more after the deadline, in case the machine suspended this process for a while.
        is_last = time.monotonic() >= deadline
        found = condition()
        if isinstance(found, Awaitable):
            found = await within(seconds, found, clause)
        if found:
            return
        if is_last:
            fail(f"{clause}: not true within {seconds:.3g} s")
        await asyncio.sleep(POLL_INTERVAL_S)
