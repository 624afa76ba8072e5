"""What the proxy needs of a router: the router of the same process, or a copy of the table of another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import (
    LocalRouteChanged,
    OffersChanged,
    OriginRouteChanged,
    Route,
    RouteQuery,
    TableEvent,
)


class RouteSource(Protocol):
    """A routing table in memory. The methods do not wait, because a lookup is part of every call."""

    def lookup(self, service: str) -> Sequence[Route]:
        """Return the routes of a service, best metric first; without any, those of the default route.

        An interest in a topic (`~topic`) never gets the default routes.
        """
        ...

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`, or all routes."""
        ...

    def is_expected(self, service: str) -> bool:
        """Return whether an origin offers a service and will probably have a route soon, though it has none now."""
        ...

    def interests(self) -> list[str]:
        """Return the services that are interests in topics (`~topic`) of this or other sites. They may have no route now."""
        ...

    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change. The returned function ends the watch."""
        ...


def changes_interests(event: TableEvent) -> bool:
    """Return whether a change of the table can change which topics other nodes are interested in.

    A change of a metric alone does not.
    """
    match event:
        case LocalRouteChanged(before, after):
            route = after or before
            return route is not None and route.service.startswith(INTEREST_PREFIX)
        case OriginRouteChanged(before, after):
            return before is None or after is None or (before.services, before.site) != (after.services, after.site)
        case OffersChanged(_, changes):
            offers = (after or before for before, after in changes if before is None or after is None)
            return any(offer is not None and offer.service.startswith(INTEREST_PREFIX) for offer in offers)
