"""The options of the routing engine. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.routing.damping import INTEREST_DAMPING, DampingPolicy
from micro_core.routing.link_damping import LinkDampingPolicy
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

    answer_s: float = 0.01
    """Delay before a newer sequence number is advertised to the neighbours that have requested it. Those of several origins often
    arrive one after the other."""

    slow_s: float = 2.0
    """Minimum time between two adverts to one neighbour about metrics, paths and load. It is random, at most a quarter more."""

    policies: tuple[Rule, ...] = ()
    """Which routes are advertised to which neighbour, and which of its routes are accepted (policy.py)."""

    damping: DampingPolicy = field(default_factory=DampingPolicy)

    interest_damping: DampingPolicy = field(default_factory=lambda: INTEREST_DAMPING)
    """Damping of interest in topics. It is milder, since a subscriber that waits misses messages."""

    link_damping: LinkDampingPolicy = field(default_factory=LinkDampingPolicy)
