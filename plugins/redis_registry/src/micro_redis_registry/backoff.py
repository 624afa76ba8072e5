"""Pauses between retries. Pure: the random source is an argument."""

from __future__ import annotations

from micro_core.contract import Random

INITIAL_PAUSE_S = 0.05
"""Upper bound of the first pause in seconds."""

MAX_PAUSE_S = 1.0
"""Longest pause in seconds. Short, since owners restore lost records after it and watchers wait for that (`HOLD_S`)."""


class Backoff:
    """Random pauses whose upper bound doubles after each failure; each is at least half of its bound."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling_s = INITIAL_PAUSE_S

    def next_s(self) -> float:
        """Return the pause in seconds after another failure."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(MAX_PAUSE_S, ceiling_s * 2)
        return self._random.uniform(ceiling_s / 2, ceiling_s)

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._ceiling_s = INITIAL_PAUSE_S
