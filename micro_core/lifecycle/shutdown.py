"""Shutdown of a process on SIGINT and SIGTERM: the first signal is graceful, the second one immediate."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from micro_core.lifecycle.background_tasks import ends_before

log = logging.getLogger(__name__)

CLOSE_STEP_S = 0.5
"""Seconds that each remaining step of a shutdown may take after the second signal."""


class ShutdownSignals:
    """The signals that this process has received. `on_immediate` is called at the second signal."""

    def __init__(self, *, on_immediate: Callable[[], None] | None = None) -> None:
        self.requested = asyncio.Event()
        """Set by the first signal: finish the calls in progress and stop."""
        self.immediate = asyncio.Event()
        """Set by the second signal: stop without waiting for calls in progress."""
        self._on_immediate = on_immediate

    def install(self) -> None:
        """Handle SIGINT and SIGTERM in the running event loop, instead of the default handlers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.receive)

    def receive(self) -> None:
        """Note one signal."""
        if not self.requested.is_set():
            self.requested.set()
            return
        self.immediate.set()
        if self._on_immediate is not None:
            self._on_immediate()


async def run_until_signal(
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    *,
    started: Callable[[], None],
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Run `start`, call `started`, wait for a signal, call `stopping` and run `stop`.

    A signal during `start` cancels it. `stop` is run in every case, also after `start`, `started` or `stopping` has failed.
    A second signal cancels `start` or `stop` again and again until it ends. An error of `stop` is logged. Raises the error
    of the other functions.
    """
    signals = ShutdownSignals()
    signals.install()
    starting = asyncio.get_running_loop().create_task(_run(start))
    try:
        if await ends_before(starting, signals.requested):
            starting.result()
            started()
            await signals.requested.wait()
            stopping()
    finally:
        if not starting.done():
            starting.cancel()
            await _end(starting, signals)
            _log_error(starting, "start failed while it was cancelled")
        await _stop(stop, signals)


async def _stop(stop: Callable[[], Awaitable[None]], signals: ShutdownSignals) -> None:
    task = asyncio.get_running_loop().create_task(_run(stop))
    await _end(task, signals)
    _log_error(task, "shutdown failed")


async def _end(task: asyncio.Task[None], signals: ShutdownSignals) -> None:
    """Wait until `task` ends. From the second signal on, cancel it at an interval."""
    await ends_before(task, signals.immediate)
    while not task.done():
        # Cancelling ends the step that runs now. The components that are not closed yet follow.
        task.cancel()
        await asyncio.wait({task}, timeout=CLOSE_STEP_S)


def _log_error(task: asyncio.Task[None], message: str) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(message, exc_info=error)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()
