"""Which origins have a route, and which lost their last one a moment ago, so that calls to them may wait. Pure."""

from __future__ import annotations

from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import ANY_SERVICE, OriginRouteChanged, Table, TableEvent

EXPECTED_S = 2.0
"""Seconds after the loss of its last route for which another route to an origin is expected.

A neighbour that has lost its route, too, needs two round trips along the other one to get a newer sequence number."""


class ReachableOrigins:
    """Follows the changes of a table. Stale routes do not count: no neighbour has advertised them since the restart."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._routes: dict[str, int] = {}
        """Number of routes to each origin that has any."""
        self._lost_at: dict[str, float] = {}
        """Clock seconds, in the order of the losses. Those that are older than `EXPECTED_S` are removed."""
        self._all: frozenset[str] | None = None
        """The answer of `all`; None after the set of reachable origins has changed."""

    def observe(self, event: TableEvent, now: float) -> None:
        """Process a change of the table. `now` is in clock seconds."""
        if not isinstance(event, OriginRouteChanged):
            return
        was_known, is_known = (one is not None and one.expires_at is None for one in (event.before, event.after))
        if was_known is is_known:
            return
        route = event.after or event.before
        assert route is not None
        origin, count = route.origin, self._routes.get(route.origin, 0) + is_known - was_known
        if count < 0:
            # A route that the table has kept from before a restart becomes stale.
            return
        if (count > 0) is not (origin in self._routes):
            self._all = None
        if count > 0:
            self._routes[origin] = count
            self._lost_at.pop(origin, None)
            return
        self._routes.pop(origin, None)
        self._lost_at.pop(origin, None)
        while self._lost_at and not self.is_lost_recently(oldest := next(iter(self._lost_at)), now):
            del self._lost_at[oldest]
        self._lost_at[origin] = now

    def __contains__(self, origin: str) -> bool:
        """Return whether a neighbour has advertised a usable route to an origin."""
        return origin in self._routes

    def all(self) -> frozenset[str]:
        """Return all origins that have a route."""
        if self._all is None:
            self._all = frozenset(self._routes)
        return self._all

    def is_lost_recently(self, origin: str, now: float) -> bool:
        """Return whether the last route to an origin was lost within `EXPECTED_S`."""
        lost_at = self._lost_at.get(origin)
        return lost_at is not None and lost_at > now - EXPECTED_S

    def without_route(self, service: str) -> list[str]:
        """Return the origins without a route that offer a service; if no origin offers it, those with a default route."""
        origins = self._table.origins_of(service)
        if not origins and not service.startswith(INTEREST_PREFIX):
            origins = self._table.origins_of(ANY_SERVICE)
        return [origin for origin in origins if origin not in self._routes]
