"""Faults that end together with a `with` block, so that a failing check leaves the back end running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from micro_core.testing.kit.driver_under_test import Faults
from micro_core.testing.kit.waiting import POLL_INTERVAL_S, fail

SLOW_PAUSE_S, SLOW_RUN_S = 0.15, 0.05
"""A slow back end is paused for three quarters of the time."""


@asynccontextmanager
async def back_end_killed(faults: Faults, *, empty: bool = False) -> AsyncIterator[None]:
    """Kill the back end, and start it again at the end of the block: with its data, or without it if `empty` is true."""
    await faults.kill()
    try:
        yield
    finally:
        await (faults.wipe() if empty else faults.restart())


@asynccontextmanager
async def back_end_slowed(faults: Faults) -> AsyncIterator[None]:
    """Pause and resume the back end repeatedly until the end of the block."""

    async def pause_repeatedly() -> None:
        while True:
            await faults.pause()
            try:
                await asyncio.sleep(SLOW_PAUSE_S)
            finally:
                await faults.resume()
            await asyncio.sleep(SLOW_RUN_S)

    task = asyncio.create_task(pause_repeatedly())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def cpu_wait_s() -> float:
    """Return for how many seconds in total this thread was runnable but not running; 0 if the system does not report it."""
    try:
        # Fields of the file: nanoseconds on a CPU, nanoseconds waiting for a CPU, number of time slices (kernel
        # documentation: scheduler/sched-stats).
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class LoopMonitor:
    """Measures the longest time for which the event loop was blocked, without the time spent waiting for a CPU."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def __aenter__(self) -> LoopMonitor:
        self._task = asyncio.create_task(self._measure())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Let the task wake up once more, so that a block right before the end is measured too.
        await asyncio.sleep(2 * POLL_INTERVAL_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _measure(self) -> None:
        while True:
            began, waited_s = time.monotonic(), cpu_wait_s()
            await asyncio.sleep(POLL_INTERVAL_S)
            blocked_s = time.monotonic() - began - POLL_INTERVAL_S
            self.longest_s = max(self.longest_s, blocked_s - (cpu_wait_s() - waited_s))


@asynccontextmanager
async def loop_not_blocked(longest_s: float, clause: str) -> AsyncIterator[None]:
    """Fail with `clause` if the event loop is blocked for longer than `longest_s` during the block."""
    async with LoopMonitor() as monitor:
        yield
    if monitor.longest_s > longest_s:
        fail(f"{clause}: the event loop was blocked for {monitor.longest_s:.2f} s")
