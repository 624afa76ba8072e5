"""What the proxy asks of a router: its own process's, or a copy of another's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from micro_core.contract.table import Route, RouteEvent, RouteQuery


class RouteSource(Protocol):
    """Synchronous and in memory: it is asked once a call."""

    def lookup(self, service: str) -> Sequence[Route]:
        """The routes of a service, best metric first; those of the default route where there is none."""
        ...

    def routes(self, query: RouteQuery | None = None) -> list[Route]: ...

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change; returns what ends it."""
        ...
