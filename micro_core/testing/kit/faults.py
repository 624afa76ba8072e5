"""Faults with a beginning and an end, so that a part that fails leaves the back end running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from micro_core.testing.kit.driver_under_test import Faults
from micro_core.testing.kit.waiting import LOOK_EVERY_S, fail

STILL_S, GOING_S = 0.15, 0.05
"""A slow back end: it stands still for three quarters of the time."""


@asynccontextmanager
async def away(faults: Faults, *, empty: bool = False) -> AsyncIterator[None]:
    """The back end is killed, and started again in the end: with the data it had, or `empty`."""
    await faults.kill()
    try:
        yield
    finally:
        await (faults.wipe() if empty else faults.restart())


@asynccontextmanager
async def slowed(faults: Faults) -> AsyncIterator[None]:
    """The back end answers in fits and starts."""

    async def hold_up() -> None:
        while True:
            await faults.pause()
            try:
                await asyncio.sleep(STILL_S)
            finally:
                await faults.resume()
            await asyncio.sleep(GOING_S)

    task = asyncio.create_task(hold_up())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def waited_for_a_processor_s() -> float:
    """Seconds for which this thread was ready to run and the machine had other work; 0 where the system does not tell."""
    try:
        # time on a processor, time waited for one, both in nanoseconds, and how often (kernel: sched-stats)
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Pulse:
    """Measures, while it beats, how long the loop did not come round, the machine's own delays left out."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def __aenter__(self) -> Pulse:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        # One more turn: a block right before the end is measured too.
        await asyncio.sleep(2 * LOOK_EVERY_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            began, waited_s = time.monotonic(), waited_for_a_processor_s()
            await asyncio.sleep(LOOK_EVERY_S)
            still_s = time.monotonic() - began - LOOK_EVERY_S
            self.longest_s = max(self.longest_s, still_s - (waited_for_a_processor_s() - waited_s))


@asynccontextmanager
async def beating(longest_s: float, clause: str) -> AsyncIterator[None]:
    """Fail with the clause when the loop stands still for longer than `longest_s` meanwhile."""
    async with Pulse() as pulse:
        yield
    if pulse.longest_s > longest_s:
        fail(f"{clause}: it stood still for {pulse.longest_s:.2f} s")
