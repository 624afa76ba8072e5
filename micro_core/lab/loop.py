"""An asyncio loop whose time jumps to the next timer: hours pass in seconds, and always in the same order.

Nothing is waited for but timers: there are no sockets. What would run in a thread runs at once, in the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_700_000_000.0
"""Wall-clock seconds at which virtual time begins: a run must not depend on the day it is made."""


class Stuck(RuntimeError):
    """Everybody waits, and no timer will ever wake anybody."""


class _Jump:
    """In place of a selector: instead of waiting, time jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("everybody waits, and no timer will ever wake anybody")
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        """There is nothing to close."""


class _Timer(asyncio.TimerHandle):
    """Of two timers of the same moment the one that was set first comes first: a heap alone would not promise it."""

    number = 0

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        mine, theirs = self.when(), other.when()
        return mine < theirs if mine != theirs else self.number < other.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Time starts at 0 and moves only when nothing is left to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers_set = 0
        self._clock_resolution = 1e-9
        self._selector = _Jump(self)

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        self._timers_set += 1
        timer.number = self._timers_set
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def jump(self) -> None:
        """Move to the next timer."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._now = max(self._now, scheduled[0].when())

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override] # noqa: ARG002
        """Run at once: threads would bring their own order into the run."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets, hence no events."""

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
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
