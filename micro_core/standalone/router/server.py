"""The endpoints through which other processes of a node read the route table of the router process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Overloaded
from micro_core.contract.table import Table, TableEvent
from micro_core.node.router_endpoints import ServiceRequest
from micro_core.proxy.routes import RouteSource
from micro_core.rpc.server import Server
from micro_core.standalone.router.protocol import ROUTES_PER_ITEM, items_of, items_of_table, route_to_map, weight_of

MAX_WATCHERS = 256
"""Open watches of the table. A request for one more is refused with Overloaded."""

MAX_UNREAD_EVENTS = 10_000
"""Changed routes and offers queued for one watcher. A watcher with more is disconnected; it then reads the whole table again."""

HEARTBEAT_S = 5.0
"""Longest time between two items of a watch. An item is empty if nothing has changed."""


class TableEndpoints:
    """Serves lookups and watches of `table`, the route table of `router`, which is the router of the node `node_id`."""

    def __init__(self, router: RouteSource, table: Table, *, node_id: str, counters: Counters) -> None:
        self._router = router
        self._table = table
        self._node_id = node_id
        self._counters = counters
        self._wakeups: dict[asyncio.Event, None] = {}
        """One event per open watch, set when the watch has something to send."""
        self._is_ending = False

    def end_watches(self) -> None:
        """End all watches, so that the server can drain without waiting for them."""
        self._is_ending = True
        for wakeup in self._wakeups:
            wakeup.set()

    def add_to(self, server: Server) -> None:
        """Add both endpoints to `server`."""
        server.add("Router.Lookup", self.lookup, idempotent=True)
        server.add("Router.Watch", self.watch, idempotent=True)

    async def lookup(self, request: ServiceRequest) -> dict[str, Any]:
        """Return the routes of a service, best first. If it has none, return those of the default route."""
        return {"routes": [route_to_map(route) for route in self._router.lookup(request.service)[:ROUTES_PER_ITEM]]}

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """Send the table, then its changes.

        The items are {node}, {table} in batches, {synced}, then {changes} (protocol.py). The list of changes is empty if
        nothing has changed for HEARTBEAT_S. The stream ends if the watcher falls behind by more than MAX_UNREAD_EVENTS.

        Raises:
            Overloaded: MAX_WATCHERS watches are open.
        """
        if len(self._wakeups) >= MAX_WATCHERS:
            raise Overloaded(f"cannot watch the route table: {MAX_WATCHERS} watches are open")
        pending: deque[TableEvent] = deque()
        unread = 0
        is_behind = False
        wakeup = asyncio.Event()
        self._wakeups[wakeup] = None

        def on_event(event: TableEvent) -> None:
            nonlocal unread, is_behind
            if unread <= MAX_UNREAD_EVENTS:
                pending.append(event)
                unread += weight_of(event)
            else:
                # The event is lost, so the watch ends when its client reads again.
                is_behind = True
            wakeup.set()

        unsubscribe = self._router.watch(on_event)
        try:
            yield {"node": self._node_id}
            pending.clear()
            unread, is_behind = 0, False
            for item in items_of_table(self._table):
                yield {"table": item}
            yield {"synced": True}
            while not self._is_ending:
                if not pending:
                    wakeup.clear()
                    await _wait_at_most(wakeup, HEARTBEAT_S)
                if is_behind:
                    self._counters.add("router_watchers_slow")
                    return
                events = [*pending]
                pending.clear()
                unread = 0
                if not events:
                    yield {"changes": []}
                for item in items_of(events):
                    yield {"changes": item}
        finally:
            unsubscribe()
            del self._wakeups[wakeup]


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
