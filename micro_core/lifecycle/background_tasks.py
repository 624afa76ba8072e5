"""Background tasks: references are kept, failures are reported, and all are cancelled when their owner closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from micro_core.contract.driver import Counters

_running: set[asyncio.Task[None]] = set()
"""All running tasks. The event loop keeps only weak references to tasks, and a component may be dropped before they end."""


class BackgroundTasks:
    """The background tasks of one component.

    A task runs until it ends or is cancelled, also if nothing refers to the component any more. A task that ends with an
    exception is counted under `failure_counter` and logged.
    """

    def __init__(self, *, component: str, logger: logging.Logger, counters: Counters, failure_counter: str) -> None:
        self._component = component
        self._logger = logger
        self._counters = counters
        self._failure_counter = failure_counter
        # A dict keeps the order of starts, so that cancelling is deterministic in the lab.
        self._tasks: dict[asyncio.Task[None], None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task and return the task. Requires a running event loop."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        _running.add(task)
        task.add_done_callback(self._task_done)
        return task

    @property
    def running(self) -> tuple[asyncio.Task[None], ...]:
        """Return the tasks that have not ended, in the order in which they were started."""
        return tuple(self._tasks)

    async def wait(self) -> None:
        """Wait until every task has ended, without cancelling any."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cancel(self) -> None:
        """Cancel every task and wait until all have ended. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await self.wait()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        _running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counters.add(self._failure_counter)
            self._logger.error("background task failed", exc_info=error, extra={"component": self._component})


async def ends_before(task: asyncio.Task[None], event: asyncio.Event) -> bool:
    """Wait until `task` ends or `event` is set. Return whether the task has ended. Cancellation does not cancel `task`."""
    waiting = asyncio.get_running_loop().create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return task.done()
