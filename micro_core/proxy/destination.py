"""The window of a destination: the number of calls of one service that this proxy keeps at one site at a time. Pure.

A destination is the instances of a service that one origin offers, on this site or another one. While calls do not wait there,
its window is unlimited. If they wait for longer than the way to the next destination is worth, the window is set to the
calls in progress, and from then on follows the measured waiting time: it shrinks while calls wait for too long and grows
while they do not. Calls beyond the window go to the next destination.

Why a window instead of a share: the number of calls in progress is known without delay, and it depends on the calls that end.
The excess calls leave as soon as they arrive, the queue cannot grow meanwhile, and when the rate falls, all
calls return at once (the reason for windows in TCP; cf. the limits of Netflix's Gradient2). A share that follows measured
durations reacts one round trip and one queue too late, and swings. docs/design/003-load.md has the measurements.
"""

from __future__ import annotations

from micro_core.rpc.queueing_delay import GAIN, QueueingDelay

MIN_ALLOWED_S = 0.020
"""Waiting time that never makes calls leave: it is within the variation of a nearly busy instance."""

MIN_WINDOW = 1.0
"""A full destination still gets one call at a time, so that its recovery is noticed."""

ANSWERS_PER_CHANGE = 16
"""Answers between two changes of a window: fewer do not show the effect of the last one."""

MIN_CHANGE_INTERVAL_S = 0.1

SHARPNESS = 0.25
"""Share of the deviation from the allowed waiting time that one change of the window corrects."""

MAX_DECREASE, MAX_INCREASE = 0.9, 1.1
"""Factors by which one change of the window at most decreases or increases it."""

PEAK_DECAY = 0.9
"""Factor by which the recent maximum of the calls in progress falls per adjustment."""

MIN_INCREASE = 0.2
"""Minimum number of calls by which one change increases the window."""

RELEASE_S = 10.0
"""The window is removed after no call has been sent elsewhere for this time."""

FRESH_S = 5.0
"""Own measurements that are not older than this count instead of the load that the site advertises."""

MIN_STALLED_CALLS = 4
"""Minimum number of calls in progress for a stall, if no call ends. A few calls may simply be long."""

STALLED_LATENCIES = 4.0
"""Multiple of the usual duration for which no call ends in a stall."""


class Destination:
    """The calls to the instances of one service at one origin. All times are in seconds."""

    __slots__ = (
        "_answers",
        "_answers_when_changed",
        "_changed_at",
        "_filled_at",
        "_last_answer_at",
        "_latency_s",
        "_peak",
        "advertised_s",
        "base_s",
        "outstanding",
        "queueing_delay",
        "window",
    )

    def __init__(self, now: float) -> None:
        self.outstanding = 0
        """Unary calls in progress. Streams last for as long as their users want, so their number does not depend on load."""
        self.window = float("inf")
        """New calls go elsewhere while this many calls are in progress."""
        self.queueing_delay = QueueingDelay()
        self.base_s = 0.0
        """Cost of the way to the destination, without load."""
        self.advertised_s = 0.0
        """Load that the site advertises."""
        self._latency_s = 0.0
        self._peak: float = 0.0
        """Recent maximum of `outstanding`."""
        self._answers = 0
        self._answers_when_changed = 0
        self._changed_at = now
        self._filled_at = now
        """When the window was last full."""
        self._last_answer_at = now

    def call_started(self, now: float) -> None:
        """Record the start of a unary call."""
        if not self.outstanding:
            self._last_answer_at = now
        self.outstanding += 1
        if self.outstanding > self._peak:  # noqa: PLR1730 - `max` is slower
            self._peak = self.outstanding

    def call_ended(self) -> None:
        """Record the end of a call, whatever its result."""
        self.outstanding -= 1

    def answered(self, endpoint: str, duration_s: float, now: float) -> None:
        """Record the duration of an answered call, or of one that was given up after an unusually long time."""
        self.queueing_delay.call_ended(endpoint, duration_s, now)
        latency_s = self._latency_s
        self._latency_s = latency_s + GAIN * (duration_s - latency_s) if latency_s else duration_s
        self._answers += 1
        self._last_answer_at = now

    def refused(self, now: float) -> None:
        """Record that the destination refused a call because it is overloaded: it has fewer calls than it can execute."""
        self.window = max(MIN_WINDOW, min(self.window, float(self.outstanding)) * MAX_DECREASE)
        self._changed_at = self._filled_at = now

    def is_slow(self, duration_s: float) -> bool:
        """Return whether a call that was given up after `duration_s` seconds has taken longer than usual."""
        return duration_s > self._latency_s

    def filled(self, now: float) -> None:
        """Record that a call was sent elsewhere because the window is full."""
        self._filled_at = now

    def waiting_s(self, now: float) -> float:
        """Return how long the next call is expected to wait."""
        return max(self.queueing_delay.delay_s(now), self.unmeasured_s(now))

    def total_s(self, now: float) -> float:
        """Return the cost of the way and the expected waiting time."""
        return self.base_s + self.waiting_s(now)

    def unmeasured_s(self, now: float) -> float:
        """Return the advertised load if there is no own measurement of the waiting time, else 0."""
        return 0.0 if self._is_measured(now) else self.advertised_s

    def adjust(self, allowed_s: float, now: float) -> None:
        """Adjust the window, so that calls wait for about `allowed_s` when there are more calls than can be served."""
        allowed_s = max(allowed_s, MIN_ALLOWED_S)
        window, latency_s = self.window, self._latency_s
        excess_s = self.queueing_delay.delay_s(now) - allowed_s
        is_stalled = self._is_stalled(allowed_s, now)
        if is_stalled:
            excess_s = max(excess_s, now - self._last_answer_at)
        if window == float("inf"):
            if excess_s > 0.0:
                self._change(max(MIN_WINDOW, self._peak), now)
                self._filled_at = now
            self._peak = max(float(self.outstanding), PEAK_DECAY * self._peak)
            return
        if now - self._filled_at > RELEASE_S:
            self._change(float("inf"), now)
            return
        is_measured = self._answers - self._answers_when_changed >= ANSWERS_PER_CHANGE
        if now - self._changed_at < max(MIN_CHANGE_INTERVAL_S, latency_s) or not (is_measured or is_stalled):
            return
        factor = 1.0 - SHARPNESS * excess_s / max(latency_s, 1e-6)
        if factor < 1.0:
            self._change(max(MIN_WINDOW, window * max(factor, MAX_DECREASE)), now)
        elif self._filled_at >= self._changed_at:
            self._change(window + max(MIN_INCREASE, window * (min(factor, MAX_INCREASE) - 1.0)), now)

    def _change(self, window: float, now: float) -> None:
        self.window = window
        self._changed_at = now
        self._answers_when_changed = self._answers

    def _is_measured(self, now: float) -> bool:
        return self._answers >= ANSWERS_PER_CHANGE and now - self._last_answer_at <= FRESH_S

    def _is_stalled(self, allowed_s: float, now: float) -> bool:
        silent_s = now - self._last_answer_at
        return self.outstanding >= MIN_STALLED_CALLS and silent_s > allowed_s + STALLED_LATENCIES * self._latency_s
