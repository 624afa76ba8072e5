"""The load that an instance reports in its record: the queueing delay of calls, in powers of two. Pure.

A value that changed with every call would cause an update of the registry and of every router each time. The delay is
therefore rounded down to a power of two times `MIN_US`. A change is reported after `SAMPLES_BEFORE_CHANGE` consecutive samples.

Routers see the value seconds later. If it fell as fast as the delay does when calls have left, all of them would return at
once. The value therefore rises at once and falls slowly: one power of two at a time, and only if the delay is clearly
below the reported value.
"""

from __future__ import annotations

from collections.abc import Iterable

from micro_core.rpc.queueing_delay import TOLERANCE, QueueingDelay

MIN_US = 4_000
"""Shorter delays are reported as 0. They come from iterations of the event loop, not from load."""

MAX_US = 8_192_000
"""Maximum reported delay."""

DECREASE_RATIO = 0.5
"""A lower value is reported when the delay is below this share of the reported value."""

SAMPLES_BEFORE_CHANGE = 2
"""Consecutive samples that must differ from the reported value before it changes."""

MIN_STALLED_CALLS = 4
"""Minimum number of running calls for a stall, if no call ended between two samples. A few calls may simply be long."""


class LoadMeasure:
    """Measures the load of one instance. `level_us` is the reported queueing delay in microseconds."""

    def __init__(self) -> None:
        self.level_us = 0
        self.queueing_delay = QueueingDelay()
        self._ended_calls = 0
        self._differing_samples = 0

    def call_ended(self, endpoint: str, duration_s: float, now: float) -> None:
        """Record a call that ended at `now` (clock seconds) after `duration_s` seconds."""
        self._ended_calls += 1
        self.queueing_delay.call_ended(endpoint, duration_s, now)

    def sample(self, now: float, running: Iterable[tuple[str, float]] = ()) -> bool:
        """Update `level_us` and return whether it has changed. To be called periodically.

        Args:
            now: The current time in clock seconds.
            running: Endpoint and start time of each call that is running.
        """
        delay_s = self.queueing_delay.delay_s(now)
        if not self._ended_calls:
            ages = [
                now - started_at - TOLERANCE * self.queueing_delay.baseline_s(endpoint)
                for endpoint, started_at in running
            ]
            if len(ages) >= MIN_STALLED_CALLS:
                delay_s = max(delay_s, sum(ages) / len(ages))
        self._ended_calls = 0
        delay_us = round(delay_s * 1e6)
        sampled_us = quantize(delay_us)
        differs = sampled_us > self.level_us or (self.level_us > 0 and delay_us < DECREASE_RATIO * self.level_us)
        self._differing_samples = self._differing_samples + 1 if differs else 0
        if self._differing_samples < SAMPLES_BEFORE_CHANGE:
            return False
        self._differing_samples = 0
        self.level_us = max(sampled_us, quantize(self.level_us // 2))
        return True


def quantize(delay_us: int) -> int:
    """Round `delay_us` down to a power of two times `MIN_US`, at most `MAX_US`. Return 0 for values below `MIN_US`."""
    if delay_us < MIN_US:
        return 0
    exponent: int = (delay_us // MIN_US).bit_length() - 1
    return min(MIN_US << exponent, MAX_US)
