"""What an instance tells of its load: how long calls wait there, in steps, and only when it has lasted. Pure.

A number that moves with every call would be news all the time, for the registry and for every router. So the waiting is told in
powers of two, from a few milliseconds on; a step up when two looks in a row have seen it, a step down when the waiting has
fallen clearly below what was told.
"""

from __future__ import annotations

from collections.abc import Iterable

from micro_core.rpc.queueing_delay import TOLERANCE, QueueingDelay

MIN_US = 4_000
"""Less is told as nothing: turns of an event loop, not load."""

MAX_US = 8_192_000

FALLEN = 0.75
"""A lower step is told when the waiting is below this share of the one that was told."""

SAMPLES_BEFORE_CHANGE = 2
"""Looks in a row that must have seen a change before it is told."""

STALLED_CALLS = 4
"""So many calls that run, while none ends between two looks, tell of a stall; fewer may simply be long."""


class LoadMeasure:
    """The load of one instance: `level_us` as it is told, in steps."""

    def __init__(self) -> None:
        self.level_us = 0
        self.queueing_delay = QueueingDelay()
        self._ended = 0
        self._looks = 0

    def ended(self, endpoint: str, duration_s: float, now: float) -> None:
        """A call has been answered."""
        self._ended += 1
        self.queueing_delay.call_ended(endpoint, duration_s, now)

    def look(self, now: float, running: Iterable[tuple[str, float]] = ()) -> bool:
        """Called on a timer, with the calls that run (endpoint, began at): True when `level_us` has changed."""
        waiting_s = self.queueing_delay.delay_s(now)
        if not self._ended:
            ages = [
                now - began_at - TOLERANCE * self.queueing_delay.baseline_s(endpoint) for endpoint, began_at in running
            ]
            if len(ages) >= STALLED_CALLS:
                waiting_s = max(waiting_s, sum(ages) / len(ages))
        self._ended = 0
        waiting_us = round(waiting_s * 1e6)
        seen_us = quantised(waiting_us)
        is_other = seen_us > self.level_us or (self.level_us > 0 and waiting_us < FALLEN * self.level_us)
        self._looks = self._looks + 1 if is_other else 0
        if self._looks < SAMPLES_BEFORE_CHANGE:
            return False
        self._looks = 0
        self.level_us = seen_us
        return True


def quantised(waiting_us: int) -> int:
    """0 below `MIN_US`, else the power of two times it that is not above, at most `MAX_US`."""
    if waiting_us < MIN_US:
        return 0
    steps: int = (waiting_us // MIN_US).bit_length() - 1
    return min(MIN_US << steps, MAX_US)
