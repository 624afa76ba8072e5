"""The options of the routing engine. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.routing.damping import DampingPolicy
from micro_core.routing.policy import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Timing, policies and damping of the engine. Times are seconds."""

    lease_s: float = 90.0
    """Seconds for which routes of a neighbour stay valid without a matching digest. Three digests are sent in this time."""

    coalesce_s: float = 0.5
    """Changes within this time are combined and advertised together. The delay is random, at least half of this."""

    relay_s: float = 0.04
    """Delay before a change at another origin is advertised to neighbours. It is random, at least half of this."""

    policies: tuple[Rule, ...] = ()
    """Which routes are advertised to which neighbour, and which of its routes are accepted (policy.py)."""

    damping: DampingPolicy = field(default_factory=DampingPolicy)
