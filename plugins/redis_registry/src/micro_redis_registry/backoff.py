"""How long to pause before trying again. Pure: randomness is an argument."""

from __future__ import annotations

from micro_core.contract import Random

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
"""Short: owners restore what the server lost as soon as they reach it, and watchers wait for that (`HOLD_S`)."""


class Backoff:
    """Pauses that double from the first to the longest, each drawn from its upper half so that clients spread out."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling_s = FIRST_PAUSE_S

    def next_s(self) -> float:
        """The pause after one more failure."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(LONGEST_PAUSE_S, ceiling_s * 2)
        return self._random.uniform(ceiling_s / 2, ceiling_s)

    def reset(self) -> None:
        """It went well."""
        self._ceiling_s = FIRST_PAUSE_S
