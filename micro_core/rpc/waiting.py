"""How much longer calls take than they usually do: the sign that they wait for each other. Pure.

Handlers differ, and so do the calls of one handler; what is usual is learned, endpoint by endpoint. It follows the mean down at
once and up only over minutes, so that an overload is not taken for the usual (the idea of Netflix's Gradient2 limit:
compare a short average with a long one). What counts as waiting is what the mean exceeds `TOLERANCE` times the usual and
the usual deviation by: calls that merely vary do not (the margin of RFC 6298's retransmission timer).
"""

from __future__ import annotations

from dataclasses import dataclass

GAIN = 1 / 16
"""Weight of one call in the mean of its endpoint."""

DEVIATION_GAIN = 1 / 64
"""Weight of one call in the mean deviation of its endpoint."""

TOLERANCE = 2.0
"""Times the usual, and times the deviation, that still count as usual."""

USUAL_RISES_IN_S = 600.0
"""Time in which two thirds of a lasting rise become usual: a handler that has become slower is not overloaded for ever."""

HALF_LIFE_S = 0.5
"""Where no call ends, what was known of the waiting halves in this time: somebody has to try again."""

MAX_ENDPOINTS = 1_000


@dataclass(slots=True)
class _Endpoint:
    mean_s: float
    usual_s: float
    at: float
    deviation_s: float = 0.0
    """Of single calls from the mean."""


class Waiting:
    """Of the calls to one place, an instance or the far end of a route. Times in seconds."""

    __slots__ = ("_at", "_endpoints", "_waiting_s")

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}
        self._waiting_s = 0.0
        self._at = 0.0

    def ended(self, endpoint: str, duration_s: float, now: float) -> None:
        """A call has been answered."""
        known = self._endpoints.get(endpoint)
        if known is None:
            if len(self._endpoints) < MAX_ENDPOINTS:
                self._endpoints[endpoint] = _Endpoint(duration_s, duration_s, now)
            return
        # Done once a call at every hop: no built-in is called, nothing is read twice.
        error_s = duration_s - known.mean_s
        mean_s = known.mean_s = known.mean_s + GAIN * error_s
        deviation_s = known.deviation_s
        deviation_s += DEVIATION_GAIN * ((error_s if error_s > 0.0 else -error_s) - deviation_s)
        known.deviation_s = deviation_s
        usual_s = known.usual_s
        if mean_s <= usual_s:
            usual_s = mean_s
        else:
            share = (now - known.at) / USUAL_RISES_IN_S
            usual_s += (mean_s - usual_s) * (share if share < 1.0 else 1.0)  # noqa: FURB136 - a call of min costs more
        known.usual_s, known.at = usual_s, now
        excess_s = mean_s - TOLERANCE * (usual_s + deviation_s)
        if excess_s <= 0.0:
            if self._waiting_s == 0.0:
                return
            excess_s = 0.0
        # Endpoints take turns at saying what the waiting is: those that are called more say it more often.
        before_s = self.waiting_s(now)
        self._waiting_s = before_s + GAIN * 4 * (excess_s - before_s)
        self._at = now

    def waiting_s(self, now: float) -> float:
        """What a call may expect to wait."""
        if self._waiting_s < 1e-6:
            return 0.0
        waiting_s: float = self._waiting_s * 0.5 ** ((now - self._at) / HALF_LIFE_S)
        return waiting_s

    def usual_s(self, endpoint: str) -> float:
        """What calls to an endpoint usually take; 0 where nothing is known."""
        known = self._endpoints.get(endpoint)
        return known.usual_s if known is not None else 0.0
