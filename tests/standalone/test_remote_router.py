"""The copy of a route table in another process is complete, up to date, and not used without limit."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.transport.memory import MemoryTransport
from micro_core.config import load_settings
from micro_core.contract import CountersInMemory, DriverContext, Malformed, MicroError
from micro_core.contract.names import ROUTER_SERVICE
from micro_core.contract.table import ANY_SERVICE, LOCAL_LINK, NETWORK_LINK, Route, RouteEvent, RouteEventKind
from micro_core.drivers.runtime import Runtime
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.plugins import Catalog
from micro_core.routing.router import Router
from micro_core.rpc.service import Service
from micro_core.standalone.discovery import component_metadata
from micro_core.standalone.router import client as remote_router
from micro_core.standalone.router import server
from micro_core.standalone.router.client import RemoteRouter
from micro_core.standalone.router.protocol import event_from_item, event_to_item, route_from_map, route_to_map
from micro_core.standalone.router.server import TableEndpoints

TIMEOUT_S = 10.0
NODE = "n" * 32
NAME = "eu-1"


def route(service: str, *, link: str = NETWORK_LINK, metric: int = 5) -> Route:
    return Route(
        service=service,
        address="" if link == NETWORK_LINK else "tcp://127.0.0.1:1",
        gateway="g" * 32 if link == NETWORK_LINK else "",
        network="go.micro",
        router="o" * 32,
        link=link,
        metric=metric,
        site="us",
        version="1.0",
        hops=1,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Site:
    """A router process, and copies of its table as in proxy processes, on one memory transport."""

    context: DriverContext
    registry: MemoryRegistry
    transport: MemoryTransport
    table: MemoryTable
    router: Router
    availability: list[MicroError | None] = field(default_factory=list)
    """What the copies have reported: an error, or None when the router is available."""
    service: Service | None = None
    endpoints: TableEndpoints | None = None
    copies: list[RemoteRouter] = field(default_factory=list)

    async def serve(self, node_id: str = NODE) -> None:
        service = self.service = Service(
            ROUTER_SERVICE,
            registry=self.registry,
            transport=self.transport,
            metadata=component_metadata(node_id, NAME, "eu"),
            instance_id=f"{ROUTER_SERVICE}-{node_id}",
        )
        self.endpoints = TableEndpoints(self.router, node_id=node_id, counters=CountersInMemory())
        self.endpoints.add_to(service.server)
        await service.start()

    async def stop_serving(self) -> None:
        assert self.service is not None
        await self.service.stop(drain_s=0)

    async def copy(self, *, connect: bool = True) -> RemoteRouter:
        runtime = Runtime(
            settings=load_settings(environ={}),
            catalog=Catalog([]),
            context=self.context,
            registry=self.registry,
            transport=self.transport,
        )
        copy = RemoteRouter(runtime, name=NAME, node_id=NODE)
        copy.set_availability_handler(self.availability.append)
        self.copies.append(copy)
        if connect:
            async with asyncio.timeout(TIMEOUT_S):
                await copy.connect()
        return copy


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    plain = DriverContext(
        node_id=NODE,
        network=f"net-{random.random()}",
        site="eu",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    registry = MemoryRegistry(plain)
    transport = MemoryTransport(network=plain.network, site=plain.site, random=random.Random(2))
    table = MemoryTable(logger=plain.logger, counters=plain.counters)
    router = Router(
        network=plain.network,
        site="eu",
        table=table,
        environment=Environment.from_context(plain),
        incarnation=1,
    )
    await registry.start()
    site = Site(replace(plain, registry=registry, transport=transport), registry, transport, table, router)
    await site.serve()
    yield site
    for copy in site.copies:
        await copy.close()
    await site.stop_serving()
    await registry.close()
    await transport.close()


async def test_copy_is_complete_when_connected_and_follows_changes(site: Site) -> None:
    routes = [route(f"service.{number}") for number in range(1_000)]
    for one in routes:
        site.table.put(one)
    copy = await site.copy()
    assert copy.routes() == site.table.list()
    events: list[RouteEvent] = []
    copy.watch(events.append)
    site.table.put(replace(routes[0], metric=9))
    site.table.delete(routes[1].key)
    site.table.put(route("another"))
    await until(lambda: len(events) == 3)
    assert [event.kind for event in events] == [RouteEventKind.UPDATE, RouteEventKind.DELETE, RouteEventKind.CREATE]
    assert copy.routes() == site.table.list()
    assert [found.metric for found in copy.lookup("service.0")] == [9]
    assert copy.lookup("service.1") == ()


async def test_lookup_of_an_unknown_service_returns_the_default_route(site: Site) -> None:
    site.table.put(route(ANY_SERVICE))
    copy = await site.copy()
    assert [found.service for found in copy.lookup("unknown")] == [ANY_SERVICE]


async def test_copy_is_kept_while_the_router_is_down_and_updated_when_it_is_back(site: Site) -> None:
    kept, removed, new = route("kept"), route("removed"), route("new")
    site.table.put(kept)
    site.table.put(removed)
    copy = await site.copy()
    await site.stop_serving()
    await until(lambda: site.availability[-1] is not None)
    assert copy.lookup("removed") == (removed,)
    events: list[RouteEvent] = []
    copy.watch(events.append)
    site.table.delete(removed.key)
    site.table.put(new)
    await site.serve()
    await until(lambda: site.availability[-1] is None)
    assert copy.routes() == [kept, new]
    # No event for the route that has not changed.
    assert sorted(event.route.service for event in events) == ["new", "removed"]


async def test_stopping_router_ends_its_watches_and_the_copy_keeps_its_routes(site: Site) -> None:
    site.table.put(route("far", metric=20))
    copy = await site.copy()
    assert site.service is not None
    assert site.endpoints is not None
    site.endpoints.end_watches()
    async with asyncio.timeout(TIMEOUT_S / 2):
        # Without the watches, no request is in progress that the drain would wait for.
        await site.service.stop()
    assert copy.lookup("far")


async def test_routes_to_other_sites_are_removed_when_the_router_stays_down(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_router, "MAX_STALE_S", 0.05)
    site.table.put(route("far"))
    site.table.put(route("near", link=LOCAL_LINK))
    copy = await site.copy()
    await site.stop_serving()
    await until(lambda: copy.lookup("far") == ())
    assert len(copy.lookup("near")) == 1
    await site.serve()
    await until(lambda: len(copy.lookup("far")) == 1)


async def test_router_of_another_node_is_refused(site: Site) -> None:
    await site.stop_serving()
    await site.serve("x" * 32)
    site.table.put(route("far"))
    copy = await site.copy(connect=False)
    connecting = asyncio.get_running_loop().create_task(copy.connect())
    await until(lambda: bool(site.availability))
    assert "another node" in str(site.availability[0])
    assert copy.routes() == []
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)


async def test_slow_watcher_is_disconnected_and_reads_the_whole_table_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 50)
    copy = await site.copy()
    # More changes in one iteration of the event loop than a watcher may leave unread.
    for number in range(500):
        site.table.put(route(f"service.{number}"))
    await until(lambda: len(copy.routes()) == 500)


async def test_watcher_that_does_not_read_has_a_limited_number_of_changes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 50)
    callbacks: list[Callable[[RouteEvent], None]] = []
    unsubscribed: list[bool] = []

    def watch(callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        callbacks.append(callback)
        return lambda: unsubscribed.append(True)

    monkeypatch.setattr(site.router, "watch", watch)
    assert site.endpoints is not None
    stream = site.endpoints.watch()
    assert await anext(stream) == {"node": NODE}
    assert await anext(stream) == {"synced": True}
    before = sys.getallocatedblocks()
    for _ in range(100_000):
        callbacks[0](RouteEvent(kind=RouteEventKind.CREATE, route=route("far")))
    assert sys.getallocatedblocks() - before < 10_000
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert unsubscribed == [True]


def test_routes_and_events_are_unchanged_by_encoding() -> None:
    one = route("service")
    assert route_from_map(route_to_map(one)) == one
    event = RouteEvent(kind=RouteEventKind.DELETE, route=one)
    assert event_from_item(event_to_item(event)) == event


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"service": 5},
        {"service": "x" * 2_000},
        {"service": "x", "metric": -1},
        {"service": "x", "metric": True},
        {"service": "x", "metric": 2**70},
        {"service": "x", "hops": "1"},
    ],
)
def test_invalid_route_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        route_from_map(value)
    with pytest.raises(Malformed):
        event_from_item(["create", value])
    with pytest.raises(Malformed):
        event_from_item(["unknown", route_to_map(route("x"))])
