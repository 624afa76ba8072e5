"""A copy of the route table of the router process, for the proxy process. A lookup needs no request to the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.errors import Conflict, LinkLost, Malformed, MicroError
from micro_core.contract.names import INTEREST_PREFIX, ROUTER_SERVICE
from micro_core.contract.table import (
    ANY_SERVICE,
    LOCAL_LINK,
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    OriginRouteKey,
    Route,
    RouteKey,
    RouteQuery,
    TableEvent,
)
from micro_core.drivers.runtime import Runtime
from micro_core.lifecycle.background_tasks import BackgroundTasks, ends_before
from micro_core.routing.reachable_origins import ReachableOrigins
from micro_core.rpc.client import Client
from micro_core.standalone.discovery import find_component
from micro_core.standalone.router.protocol import ChangeReader, weight_of
from micro_core.tunnel.backoff import Backoff
from micro_core.wire import limits
from micro_core.wire.header import CallMode

MAX_SILENCE_S = 15.0
"""The router sends an item at least every five seconds. After this much silence it is treated as not available."""

MAX_STALE_S = 90.0
"""Seconds for which routes to other sites are used while the router is not available. A router uses the same time for the routes
of its neighbours."""

MAX_TABLE_SIZE = 2_000_000
"""Maximum number of routes and offers of a table that is read."""

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
        self._reachable = ReachableOrigins(self._table)
        self._table.watch(lambda event: self._reachable.observe(event, context.clock.now()))
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

        An interest in a topic (`~topic`) never gets the default routes.
        """
        found = self._table.lookup(service)
        return found if found or service.startswith(INTEREST_PREFIX) else self._table.lookup(ANY_SERVICE)

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`."""
        return self._table.list(query)

    def is_expected(self, service: str) -> bool:
        """Return whether an origin offers a service and its last route was removed from the copy a moment ago."""
        now = self._context.clock.now()
        reachable = self._reachable
        return any(reachable.is_lost_recently(origin, now) for origin in reachable.without_route(service))

    def interests(self) -> list[str]:
        """Return the services that are interests in topics (`~topic`). They may have no route now."""
        return self._table.interests()

    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
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
        reader = ChangeReader()
        table: list[TableEvent] = []
        size = 0
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
                for event in _events(reader, item, "table"):
                    size += weight_of(event)
                    if size > MAX_TABLE_SIZE:
                        raise Malformed(f"the route table has more than {MAX_TABLE_SIZE} routes and offers")
                    table.append(event)
                if item.get("synced"):
                    self._replace_all(table)
                    table.clear()
                if self._is_synced:
                    self._apply(_events(reader, item, "changes"))

    def _replace_all(self, events: Sequence[TableEvent]) -> None:
        local: dict[RouteKey, Route] = {}
        origin_routes: dict[OriginRouteKey, OriginRoute] = {}
        offers: dict[str, dict[str, Offer]] = {}
        for event in events:
            match event:
                case LocalRouteChanged(_, Route() as route):
                    local[route.key] = route
                case OriginRouteChanged(_, OriginRoute() as origin_route):
                    origin_routes[origin_route.key] = origin_route
                case OffersChanged(origin, changes):
                    known = offers.setdefault(origin, {})
                    known.update((offer.service, offer) for _, offer in changes if offer is not None)
        table = self._table
        for route in table.list(RouteQuery(link=LOCAL_LINK)):
            if route.key not in local:
                table.delete(route.key)
        for route in local.values():
            table.put(route)
        for old in table.origin_routes():
            if old.key not in origin_routes:
                table.delete_origin_route(old.key)
        for origin in table.origins():
            if origin not in offers:
                table.change_offers(origin, is_complete=True)
        for origin, services in offers.items():
            table.change_offers(origin, [*services.values()], is_complete=True)
        for origin_route in origin_routes.values():
            table.put_origin_route(origin_route)
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        self._is_synced = True
        self._first_sync.set()
        self._report_availability(None)

    def _apply(self, events: Iterable[TableEvent]) -> None:
        for event in events:
            match event:
                case LocalRouteChanged(_, Route() as route):
                    self._table.put(route)
                case LocalRouteChanged(Route() as route, _):
                    self._table.delete(route.key)
                case OriginRouteChanged(_, OriginRoute() as origin_route):
                    self._table.put_origin_route(origin_route)
                case OriginRouteChanged(OriginRoute() as origin_route, _):
                    self._table.delete_origin_route(origin_route.key)
                case OffersChanged(origin, changes):
                    changed = [after for _, after in changes if after is not None]
                    removed = [before.service for before, after in changes if before is not None and after is None]
                    self._table.change_offers(origin, changed, removed)

    def _remove_stale_routes(self) -> None:
        """Remove the routes to other sites. Routes to instances of this site are kept: they do not depend on neighbours."""
        for route in self._table.origin_routes():
            self._table.delete_origin_route(route.key)
        self._context.counters.add("router_copies_stale")
        self._context.logger.warning(
            "the router was not available for too long: routes to other sites are removed",
            extra={"limit_s": MAX_STALE_S},
        )

    def _report_availability(self, error: MicroError | None) -> None:
        if self._availability_handler is not None:
            self._availability_handler(error)


def _events(reader: ChangeReader, item: dict[str, Any], key: str) -> Iterator[TableEvent]:
    values = item.get(key)
    for value in values if isinstance(values, list) else ():
        event = reader.read(value)
        if event is not None:
            yield event
