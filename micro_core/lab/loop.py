"""An asyncio event loop on virtual time, which jumps to the next timer. Callbacks always run in the same order.

A callback of a process that is busy or stopped waits, see `process.py`.

The loop has no sockets. Functions for an executor run immediately in the loop instead of in a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from micro_core.lab.process import PROCESS

T = TypeVar("T")

GC_THRESHOLDS = (100_000, 50, 100)
"""Thresholds of the garbage collector. With the default ones, it took a fifth of the time of a run and found little."""

EPOCH = 1_700_000_000.0
"""Wall-clock seconds at the start of virtual time: a run must not depend on the current date."""


class LoopStalled(RuntimeError):
    """The loop makes no progress: all tasks wait and no timer is set, or virtual time does not advance."""


MAX_CANCELLED_TIMERS = 1_000
"""The heap of timers is cleaned up if it contains more cancelled timers than this, and if they are more than half of it."""

MAX_ITERATIONS_PER_INSTANT = 200_000
"""Turns of the loop without progress of time after which `LoopStalled` is raised."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time starts at 0 and advances only when no callback is ready.

    It has its own heap of timers. Unlike the one of the base class, it runs timers of the same time in the order in
    which they were set, and its comparisons are fast.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._timers_cancelled = 0
        self._turns_at_this_instant = 0

    def time(self) -> float:
        """Return virtual seconds since the start."""
        return self._now

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` after `delay` virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` at a virtual time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        # The handle reports its cancellation to the loop only if this is set.
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:  # noqa: ARG002
        self._timers_cancelled += 1
        if self._timers_cancelled > MAX_CANCELLED_TIMERS and 2 * self._timers_cancelled > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _next_timer(self) -> tuple[float, int, asyncio.TimerHandle] | None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
            self._timers_cancelled -= 1
        return self._timers[0] if self._timers else None

    def _run_once(self) -> None:
        """Run all callbacks that are ready. If no callback is ready, advance the time to the next timer first."""
        following = self._next_timer()
        self._turns_at_this_instant += 1
        if self._turns_at_this_instant > MAX_ITERATIONS_PER_INSTANT:
            # The cleanup after the error needs turns, too.
            self._turns_at_this_instant = 0
            raise LoopStalled(
                f"virtual time does not advance beyond {self._now:.6f} s: {MAX_ITERATIONS_PER_INSTANT} turns of the loop at this time"
            )
        if following is not None and not self._ready and not self._stopping:
            if following[0] > self._now:
                self._now = following[0]
                self._turns_at_this_instant = 0
        elif following is None and not self._ready and not self._stopping:
            raise LoopStalled("deadlock: all tasks are waiting and no timer is set")
        while following is not None and following[0] <= self._now:
            heapq.heappop(self._timers)
            following[2]._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(following[2])
            following = self._next_timer()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.is_held:
                process.hold(handle)
            else:
                handle._run()

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override] # noqa: ARG002
        """Run `func` immediately: threads would make the order of events random."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - raised by the awaiting task
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Do nothing: this loop never blocks in a selector."""


class LabClock:
    """Implements `Clock` for one host, on virtual time. `skew_s` is the error of its wall clock in seconds."""

    __slots__ = ("now", "skew_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, skew_s: float = 0.0) -> None:
        self.now = loop.time
        self.skew_s = skew_s

    def wall(self) -> float:
        """Return the wall-clock seconds of this host."""
        return EPOCH + self.now() + self.skew_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on virtual time until it ends, and return its result.

    Raises LoopStalled if it would wait for ever.
    """
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main)
    finally:
        gc.set_threshold(*before)
