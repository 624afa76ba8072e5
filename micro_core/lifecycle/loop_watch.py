"""Measures how late the event loop is, and notices when this process was suspended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.contract.clock import Clock
from micro_core.lifecycle.beat import next_beat
from micro_core.lifecycle.loop_lag import TICK_S, LoopLag


class LoopWatch:
    """The lag of the running event loop. `resumed(seconds)` is called once after each suspension.

    A timer ticks several times per second. After a suspension, the loop may process what arrived meanwhile before it runs
    that timer; components that must not act on outdated state call `check` first, which costs about 0.2 µs.
    """

    def __init__(self, clock: Clock, resumed: Callable[[float], None], node_id: str = "") -> None:
        self._node_id = node_id
        self._lag = LoopLag()
        self._now = clock.now
        # A clock may also count the time for which the whole system was suspended, which `now` does not on Linux.
        self._elapsed: Callable[[], float] = getattr(clock, "elapsed", clock.now)
        self._resumed = resumed
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to measure, at the beats of the node. Requires a running event loop."""
        self.stop()
        now = self._now()
        self._lag.start(now, self._elapsed(), next_beat(now, TICK_S, self._node_id))
        self._schedule()

    def stop(self) -> None:
        """Stop measuring. Safe to call twice, and before `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lag_s(self) -> float:
        """Return the largest lag in seconds of the last one to two seconds; 0 before `start`."""
        return self._lag.recent_s(self._now()) if self._timer is not None else 0.0

    def timer_ran(self, due_at: float) -> None:
        """Account for a timer of the caller that was due at `due_at` and runs now."""
        if self._timer is not None:
            self._lag.timer_ran(due_at, self._now())

    def near(self, when: float, *, earlier_s: float, later_s: float = 0.0) -> float:
        """Return the time of the last tick near `when`, or `when` itself if no tick is near.

        Periodic timers that need not be exact then share one wake-up of the process.

        Args:
            when: The wanted time in clock seconds.
            earlier_s: Maximum number of seconds by which the tick may precede `when`.
            later_s: Maximum number of seconds by which it may follow `when`.
        """
        if self._timer is None:
            return when
        at = self._lag.tick_between(max(when - earlier_s, self._now()), when + later_s)
        return when if at is None else at

    def check(self) -> bool:
        """Return whether this process was suspended. `resumed` has then been called."""
        if self._timer is None:
            return False
        suspended_s = self._lag.suspended_s(self._elapsed())
        if not suspended_s:
            return False
        # Before the callback, which may lead to further checks.
        self.start()
        self._resumed(suspended_s)
        return True

    def _tick(self) -> None:
        if not self.check():
            self._lag.tick(self._now(), self._elapsed())
            self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._lag.due_at - self._now()), self._tick)
