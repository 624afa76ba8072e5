"""Which instance serves the next call. Pure: `now` and randomness are arguments.

An instance that fails is set aside for a time that doubles with each failure in a row, and comes back by itself;
when all are set aside, the one whose time is up soonest is tried: a caller is never refused for want of courage.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.registry import Instance

INITIAL_EJECTION_S = 0.5
"""How long an instance rests after one failure."""

MAX_EJECTION_S = 30.0
"""And after many: the lease of a dead instance has run out by then."""

MAX_REMEMBERED = 4_096
"""Instances whose standing is kept; the least recently used are forgotten first."""


class Strategy(enum.Enum):
    """How to choose among healthy instances."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    """Each in turn, per service, across calls."""
    LEAST_OUTSTANDING = "least-outstanding"
    """The less busy of two chosen at random: close to the best choice, and nothing herds."""


@dataclass(slots=True)
class _InstanceStats:
    outstanding: int = 0
    failures: int = 0
    ejected_until: float = 0.0


class Selector:
    """Chooses instances and remembers how they did."""

    def __init__(self, random: Random, strategy: Strategy = Strategy.LEAST_OUTSTANDING) -> None:
        self._random = random
        self._strategy = strategy
        self._standings: dict[str, _InstanceStats] = {}
        self._turns: dict[str, str] = {}

    def choose(self, instances: Sequence[Instance], now: float, *, avoid: frozenset[str] = frozenset()) -> Instance:
        """One of `instances` (at least one), none of `avoid` (addresses) while there are others."""
        if len(instances) == 1:
            return instances[0]
        fresh = [instance for instance in instances if instance.address not in avoid] or list(instances)
        standings = self._standings
        healthy = [
            instance
            for instance in fresh
            if (standing := standings.get(instance.address)) is None or standing.ejected_until <= now
        ]
        if not healthy:
            return min(fresh, key=lambda instance: standings[instance.address].ejected_until)
        if len(healthy) == 1:
            return healthy[0]
        match self._strategy:
            case Strategy.RANDOM:
                return healthy[self._random.randrange(0, len(healthy))]
            case Strategy.ROUND_ROBIN:
                return self._next_in_turn(healthy)
            case Strategy.LEAST_OUTSTANDING:
                return self._less_busy_of_two(healthy)

    def started(self, address: str) -> None:
        """A call to `address` began."""
        standing = self._standings.get(address)
        if standing is None:
            self._make_room()
            standing = self._standings[address] = _InstanceStats()
        standing.outstanding += 1

    def succeeded(self, address: str) -> None:
        """It answered (an error of the service is an answer)."""
        standing = self._standings.get(address)
        if standing is not None:
            standing.outstanding = max(0, standing.outstanding - 1)
            standing.failures = 0
            standing.ejected_until = 0.0

    def failed(self, address: str, now: float) -> None:
        """It could not be reached, broke off, or refused for being full or stopping."""
        standing = self._standings.get(address)
        if standing is None:
            return
        standing.outstanding = max(0, standing.outstanding - 1)
        standing.failures = min(standing.failures + 1, 16)
        ejection_s = min(INITIAL_EJECTION_S * 2 ** (standing.failures - 1), MAX_EJECTION_S)
        standing.ejected_until = now + ejection_s * self._random.uniform(0.75, 1.0)

    def gave_up(self, address: str) -> None:
        """The caller left before there was an answer: says nothing about the instance."""
        standing = self._standings.get(address)
        if standing is not None:
            standing.outstanding = max(0, standing.outstanding - 1)

    def is_ejected(self, address: str, now: float) -> bool:
        standing = self._standings.get(address)
        return standing is not None and standing.ejected_until > now

    def outstanding(self, address: str) -> int:
        """Calls to `address` that have begun and not ended."""
        standing = self._standings.get(address)
        return standing.outstanding if standing is not None else 0

    def _next_in_turn(self, healthy: list[Instance]) -> Instance:
        # The last id served, not an index: instances that come and go do not make anybody lose a turn.
        ordered = sorted(healthy, key=lambda instance: instance.id)
        service = ordered[0].service
        last = self._turns.get(service, "")
        chosen = next((instance for instance in ordered if instance.id > last), ordered[0])
        self._turns[service] = chosen.id
        if len(self._turns) > MAX_REMEMBERED:
            del self._turns[next(iter(self._turns))]
        return chosen

    def _less_busy_of_two(self, healthy: list[Instance]) -> Instance:
        first = self._random.randrange(0, len(healthy))
        second = self._random.randrange(0, len(healthy) - 1)
        second += second >= first
        one, other = healthy[first], healthy[second]
        return one if self.outstanding(one.address) <= self.outstanding(other.address) else other

    def _make_room(self) -> None:
        if len(self._standings) < MAX_REMEMBERED:
            return
        idle = next((address for address, standing in self._standings.items() if standing.outstanding == 0), None)
        del self._standings[idle if idle is not None else next(iter(self._standings))]
