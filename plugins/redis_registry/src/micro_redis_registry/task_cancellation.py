"""Cancel tasks that may be inside a call of the redis library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

RETRY_S = 0.1
"""Seconds between two attempts to cancel a task."""


async def cancel_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel `tasks` repeatedly until they have ended.

    One cancellation may not be enough: the library uses `asyncio.wait_for`, which before Python 3.12 loses a
    cancellation that arrives at the moment its own work completes (python/cpython#86296).
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=RETRY_S)
