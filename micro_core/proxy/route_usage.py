"""The number of calls in progress on each route, and their waiting times."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract.table import RouteKey
from micro_core.rpc.queueing_delay import QueueingDelay

MAX_ROUTES_MEASURED = 10_000
"""Maximum number of measured routes. Beyond it, the oldest route without calls is forgotten."""


class RouteUsage:
    """The calls along one route."""

    __slots__ = ("outstanding", "queueing_delay")

    def __init__(self) -> None:
        self.outstanding = 0
        self.queueing_delay = QueueingDelay()


class RouteUsageTable:
    """The usage of every route that carried a call. `now` returns the time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._usage: dict[RouteKey, RouteUsage] = {}

    def get_or_create(self, key: RouteKey) -> RouteUsage:
        """Return the usage of a route."""
        return self._usage.get(key) or self._create(key)

    def outstanding(self, key: RouteKey) -> int:
        """Return how many calls use a route now."""
        usage = self._usage.get(key)
        return usage.outstanding if usage is not None else 0

    def waiting_us(self, key: RouteKey) -> int:
        """Return how much longer than usual recent calls along a route have waited, in microseconds."""
        usage = self._usage.get(key)
        return round(usage.queueing_delay.delay_s(self._now()) * 1e6) if usage is not None else 0

    def _create(self, key: RouteKey) -> RouteUsage:
        if len(self._usage) >= MAX_ROUTES_MEASURED:
            idle = next((measured for measured, usage in self._usage.items() if not usage.outstanding), None)
            if idle is not None:
                del self._usage[idle]
        usage = self._usage[key] = RouteUsage()
        return usage
