"""What the proxy needs of a router: the router of the same process, or a copy of the table of another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from micro_core.contract.table import Route, RouteEvent, RouteQuery


class RouteSource(Protocol):
    """A routing table in memory. The methods do not wait, because a lookup is part of every call."""

    def lookup(self, service: str) -> Sequence[Route]:
        """Return the routes of a service, best metric first; without any, those of the default route.

        Interest in a topic (`~topic`) has no default route.
        """
        ...

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`, or all routes."""
        ...

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change. The returned function ends the watch."""
        ...
