"""Decides when digests are sent to which neighbours. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from micro_core.contract.clock import Random

DIGESTS_AT_ONCE = 4
"""Number of digests that are sent at the same time. With many neighbours, all at once would be a burst of messages."""

MAX_PAUSE_S = 1.0

NEVER = float("inf")


class DigestSchedule:
    """Rounds of one digest per neighbour. A round begins about every `interval_s` and takes at most half of that.

    Args:
        interval_s: Maximum time between the beginnings of two rounds, in seconds.
        random: Shortens each interval by up to a tenth, so that the rounds of several routers do not coincide.
    """

    def __init__(self, interval_s: float, random: Random) -> None:
        self.wake_at = NEVER
        """When the next digests are due, in clock seconds."""
        self._interval_s = interval_s
        self._random = random
        self._rest: deque[str] = deque()
        self._pause_s = 0.0
        self._round_at = NEVER

    def start(self, now: float) -> None:
        """Begin the first round after one interval, unless this was called before."""
        if self.wake_at == NEVER:
            self.wake_at = self._round_at = now + self._interval_s

    def begins_round(self, now: float) -> bool:
        """Return whether the next round begins now."""
        return self._round_at <= now and not self._rest

    def take(self, peers: Iterable[str], now: float) -> list[str]:
        """Return the neighbours to which a digest is to be sent now. `peers` are all neighbours, for the next round."""
        if self.begins_round(now):
            self._rest = deque(peers)
            share = DIGESTS_AT_ONCE / max(1, len(self._rest))
            self._pause_s = min(MAX_PAUSE_S, self._interval_s / 2 * share)
            self._round_at = now + self._interval_s * self._random.uniform(0.9, 1.0)
        due = [self._rest.popleft() for _ in range(min(DIGESTS_AT_ONCE, len(self._rest)))]
        self.wake_at = now + self._pause_s if self._rest else self._round_at
        return due
