"""What every component of one node shares: its id, sources of time and randomness, and where it logs and counts."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, DriverContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The surroundings of a component, passed to its constructor as one value."""

    node_id: str
    """Id of the node that the component belongs to."""
    clock: Clock
    """Time: `now()` for what is measured within this process, `wall()` for what others read."""
    random: Random
    """Randomness for jitter and for choosing among equals. Seeded in tests and in the lab."""
    logger: logging.Logger
    """Messages are constant; values go into `extra`."""
    counters: Counters
    """Counts what is dropped, refused or repaired."""

    @classmethod
    def from_context(cls, context: DriverContext) -> Environment:
        """Return the part of a driver's context that components share."""
        return cls(
            node_id=context.node_id,
            clock=context.clock,
            random=context.random,
            logger=context.logger,
            counters=context.counters,
        )
