"""How tasks end that may be in the middle of a call of the library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

AGAIN_S = 0.1


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel `tasks` until they are done.

    Once is not always enough: the library sends within `asyncio.wait_for`, which before Python 3.12 loses a
    cancellation that comes at the moment its own work is done (python/cpython#86296).
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN_S)
