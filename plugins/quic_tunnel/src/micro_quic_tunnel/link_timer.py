"""The timer of one connection. Its time changes with every packet, which must not cost a timer of the event loop each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MIN_POSTPONEMENT_S = 1.0
POSTPONE_INTERVAL_S = 0.05
"""A timer is replaced by one that is at least the former later, at most once in the latter. A needless wake-up of an idle
process costs more than setting ten timers."""


class LinkTimer:
    """Calls `due` at the time that was set last."""

    __slots__ = ("_due", "_loop", "_postponed_at", "_timer", "_wake_at")

    def __init__(self, due: Callable[[], None]) -> None:
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at: float | None = None
        self._postponed_at = 0.0

    def set(self, when: float | None) -> None:
        """Set the time in seconds of the event loop, None for never.

        An existing timer that fires earlier is usually kept and then set again. A timer that would wake up an idle process
        for nothing is replaced, unless one was replaced a moment ago.
        """
        self._wake_at = when
        timer = self._timer
        if timer is not None and (when is None or when < timer.when() or self._is_worth_postponing(timer, when)):
            timer.cancel()
            timer = self._timer = None
        if timer is None and when is not None:
            self._timer = self._loop.call_at(when, self._fired)

    def _is_worth_postponing(self, timer: asyncio.TimerHandle, when: float) -> bool:
        if when - timer.when() < MIN_POSTPONEMENT_S:
            return False
        now = self._loop.time()
        if now - self._postponed_at < POSTPONE_INTERVAL_S:
            return False
        self._postponed_at = now
        return True

    def _fired(self) -> None:
        self._timer = None
        if self._wake_at is None:
            return
        if self._loop.time() < self._wake_at:
            self.set(self._wake_at)
        else:
            self._due()
