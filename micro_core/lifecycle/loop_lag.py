"""How late an event loop runs its timers, and whether its process was suspended. Pure: callers pass the time.

What a node measures on its links contains the time for which its own event loop was busy. `recent_s` bounds that time, so that
measurements can be corrected by it. A process that did not run for several seconds (SIGSTOP, a laptop asleep, a host that
froze) has lost its peers without noticing; `suspended_s` detects this before the process acts on what it knew earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TICK_S = 0.25
"""Seconds between two ticks. Shorter ticks find shorter delays, and each costs about 20 µs of CPU."""

WINDOW_S = 1.0
"""The lag of a tick counts for this time at least, and for twice this time at most."""

SUSPENDED_AFTER_S = 5.0
"""A process whose last tick is longer ago than this was suspended. Peers have given up its links by then."""


@dataclass(slots=True)
class LoopLag:
    """The lag of one event loop. `now` is in seconds of the clock of the loop, `elapsed` also counts a suspended system."""

    due_at: float = 0.0
    """When the next tick is due."""
    last_elapsed: float = 0.0
    """Elapsed time at the last tick."""
    _current_s: float = 0.0
    _previous_s: float = 0.0
    _window_started_at: float = 0.0

    def start(self, now: float, elapsed: float, due_at: float | None = None) -> None:
        """Start to measure, or start again after a suspension. The next tick is due at `due_at`, or in `TICK_S`."""
        self.due_at, self.last_elapsed = now + TICK_S if due_at is None else due_at, elapsed
        self._current_s = self._previous_s = 0.0
        self._window_started_at = now

    def tick(self, now: float, elapsed: float) -> None:
        """Account for a tick that runs now. The next one is due a multiple of `TICK_S` after this one was."""
        self.timer_ran(self.due_at, now)
        self.due_at += TICK_S * max(1, math.floor((now - self.due_at) / TICK_S) + 1)
        self.last_elapsed = elapsed

    def tick_between(self, earliest: float, latest: float) -> float | None:
        """Return the time of the last tick between `earliest` and `latest`, or None if there is none."""
        at = self.due_at + math.floor((latest - self.due_at) / TICK_S) * TICK_S
        return at if at >= earliest else None

    def timer_ran(self, due_at: float, now: float) -> None:
        """Account for any timer of the loop that was due at `due_at` and runs now."""
        if now - self._window_started_at >= WINDOW_S:
            self._previous_s = self._current_s if now - self._window_started_at < 2 * WINDOW_S else 0.0
            self._current_s = 0.0
            self._window_started_at = now
        self._current_s = max(self._current_s, now - due_at)

    def recent_s(self, now: float) -> float:
        """Return the largest lag of the last one to two seconds. A tick that is overdue counts."""
        return max(0.0, self._current_s, self._previous_s, now - self.due_at)

    def suspended_s(self, elapsed: float) -> float:
        """Return for how many seconds the process was suspended until now, or 0 if it was not."""
        silence_s = elapsed - self.last_elapsed
        return silence_s if silence_s > SUSPENDED_AFTER_S else 0.0
