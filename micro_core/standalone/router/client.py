"""The table of another process's router, as a copy: the proxy asks it once a call, and asks nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.errors import Conflict, LinkLost, MicroError
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
from micro_core.rpc.client import Client
from micro_core.standalone.discovery import ROUTER_SERVICE, find_component
from micro_core.standalone.router.protocol import event_from_item, route_from_map
from micro_core.tunnel.backoff import Backoff
from micro_core.wire import limits
from micro_core.wire.header import CallMode

SILENCE_S = 15.0
"""The router says something every five seconds: one that has been silent for so long hangs, and counts as away."""

STALE_S = 90.0
"""How long ways to other sites are believed while the router is away: as long as it believes its neighbours."""

RETRY_INITIAL_S = 0.1
RETRY_MAX_S = 2.0


class RemoteRouter:
    """Implements the proxy's `RouteSource`. `name` is the node's."""

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
        self._synced = asyncio.Event()
        self._stale_timer: asyncio.TimerHandle | None = None
        self._is_followed = False
        self._keeper: asyncio.Task[None] | None = None
        self._away_callbacks: list[Callable[[MicroError | None], None]] = []

    # ------------------------------------------------------------------- life

    async def connect(self) -> None:
        """Find the router and read its table; waits for one that is not there yet."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._keeper.add_done_callback(self._keeper_done)
        await self._synced.wait()

    async def close(self) -> None:
        if self._stale_timer is not None:
            self._stale_timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._client.close()
        await self._table.close()

    def add_availability_handler(self, callback: Callable[[MicroError | None], None]) -> None:
        """`callback(error)` when the router cannot be had, once a reason; `callback(None)` when it is there (again)."""
        self._away_callbacks.append(callback)

    # ------------------------------------------------------------ RouteSource

    def lookup(self, service: str) -> Sequence[Route]:
        return self._table.lookup(service) or self._table.lookup(ANY_SERVICE)

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        return self._table.list(query)

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        return self._table.watch(callback)

    # ----------------------------------------------------------------- inside

    async def _keep(self) -> None:
        backoff = Backoff(random=self._context.random, initial_s=RETRY_INITIAL_S, max_s=RETRY_MAX_S)
        said = ""
        while True:
            self._is_followed = False
            try:
                await self._follow()
                reason: MicroError = LinkLost("the router ended the watch of its table")
            except MicroError as error:
                reason = error
            if self._is_followed:
                backoff.reset()
                said = ""
                self._stale_timer = asyncio.get_running_loop().call_later(STALE_S, self._forget_the_network)
            if reason.detail != said:
                said = reason.detail
                self._tell(reason)
            self._context.counters.add("router_watch_failed")
            await asyncio.sleep(backoff.next_s())

    async def _follow(self) -> None:
        """Read the table, then its changes; returns when the router ends the stream."""
        part = await find_component(self._registry, ROUTER_SERVICE, self._name)
        stream = self._client.stream(
            ROUTER_SERVICE,
            "Router.Watch",
            None,
            address=part.address,
            mode=CallMode.SERVER_STREAM,
            timeout_s=limits.MAX_TIMEOUT_S,
            retries=0,
        )
        found: dict[RouteKey, Route] = {}
        async with stream:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        item = await anext(stream)
                except TimeoutError:
                    raise LinkLost(f"the router has been silent for {SILENCE_S:g} s") from None
                except StopAsyncIteration:
                    return
                if not isinstance(item, dict):
                    continue
                if "node" in item and item["node"] != self._node_id:
                    raise Conflict("the router is that of another node", hint="restart the proxy")
                for value in _list(item, "routes"):
                    route = route_from_map(value)
                    found[route.key] = route
                if item.get("synced"):
                    self._take(found)
                if self._is_followed:
                    self._apply([event_from_item(value) for value in _list(item, "changes")])

    def _take(self, found: dict[RouteKey, Route]) -> None:
        """The whole table; what it lacks is gone."""
        for route in self._table.list():
            if route.key not in found:
                self._table.delete(route.key)
        for route in found.values():
            self._table.put(route)
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        self._is_followed = True
        self._synced.set()
        self._tell(None)

    def _apply(self, events: Sequence[RouteEvent]) -> None:
        for event in events:
            if event.kind is RouteEventKind.DELETE:
                self._table.delete(event.route.key)
            else:
                self._table.put(event.route)

    def _forget_the_network(self) -> None:
        """Nobody has renewed the ways to other sites; those of this site are still served by whoever is there."""
        for route in self._table.list():
            if route.link != LOCAL_LINK:
                self._table.delete(route.key)
        self._context.counters.add("router_copies_stale")
        self._context.logger.warning("the router has been away too long: ways to other sites are forgotten")

    def _tell(self, error: MicroError | None) -> None:
        for callback in self._away_callbacks:
            callback(error)

    def _keeper_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._context.counters.add("router_tasks_failed")
            logging.getLogger(__name__).error("following the router failed", exc_info=error)


def _list(item: dict[str, Any], key: str) -> list[Any]:
    value = item.get(key)
    return value if isinstance(value, list) else []
