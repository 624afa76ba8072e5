"""Waiting for a condition with a deadline, so that a failure says which promise was not kept, and no test hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

LOOK_EVERY_S = 0.01


def fail(clause: str) -> NoReturn:
    """Fail with the clause of the contract that was not kept."""
    __tracebackhide__ = True
    pytest.fail(clause)


async def within(seconds: float, awaitable: Awaitable[T], clause: str) -> T:
    """The result of `awaitable`; fails, with the clause that was not kept, when it does not come in time."""
    __tracebackhide__ = True
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if not scope.expired():
            raise
    fail(f"{clause}: nothing came within {seconds:.3g} s")


async def until(condition: Callable[[], object | Awaitable[object]], seconds: float, clause: str) -> None:
    """Return when `condition()` is true (it may be a coroutine); fails with the clause when it does not become so."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while True:
        # The last look is after the deadline: a machine that was away in between gets its chance.
        is_last = time.monotonic() >= deadline
        found = condition()
        if isinstance(found, Awaitable):
            found = await within(seconds, found, clause)
        if found:
            return
        if is_last:
            fail(f"{clause}: not within {seconds:.3g} s")
        await asyncio.sleep(LOOK_EVERY_S)
