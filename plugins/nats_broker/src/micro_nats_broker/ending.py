"""Ends tasks that stand in calls of nats-py."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.1


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks until they have ended. Once is not enough: nats-py, and wait_for below it, swallow cancellations.

    The task that calls is left out: it cannot wait for its own end.
    """
    current = asyncio.current_task()
    left = {task for task in tasks if task is not None and task is not current and not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled():
                # Fetched, so that it is not said to be lost; whoever it concerned was told by the session's end.
                task.exception()
