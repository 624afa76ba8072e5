"""How long to wait before trying again: exponential, with full jitter, bounded. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract.clock import Random


@dataclass(slots=True, kw_only=True)
class Backoff:
    """`next_s()` after each failure, `reset()` after a success."""

    random: Random
    first_s: float = 0.2
    last_s: float = 30.0
    failures: int = 0

    def next_s(self) -> float:
        """A time between half of the current bound and the whole; the bound doubles up to `last_s`."""
        bound = min(self.last_s, self.first_s * (1 << min(self.failures, 30)))
        self.failures += 1
        return bound * self.random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self.failures = 0
