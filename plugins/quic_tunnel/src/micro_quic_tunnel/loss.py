"""The share of sent packets that are lost. Pure: callers pass `now` in seconds.

The pings of core cannot measure it: they are sent on a reliable stream, so a lost packet delays them only.
"""

from __future__ import annotations

import math

TIME_CONSTANT_S = 10.0
"""Packets count less the longer ago they were judged: after this time, 37 % of a packet."""

MIN_PACKETS = 32.0
"""Packets count for longer on a calm link, which carries a few per second, so that at least this many are considered. A
single lost packet is then about 3 %."""


class LossMeter:
    """The loss of the packets that one end sends."""

    __slots__ = ("_at", "_judged", "_lost")

    def __init__(self) -> None:
        self._judged = MIN_PACKETS
        self._lost = 0.0
        self._at: float | None = None

    def acknowledged(self, now: float) -> None:
        """Account for a packet that arrived."""
        self._age(now)
        self._judged += 1.0

    def lost(self, now: float) -> None:
        """Account for a packet that is declared lost."""
        self._age(now)
        self._judged += 1.0
        self._lost += 1.0

    def arrived_after_all(self) -> None:
        """Account for a packet that was declared lost and arrived: it was late."""
        self._lost = max(0.0, self._lost - 1.0)

    def share(self) -> float:
        """Return the share of lost packets, 0 to 1."""
        return self._lost / self._judged

    def _age(self, now: float) -> None:
        if self._at is not None and now > self._at:
            rest = math.exp((self._at - now) / TIME_CONSTANT_S)
            rest = max(rest, min(1.0, MIN_PACKETS / (self._judged + 1.0)))
            self._judged *= rest
            self._lost *= rest
        self._at = now
