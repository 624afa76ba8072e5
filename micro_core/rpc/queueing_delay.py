"""Estimate of how long calls to an instance or along a route wait for each other. Pure.

The durations of calls differ between handlers and between the calls of one handler. The estimate therefore compares the
mean duration of each endpoint with a learned baseline. The baseline follows the mean down at once and up only over minutes,
so that an overload does not become the baseline (the idea of Netflix's Gradient2 limit: compare a short average with a long
one). The queueing delay is the amount by which the mean exceeds `TOLERANCE` times the baseline plus the mean deviation, so
that durations that merely vary do not count (the margin of the retransmission timer in RFC 6298).
"""

from __future__ import annotations

from dataclasses import dataclass

GAIN = 1 / 16
"""Weight of one call in the mean duration of its endpoint."""

DEVIATION_GAIN = 1 / 64
"""Weight of one call in the mean deviation of its endpoint."""

TOLERANCE = 2.0
"""Factor by which the baseline plus the deviation may be exceeded before a duration counts as delayed."""

MAX_ERROR, MIN_MAX_ERROR_S = 8.0, 0.001
"""A single duration counts as at most the mean plus this multiple of mean and deviation, and plus this time.

One call that takes seconds is therefore not mistaken for a queue. In a queue, many calls take longer, and the mean follows
them as fast, since the limit grows with it."""

LEARNING_CALLS = 16
"""The first calls of an endpoint count equally, and their mean is the baseline: a single short call may be an exception."""

BASELINE_RISE_S = 600.0
"""Time in which two thirds of a permanent rise enter the baseline: a handler that has become slower is not overloaded for
ever."""

HALF_LIFE_S = 0.5
"""Time in which the estimate halves while no call ends, so that callers try a delayed instance again."""

MAX_ENDPOINTS = 1_000
"""Endpoints with statistics; calls to further endpoints are ignored."""


@dataclass(slots=True)
class _EndpointStats:
    mean_s: float
    baseline_s: float
    updated_at: float
    deviation_s: float = 0.0
    """Mean deviation of single calls from the mean."""
    calls: int = 1
    """Number of calls, up to `LEARNING_CALLS`."""


class QueueingDelay:
    """The queueing delay of the calls to one instance or to the end of one route. All times are in seconds."""

    __slots__ = ("_delay_s", "_endpoints", "_updated_at")

    def __init__(self) -> None:
        self._endpoints: dict[str, _EndpointStats] = {}
        self._delay_s = 0.0
        self._updated_at = 0.0

    def call_ended(self, endpoint: str, duration_s: float, now: float) -> None:
        """Add the duration of a call that has ended with a response."""
        stats = self._endpoints.get(endpoint)
        if stats is None:
            if len(self._endpoints) < MAX_ENDPOINTS:
                self._endpoints[endpoint] = _EndpointStats(duration_s, duration_s, now)
            return
        if stats.calls < LEARNING_CALLS:
            stats.calls += 1
            error_s = duration_s - stats.mean_s
            stats.mean_s = stats.baseline_s = stats.mean_s + error_s / stats.calls
            stats.deviation_s += (abs(error_s) - stats.deviation_s) / stats.calls
            stats.updated_at = now
            return
        # This runs once per call at every hop, so it calls no built-in function and reads each attribute once.
        mean_s = stats.mean_s
        deviation_s = stats.deviation_s
        error_s = duration_s - mean_s
        if error_s > (limit_s := MAX_ERROR * (mean_s + deviation_s) + MIN_MAX_ERROR_S):
            error_s = limit_s
        mean_s = stats.mean_s = mean_s + GAIN * error_s
        deviation_s += DEVIATION_GAIN * ((error_s if error_s > 0.0 else -error_s) - deviation_s)
        stats.deviation_s = deviation_s
        baseline_s = stats.baseline_s
        if mean_s <= baseline_s:
            baseline_s = mean_s
        else:
            share = (now - stats.updated_at) / BASELINE_RISE_S
            baseline_s += (mean_s - baseline_s) * (share if share < 1.0 else 1.0)  # noqa: FURB136 - `min` is slower
        stats.baseline_s, stats.updated_at = baseline_s, now
        excess_s = mean_s - TOLERANCE * (baseline_s + deviation_s)
        if excess_s <= 0.0:
            if self._delay_s == 0.0:
                return
            excess_s = 0.0
        # Every endpoint moves the estimate towards its own excess: frequently called endpoints have more weight.
        before_s = self.delay_s(now)
        self._delay_s = before_s + GAIN * 4 * (excess_s - before_s)
        self._updated_at = now

    def delay_s(self, now: float) -> float:
        """Return the queueing delay that the next call can expect, in seconds."""
        if self._delay_s < 1e-6:
            return 0.0
        delay_s: float = self._delay_s * 0.5 ** ((now - self._updated_at) / HALF_LIFE_S)
        return delay_s

    def baseline_s(self, endpoint: str) -> float:
        """Return the duration of a call to `endpoint` without queueing, in seconds; 0 for an unknown endpoint."""
        stats = self._endpoints.get(endpoint)
        return stats.baseline_s if stats is not None else 0.0
