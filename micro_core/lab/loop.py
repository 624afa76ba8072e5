"""An asyncio loop whose time jumps to the next timer: hours pass in seconds, and always in the same order.

Nothing is waited for but timers: there are no sockets. What would run in a thread runs at once, in the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COLLECTIONS = (100_000, 50, 100)
"""How rarely cycles are looked for: a network makes many values and few cycles, and the search took a fifth of a run."""

EPOCH = 1_700_000_000.0
"""Wall-clock seconds at which virtual time begins: a run must not depend on the day it is made."""


class Stuck(RuntimeError):
    """Everybody waits and no timer will ever wake anybody, or somebody is busy and time never moves."""


FORGET_FROM = 1_000
"""Cancelled timers that may wait in the heap before they are taken out, where they are more than half of it."""


MOST_TURNS_AT_A_MOMENT = 200_000
"""Turns without any time passing after which nobody hopes for more: some timer is set for now, again and again."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time starts at 0 and moves only when nothing is left to be done.

    Timers are kept here, not by the base class: of two of the same moment the one set first must come first, which its
    heap does not promise, and hours of virtual time are mostly timers, whose comparison has to be cheap.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._timers_cancelled = 0
        self._turns_at_this_moment = 0

    def time(self) -> float:
        return self._now

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        # Without it nobody tells of its cancellation.
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:  # noqa: ARG002
        self._timers_cancelled += 1
        if self._timers_cancelled > FORGET_FROM and 2 * self._timers_cancelled > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _next_timer(self) -> tuple[float, int, asyncio.TimerHandle] | None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
            self._timers_cancelled -= 1
        return self._timers[0] if self._timers else None

    def _run_once(self) -> None:
        """One turn: all that is ready now. Where that is nothing, time jumps to the next timer."""
        following = self._next_timer()
        self._turns_at_this_moment += 1
        if self._turns_at_this_moment > MOST_TURNS_AT_A_MOMENT:
            # What is cancelled now may take its own turns.
            self._turns_at_this_moment = 0
            raise Stuck(f"time stands still at {self._now:.6f} s: something is done again and again at this moment")
        if following is not None and not self._ready and not self._stopping:
            if following[0] > self._now:
                self._now = following[0]
                self._turns_at_this_moment = 0
        elif following is None and not self._ready and not self._stopping:
            raise Stuck("everybody waits, and no timer will ever wake anybody")
        while following is not None and following[0] <= self._now:
            heapq.heappop(self._timers)
            following[2]._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(following[2])
            following = self._next_timer()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override] # noqa: ARG002
        """Run at once: threads would bring their own order into the run."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nothing has to be woken."""


class LabClock:
    """Implements `Clock` over a virtual loop; `skew_s` is how far this host's wall clock is off."""

    __slots__ = ("now", "skew_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, skew_s: float = 0.0) -> None:
        self.now = loop.time
        self.skew_s = skew_s

    def wall(self) -> float:
        return EPOCH + self.now() + self.skew_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on virtual time, to its end. Raises Stuck when it would wait for ever."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTIONS)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main)
    finally:
        gc.set_threshold(*before)
