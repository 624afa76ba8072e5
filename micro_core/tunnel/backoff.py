"""Exponential backoff with jitter and an upper bound. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract.clock import Random


@dataclass(slots=True, kw_only=True)
class Backoff:
    """The pauses between repeated attempts. Call `next_s()` after each failure, `reset()` after a success."""

    random: Random
    initial_s: float = 0.2
    max_s: float = 30.0
    failures: int = 0

    def next_s(self) -> float:
        """Return the next pause in seconds: between half of the current bound and the bound, which doubles each time."""
        bound = min(self.max_s, self.initial_s * (1 << min(self.failures, 30)))
        self.failures += 1
        return bound * self.random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the initial pause."""
        self.failures = 0
