"""The values that all components of one node share: node id, clock, random source, logger and counters."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, CountersInMemory, DriverContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The shared values, passed to the constructor of each component as one argument."""

    node_id: str
    """Id of the node that the component belongs to."""
    clock: Clock
    """Time: `now()` for durations within this process, `wall()` for values that other processes read."""
    random: Random
    """Random numbers for jitter and for choices between equals. Seeded in tests and in the lab."""
    logger: logging.Logger
    """Messages are constant, and values are passed in `extra`."""
    counters: Counters
    """Counts everything that is dropped, refused or repaired."""

    def counted(self) -> dict[str, int]:
        """Return all counters by name, sorted. Empty if the counters are of a type that cannot be read."""
        return dict(sorted(self.counters.values.items())) if isinstance(self.counters, CountersInMemory) else {}

    @classmethod
    def from_context(cls, context: DriverContext) -> Environment:
        """Return the environment of components that use the same context as a driver."""
        return cls(
            node_id=context.node_id,
            clock=context.clock,
            random=context.random,
            logger=context.logger,
            counters=context.counters,
        )
