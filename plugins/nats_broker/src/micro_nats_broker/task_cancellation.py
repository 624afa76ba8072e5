"""Cancel tasks that may be inside a call of nats-py."""

from __future__ import annotations

import asyncio
from typing import Any

RETRY_S = 0.1
"""Seconds between two attempts to cancel a task."""


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks repeatedly until they have ended, because nats-py and `asyncio.wait_for` may swallow a cancellation.

    The calling task is skipped, since it cannot wait for its own end.
    """
    current = asyncio.current_task()
    running = {task for task in tasks if task is not None and task is not current and not task.done()}
    while running:
        for task in running:
            task.cancel()
        done, running = await asyncio.wait(running, timeout=RETRY_S)
        for task in done:
            if not task.cancelled():
                # Mark the exception as retrieved. The end of the session has already reported the failure.
                task.exception()
