"""A copy of the route table of the router process, for the proxy process. A lookup needs no request to the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.errors import Conflict, LinkLost, MicroError
from micro_core.contract.names import INTEREST_PREFIX, ROUTER_SERVICE
from micro_core.contract.table import (
    ANY_SERVICE,
    LOCAL_LINK,
    Route,
    RouteEvent,
    RouteEventKind,
    RouteKey,
    RouteQuery,
)
from micro_core.drivers.runtime import Runtime
from micro_core.lifecycle.background_tasks import BackgroundTasks, ends_before
from micro_core.rpc.client import Client
from micro_core.standalone.discovery import find_component
from micro_core.standalone.router.protocol import event_from_item, route_from_map
from micro_core.tunnel.backoff import Backoff
from micro_core.wire import limits
from micro_core.wire.header import CallMode

MAX_SILENCE_S = 15.0
"""The router sends an item at least every five seconds. After this much silence it is treated as not available."""

MAX_STALE_S = 90.0
"""Seconds for which routes to other sites are used while the router is not available. A router uses the same time for the routes
of its neighbours."""

INITIAL_RETRY_S = 0.1
MAX_RETRY_S = 2.0
"""Bounds of the pause between two attempts to watch the table."""


class RemoteRouter:
    """Watches the route table of the router of node `name`. Implements the `RouteSource` of the proxy."""

    def __init__(self, runtime: Runtime, *, name: str, node_id: str) -> None:
        context = runtime.context
        self._registry = runtime.registry
        self._name = name
        self._node_id = node_id
        self._context = context
        self._client = Client(
            registry=runtime.registry,
            transport=runtime.transport,
            proxy="",
            name=f"node {name}",
            counters=context.counters,
        )
        self._table = MemoryTable(logger=context.logger, counters=context.counters)
        self._first_sync = asyncio.Event()
        self._stale_timer: asyncio.TimerHandle | None = None
        self._is_synced = False
        """Whether the copy is complete and the current watch keeps it up to date."""
        self._tasks = BackgroundTasks(
            component="router client",
            logger=context.logger,
            counters=context.counters,
            failure_counter="router_tasks_failed",
        )
        self._availability_handler: Callable[[MicroError | None], None] | None = None

    # -------------------------------------------------------------- lifecycle

    async def connect(self) -> None:
        """Find the router and read its table. Waits without limit until the router is available."""
        task = self._tasks.start(self._maintain_sync())
        if await ends_before(task, self._first_sync):
            task.result()

    async def close(self) -> None:
        """Stop watching and discard the copy. Safe to call twice."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()
        await self._tasks.cancel()
        await self._client.close()
        await self._table.close()

    def set_availability_handler(self, handler: Callable[[MicroError | None], None]) -> None:
        """Call `handler(error)` when the router becomes unavailable, `handler(None)` when it is available.

        It is called again only if the reason changes.

        Raises:
            Conflict: A handler is set already.
        """
        if self._availability_handler is not None:
            raise Conflict("the client of the router has an availability handler already")
        self._availability_handler = handler

    # ------------------------------------------------------------ RouteSource

    def lookup(self, service: str) -> Sequence[Route]:
        """Return the routes of a service, best first. If it has none, return those of the default route.

        Interest in a topic (`~topic`) has no default route.
        """
        routes = self._table.lookup(service)
        return routes if routes or service.startswith(INTEREST_PREFIX) else self._table.lookup(ANY_SERVICE)

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`."""
        return self._table.list(query)

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` for each change of the copy. Call the returned function to stop."""
        return self._table.watch(callback)

    # ---------------------------------------------------------------- private

    async def _maintain_sync(self) -> None:
        backoff = Backoff(random=self._context.random, initial_s=INITIAL_RETRY_S, max_s=MAX_RETRY_S)
        reported = ""
        while True:
            self._is_synced = False
            try:
                await self._watch_router()
                reason: MicroError = LinkLost("the router ended the watch of its table")
            except MicroError as error:
                reason = error
            if self._is_synced:
                backoff.reset()
                reported = ""
                self._stale_timer = asyncio.get_running_loop().call_later(MAX_STALE_S, self._remove_stale_routes)
            if reason.detail != reported:
                reported = reason.detail
                self._report_availability(reason)
            self._context.counters.add("router_watch_failed")
            await asyncio.sleep(backoff.next_s())

    async def _watch_router(self) -> None:
        """Read the table, then its changes. Returns when the router ends the stream."""
        instance = await find_component(self._registry, ROUTER_SERVICE, self._name)
        stream = self._client.stream(
            ROUTER_SERVICE,
            "Router.Watch",
            None,
            address=instance.address,
            mode=CallMode.SERVER_STREAM,
            timeout_s=limits.MAX_TIMEOUT_S,
            retries=0,
        )
        routes: dict[RouteKey, Route] = {}
        async with stream:
            while True:
                try:
                    async with asyncio.timeout(MAX_SILENCE_S):
                        item = await anext(stream)
                except TimeoutError:
                    raise LinkLost(f"the router has been silent for {MAX_SILENCE_S:g} s") from None
                except StopAsyncIteration:
                    return
                if not isinstance(item, dict):
                    continue
                if "node" in item and item["node"] != self._node_id:
                    raise Conflict("the router belongs to another node", hint="restart the proxy")
                for value in _list_field(item, "routes"):
                    route = route_from_map(value)
                    routes[route.key] = route
                if item.get("synced"):
                    self._replace_all(routes)
                if self._is_synced:
                    self._apply([event_from_item(value) for value in _list_field(item, "changes")])

    def _replace_all(self, routes: dict[RouteKey, Route]) -> None:
        for route in self._table.list():
            if route.key not in routes:
                self._table.delete(route.key)
        for route in routes.values():
            self._table.put(route)
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        self._is_synced = True
        self._first_sync.set()
        self._report_availability(None)

    def _apply(self, events: Sequence[RouteEvent]) -> None:
        for event in events:
            if event.kind is RouteEventKind.DELETE:
                self._table.delete(event.route.key)
            else:
                self._table.put(event.route)

    def _remove_stale_routes(self) -> None:
        """Remove the routes to other sites. Routes to instances of this site are kept: they do not depend on neighbours."""
        for route in self._table.list():
            if route.link != LOCAL_LINK:
                self._table.delete(route.key)
        self._context.counters.add("router_copies_stale")
        self._context.logger.warning(
            "the router was not available for too long: routes to other sites are removed",
            extra={"limit_s": MAX_STALE_S},
        )

    def _report_availability(self, error: MicroError | None) -> None:
        if self._availability_handler is not None:
            self._availability_handler(error)


def _list_field(item: dict[str, Any], key: str) -> list[Any]:
    value = item.get(key)
    return value if isinstance(value, list) else []
