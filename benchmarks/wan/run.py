"""One run of a scenario: its phases, and what the fault makes unreachable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.wan.network import WanNetwork

BEFORE_S = 4.0
"""Seconds of calm at the beginning of each scenario."""

DETECTION_S = 5.0
"""Seconds within which routes avoid a dead link: 3 s without a packet, 1 s until the next check, 1 s for withdrawals."""

HEAL_S = 2.0
"""Seconds after a heal in which calls may still fail."""


@dataclass
class Run:
    """One scenario on a running network. The methods mark its phases."""

    net: WanNetwork
    quick: bool
    since: float = field(default_factory=time.monotonic)
    fault_at: float = 0.0
    heal_at: float = 0.0
    changes: list[float] = field(default_factory=list)
    """Times at which messages under way may be lost: the fault, the heal, and each restart in between."""
    grace_s: float = HEAL_S
    """Seconds after `heal_at` in which calls may fail."""
    apart: set[tuple[int, int]] = field(default_factory=set)
    """Pairs (from, to) of clouds without any path during the fault; (x, x) if the broker of x is down."""
    facts: dict[str, Any] = field(default_factory=dict)
    repairs: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)
    """To be done after the measurement, before the next scenario."""

    async def sleep(self, seconds: float, quick_s: float | None = None) -> None:
        """Wait, with `--quick` only `quick_s`. Raises StartError if a process of the clients has failed."""
        end = time.monotonic() + (quick_s if self.quick and quick_s is not None else seconds)
        while time.monotonic() < end:
            self.net.check()
            await asyncio.sleep(min(0.2, max(0.0, end - time.monotonic())))

    def fault(self, at: float | None = None) -> None:
        """Mark the begin of the fault."""
        self.fault_at = self.heal_at = self.changed(at)

    def heal(self, at: float | None = None) -> None:
        """Mark the end of the fault."""
        self.heal_at = self.changed(at)

    def changed(self, at: float | None = None) -> float:
        """Mark a change during the fault, and return its time."""
        self.changes.append(at if at is not None else time.monotonic())
        return self.changes[-1]
