"""Selection of the instance that serves the next call, with ejection of failing instances. Pure.

An instance that fails is ejected: it is not selected for a time that doubles with each consecutive failure. When all instances
are ejected, the one whose ejection ends first is selected, so a call is never refused only because of earlier failures.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.registry import Instance

INITIAL_EJECTION_S = 0.5
"""Duration of the ejection after the first failure."""

MAX_EJECTION_S = 30.0
"""Maximum duration of an ejection. The lease of a stopped instance has expired by then."""

MAX_REMEMBERED = 4_096
"""Maximum number of instances with statistics. Above it, the oldest entry without open calls is dropped."""

_MAX_COUNTED_FAILURES = 16


class Strategy(enum.Enum):
    """How to choose among the instances that are not ejected."""

    RANDOM = "random"
    """Choose at random."""
    ROUND_ROBIN = "round-robin"
    """Choose each instance of a service in turn, across calls."""
    LEAST_OUTSTANDING = "least-outstanding"
    """Choose the one with fewer open calls of two random instances.

    The load is nearly even, and many clients do not choose the same instance at once."""


@dataclass(slots=True)
class _InstanceStats:
    outstanding: int = 0
    failures: int = 0
    ejected_until: float = 0.0


class Selector:
    """Chooses instances and records how calls to them ended. Instances are identified by their addresses."""

    def __init__(self, random: Random, strategy: Strategy = Strategy.LEAST_OUTSTANDING) -> None:
        self._random = random
        self._strategy = strategy
        self._stats: dict[str, _InstanceStats] = {}
        self._last_chosen: dict[str, str] = {}
        """Id of the instance that round robin chose last, by service."""

    def choose(self, instances: Sequence[Instance], now: float, *, avoid: frozenset[str] = frozenset()) -> Instance:
        """Return one of `instances`.

        Args:
            instances: The candidates, at least one.
            now: The current time in clock seconds.
            avoid: Addresses to avoid, e.g. those of earlier attempts. Used only if there are no other candidates.
        """
        if len(instances) == 1:
            return instances[0]
        candidates = [instance for instance in instances if instance.address not in avoid] or list(instances)
        all_stats = self._stats
        available = [
            instance
            for instance in candidates
            if (stats := all_stats.get(instance.address)) is None or stats.ejected_until <= now
        ]
        if not available:
            return min(candidates, key=lambda instance: all_stats[instance.address].ejected_until)
        if len(available) == 1:
            return available[0]
        match self._strategy:
            case Strategy.RANDOM:
                return available[self._random.randrange(0, len(available))]
            case Strategy.ROUND_ROBIN:
                return self._next_in_turn(available)
            case Strategy.LEAST_OUTSTANDING:
                return self._less_busy_of_two(available)

    def call_started(self, address: str) -> None:
        """Record the start of a call to `address`.

        Each start is followed by one of `call_succeeded`, `call_failed` and `call_abandoned`.
        """
        stats = self._stats.get(address)
        if stats is None:
            self._evict_if_full()
            stats = self._stats[address] = _InstanceStats()
        stats.outstanding += 1

    def call_succeeded(self, address: str) -> None:
        """Record an answer from `address` and end its ejection. An error that the service raised is an answer too."""
        stats = self._stats.get(address)
        if stats is not None:
            stats.outstanding = max(0, stats.outstanding - 1)
            stats.failures = 0
            stats.ejected_until = 0.0

    def call_failed(self, address: str, now: float) -> None:
        """Record a failure and eject `address`: it was unreachable, the connection broke, or it is overloaded or draining."""
        stats = self._stats.get(address)
        if stats is None:
            return
        stats.outstanding = max(0, stats.outstanding - 1)
        stats.failures = min(stats.failures + 1, _MAX_COUNTED_FAILURES)
        ejection_s = min(INITIAL_EJECTION_S * 2 ** (stats.failures - 1), MAX_EJECTION_S)
        stats.ejected_until = now + ejection_s * self._random.uniform(0.75, 1.0)

    def call_abandoned(self, address: str) -> None:
        """Record that the caller cancelled before an answer arrived. This does not affect the ejection of `address`."""
        stats = self._stats.get(address)
        if stats is not None:
            stats.outstanding = max(0, stats.outstanding - 1)

    def is_ejected(self, address: str, now: float) -> bool:
        """Return whether `address` is ejected at `now` (clock seconds)."""
        stats = self._stats.get(address)
        return stats is not None and stats.ejected_until > now

    def outstanding(self, address: str) -> int:
        """Return the number of calls to `address` that have started and not ended."""
        stats = self._stats.get(address)
        return stats.outstanding if stats is not None else 0

    def _next_in_turn(self, available: list[Instance]) -> Instance:
        # The last id is stored, not an index, so that the order is kept when instances are added or removed.
        ordered = sorted(available, key=lambda instance: instance.id)
        service = ordered[0].service
        last = self._last_chosen.get(service, "")
        chosen = next((instance for instance in ordered if instance.id > last), ordered[0])
        self._last_chosen[service] = chosen.id
        if len(self._last_chosen) > MAX_REMEMBERED:
            del self._last_chosen[next(iter(self._last_chosen))]
        return chosen

    def _less_busy_of_two(self, available: list[Instance]) -> Instance:
        first = self._random.randrange(0, len(available))
        second = self._random.randrange(0, len(available) - 1)
        second += second >= first
        one, other = available[first], available[second]
        return one if self.outstanding(one.address) <= self.outstanding(other.address) else other

    def _evict_if_full(self) -> None:
        if len(self._stats) < MAX_REMEMBERED:
            return
        idle = next((address for address, stats in self._stats.items() if stats.outstanding == 0), None)
        del self._stats[idle if idle is not None else next(iter(self._stats))]
