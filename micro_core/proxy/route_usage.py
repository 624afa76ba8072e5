"""The calls in progress on each route, and routes that have refused calls."""

from __future__ import annotations

from micro_core.contract.table import Route
from micro_core.proxy.destination import Destination

INITIAL_AVOIDANCE_S = 0.5
"""Seconds for which a route is avoided after it has refused a call. They double with each further refusal."""

MAX_AVOIDANCE_S = 10.0

_MAX_COUNTED_REFUSALS = 16


class RouteUsage:
    """The calls along one route.

    A route that refuses calls immediately (no route, unreachable, draining) has few calls in progress, and would attract all calls.
    It is therefore avoided for a time.
    """

    __slots__ = ("avoided_until", "destination", "gateway", "outstanding", "refusals", "route")

    def __init__(self, route: Route, destination: Destination) -> None:
        self.route = route
        """The current route: its metric changes."""
        self.gateway = route.gateway
        """Node id of the next hop. Empty for a local route."""
        self.destination = destination
        self.outstanding = 0
        """All calls in progress, including streams."""
        self.refusals = 0
        self.avoided_until = 0.0
        """Clock seconds until which the route is used only if there is no other one."""

    def refused(self, now: float) -> bool:
        """Record that no work was started on a call that was sent along this route. Return whether it is newly avoided."""
        is_new = self.avoided_until <= now
        self.refusals = min(self.refusals + 1, _MAX_COUNTED_REFUSALS)
        self.avoided_until = now + min(INITIAL_AVOIDANCE_S * 2 ** (self.refusals - 1), MAX_AVOIDANCE_S)
        return is_new

    def answered(self) -> bool:
        """Record an answer. Return whether the route is no longer avoided because of it."""
        if not self.refusals:
            return False
        self.refusals, self.avoided_until = 0, 0.0
        return True
