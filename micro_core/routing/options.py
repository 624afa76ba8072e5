"""What may be chosen of the engine. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.routing.damping import DampingPolicy
from micro_core.routing.policy import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Times of the engine, in seconds."""

    lease_s: float = 90.0
    """How long ways stand without a digest of the neighbour they lead through; three are sent in that time."""

    coalesce_s: float = 0.5
    """Changes within this time are told together; jittered down to half."""

    relay_s: float = 0.04
    """How long a word of its origin waits at those that pass it on; jittered down to half."""

    policies: tuple[Rule, ...] = ()
    """What which neighbour is told and believed (policy.py)."""

    damping: DampingPolicy = field(default_factory=DampingPolicy)
