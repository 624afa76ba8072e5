"""The copy of a route table in another process is complete, up to date, and not used without limit."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.transport.memory import MemoryTransport
from micro_core.config import load_settings
from micro_core.contract import CountersInMemory, DriverContext, Malformed, MicroError
from micro_core.contract.names import ROUTER_SERVICE
from micro_core.contract.table import (
    ANY_SERVICE,
    LOCAL_LINK,
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    Route,
    TableEvent,
)
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
from micro_core.standalone.router.protocol import (
    MAX_SERVICES,
    ROUTES_PER_ITEM,
    ChangeReader,
    items_of,
    items_of_table,
    route_from_map,
    route_to_map,
)
from micro_core.standalone.router.server import TableEndpoints

TIMEOUT_S = 10.0
NODE = "n" * 32
NAME = "eu-1"


ORIGIN = "o" * 32
VIA_G = OriginRoute(origin=ORIGIN, gateway="g" * 32, metric=5, network="go.micro", site="us", hops=1)


def local(service: str, *, metric: int = 5) -> Route:
    return Route(
        service=service,
        address="tcp://127.0.0.1:1",
        gateway="",
        network="go.micro",
        router=NODE,
        link=LOCAL_LINK,
        metric=metric,
        site="eu",
        version="1.0",
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
        self.endpoints = TableEndpoints(self.router, self.table, node_id=node_id, counters=CountersInMemory())
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
    partial = replace(VIA_G, gateway="p" * 32, services=frozenset(f"service.{number}" for number in range(500)))
    for number in range(300):
        site.table.put(local(f"local.{number}"))
    site.table.change_offers(ORIGIN, [Offer(f"service.{number}", ("1.0",), 2, 3) for number in range(1_000)])
    site.table.change_offers("u" * 32, [Offer("unreachable")])
    site.table.put_origin_route(VIA_G)
    site.table.put_origin_route(partial)
    copy = await site.copy()
    assert copy.routes() == site.table.list()
    assert len(copy.routes()) == 1_800
    events: list[TableEvent] = []
    copy.watch(events.append)
    site.table.put(local("local.0", metric=9))
    site.table.delete(local("local.1").key)
    site.table.put_origin_route(replace(VIA_G, metric=9))
    site.table.put_origin_route(replace(partial, services=frozenset({"service.1"})))
    site.table.change_offers(ORIGIN, [Offer("another"), Offer("service.0", load_us=7)], ["service.2"])
    site.table.put_origin_route(replace(VIA_G, origin="u" * 32))
    site.table.delete_origin_route(partial.key)
    await until(lambda: len(events) == 7)
    assert copy.routes() == site.table.list()
    assert [found.metric for found in copy.lookup("service.0")] == [16]
    assert copy.lookup("service.2") == ()
    assert [found.router for found in copy.lookup("unreachable")] == ["u" * 32]


async def test_lookup_of_an_unknown_service_returns_the_default_route(site: Site) -> None:
    site.table.put(local(ANY_SERVICE))
    copy = await site.copy()
    assert [found.service for found in copy.lookup("unknown")] == [ANY_SERVICE]
    assert copy.lookup("~topic") == (), "a default route is not an interest in a topic"
    assert site.router.lookup("~topic") == ()


async def test_service_is_expected_while_its_origin_lost_its_route_a_moment_ago(site: Site) -> None:
    site.table.change_offers(ORIGIN, [Offer("greeter")])
    await site.serve()
    copy = await site.copy()
    assert not copy.is_expected("greeter"), "it had no route before the copy was complete"
    site.table.put_origin_route(VIA_G)
    await until(lambda: bool(copy.lookup("greeter")))
    assert not copy.is_expected("greeter")
    site.table.delete_origin_route(VIA_G.key)
    await until(lambda: not copy.lookup("greeter"))
    assert copy.is_expected("greeter")
    assert not copy.is_expected("other")
    site.table.change_offers(ORIGIN, is_complete=True)
    await until(lambda: copy._table.origins_of("greeter") == ())
    assert not copy.is_expected("greeter")


async def test_copy_is_kept_while_the_router_is_down_and_updated_when_it_is_back(site: Site) -> None:
    kept, removed, new = local("kept"), local("removed"), local("new")
    other = replace(VIA_G, gateway="h" * 32)
    for one in (kept, removed):
        site.table.put(one)
    for origin_route in (VIA_G, other):
        site.table.put_origin_route(origin_route)
    site.table.change_offers(ORIGIN, [Offer("a"), Offer("b")])
    site.table.change_offers("u" * 32, [Offer("c")])
    copy = await site.copy()
    await site.stop_serving()
    await until(lambda: site.availability[-1] is not None)
    assert copy.lookup("removed") == (removed,)
    events: list[TableEvent] = []
    copy.watch(events.append)
    site.table.delete(removed.key)
    site.table.put(new)
    site.table.delete_origin_route(other.key)
    site.table.change_offers(ORIGIN, removed=["b"])
    site.table.change_offers("u" * 32, is_complete=True)
    await site.serve()
    await until(lambda: site.availability[-1] is None)
    assert copy.routes() == site.table.list()
    # No event for what has not changed.
    assert events == [
        LocalRouteChanged(removed, None),
        LocalRouteChanged(None, new),
        OriginRouteChanged(other, None),
        OffersChanged("u" * 32, ((Offer("c"), None),)),
        OffersChanged(ORIGIN, ((Offer("b"), None),)),
    ]


async def test_stopping_router_ends_its_watches_and_the_copy_keeps_its_routes(site: Site) -> None:
    site.table.put_origin_route(VIA_G)
    site.table.change_offers(ORIGIN, [Offer("far")])
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
    site.table.put_origin_route(VIA_G)
    site.table.change_offers(ORIGIN, [Offer("far")])
    site.table.put(local("near"))
    copy = await site.copy()
    await site.stop_serving()
    await until(lambda: copy.lookup("far") == ())
    assert len(copy.lookup("near")) == 1
    await site.serve()
    await until(lambda: len(copy.lookup("far")) == 1)


async def test_router_of_another_node_is_refused(site: Site) -> None:
    await site.stop_serving()
    await site.serve("x" * 32)
    site.table.put(local("near"))
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
        site.table.put(local(f"service.{number}"))
    await until(lambda: len(copy.routes()) == 500)


async def test_change_that_exceeds_the_limit_alone_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 50)
    site.table.put_origin_route(VIA_G)
    copy = await site.copy()
    site.table.change_offers(ORIGIN, [Offer(f"service.{number}") for number in range(500)])
    await until(lambda: len(copy.routes()) == 500)
    assert site.availability == [None]


async def test_change_after_one_that_exceeds_the_limit_alone_is_not_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 50)
    site.table.put_origin_route(VIA_G)
    copy = await site.copy()
    site.table.change_offers(ORIGIN, [Offer(f"service.{number}") for number in range(500)])
    site.table.put(local("near"))
    await until(lambda: len(copy.routes()) == 501)


async def test_watcher_that_does_not_read_has_a_limited_number_of_changes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 50)
    callbacks: list[Callable[[TableEvent], None]] = []
    unsubscribed: list[bool] = []

    def watch(callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        callbacks.append(callback)
        return lambda: unsubscribed.append(True)

    monkeypatch.setattr(site.router, "watch", watch)
    assert site.endpoints is not None
    stream = site.endpoints.watch()
    assert await anext(stream) == {"node": NODE}
    assert await anext(stream) == {"synced": True}
    before = sys.getallocatedblocks()
    for _ in range(100_000):
        callbacks[0](LocalRouteChanged(None, local("near")))
    assert sys.getallocatedblocks() - before < 10_000
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert unsubscribed == [True]


def decoded(items: Iterable[list[Any]]) -> list[TableEvent]:
    reader = ChangeReader()
    events = [reader.read(change) for item in items for change in item]
    return [event for event in events if event is not None]


def test_events_are_unchanged_by_encoding() -> None:
    one = local("service")
    assert route_from_map(route_to_map(one)) == one
    bare = OriginRoute(origin=ORIGIN, gateway=VIA_G.gateway, metric=0, network="")
    events: list[TableEvent] = [
        LocalRouteChanged(None, one),
        LocalRouteChanged(one, None),
        OriginRouteChanged(None, VIA_G),
        OriginRouteChanged(None, replace(VIA_G, services=frozenset())),
        OriginRouteChanged(bare, None),
        OffersChanged(ORIGIN, ((None, Offer("a", ("1", "2"), 3, 4)), (Offer("b"), None))),
    ]
    assert decoded(items_of(events)) == events


def test_large_events_are_split_into_items_of_limited_size() -> None:
    names = [f"service.{number}" for number in range(1_000)]
    route = replace(VIA_G, services=frozenset(names))
    offers = OffersChanged(ORIGIN, tuple((None, Offer(name)) for name in names))
    items = [*items_of([OriginRouteChanged(None, route), offers])]
    assert max(len(str(item)) for item in items) < 40 * ROUTES_PER_ITEM
    events = decoded(items)
    assert events[0] == OriginRouteChanged(None, route)
    assert sum(len(event.changes) for event in events[1:] if isinstance(event, OffersChanged)) == 1_000


def test_table_is_sent_as_it_was_when_the_watch_began() -> None:
    table = MemoryTable(logger=logging.getLogger("test"), counters=CountersInMemory())
    table.put_origin_route(VIA_G)
    items = items_of_table(table)
    table.delete_origin_route(VIA_G.key)
    assert decoded(items) == [OriginRouteChanged(None, VIA_G)]


FIELDS = {"origin": "o", "gateway": "g", "network": "n", "site": "s", "metric": 1, "hops": 1}


@pytest.mark.parametrize(
    "change",
    [
        None,
        [],
        "local",
        {},
        [["local"], route_to_map(local("x")), True],
        ["unknown", route_to_map(local("x"))],
        ["local", None, True],
        ["local", [], True],
        ["local", {"service": 5}, True],
        ["local", {"service": ["x"]}, True],
        ["local", {"service": "x" * 2_000}, True],
        ["local", {"service": "x", "metric": -1}, True],
        ["local", {"service": "x", "metric": True}, True],
        ["local", {"service": "x", "metric": 2**70}, True],
        ["local", {"service": "x", "hops": "1"}, True],
        ["local", route_to_map(local("x")), 1],
        ["origin", {**FIELDS, "origin": ["o"]}, None, True],
        ["origin", {**FIELDS, "metric": 1.5}, None, True],
        ["origin", FIELDS, "all", True],
        ["origin", FIELDS, {"a": 1}, True],
        ["origin", FIELDS, [["a"]], True],
        ["origin", FIELDS, [{}], True],
        ["origin", FIELDS, None, None],
        ["no origin", "o"],
        ["no origin", ["o"], "g"],
        ["no origin", "o", {}],
        ["offers", {}, [], []],
        ["offers", "o", None, []],
        ["offers", "o", [["a"]], []],
        ["offers", "o", [["a", "1", 0, 0]], []],
        ["offers", "o", [["a", ["1"] * 100, 0, 0]], []],
        ["offers", "o", [["a", [["1"]], 0, 0]], []],
        ["offers", "o", [[["a"], [], 0, 0]], []],
        ["offers", "o", [["a", [], -1, 0]], []],
        ["offers", "o", [["a", [], 0, "slow"]], []],
        ["offers", "o", [], [["a"]]],
    ],
    ids=str,
)
def test_invalid_change_is_malformed(change: object) -> None:
    with pytest.raises(Malformed):
        ChangeReader().read(change)


def test_number_of_services_of_a_route_is_limited() -> None:
    reader = ChangeReader()
    assert reader.read(["origin", FIELDS, [str(number) for number in range(MAX_SERVICES)], False]) is None
    with pytest.raises(Malformed, match="more than"):
        reader.read(["origin", FIELDS, ["one more"], True])


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12,
)
KINDS = st.sampled_from(["local", "origin", "no origin", "offers"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANYTHING, st.builds(lambda kind, rest: [kind, *rest], KINDS, st.lists(ANYTHING, max_size=4))))
def test_arbitrary_change_raises_only_malformed(change: object) -> None:
    try:
        ChangeReader().read(change)
    except Malformed:
        return


async def test_router_that_sends_garbage_does_not_end_the_copy(site: Site) -> None:
    site.table.put(local("near"))
    copy = await site.copy()
    await site.stop_serving()
    service = site.service = Service(
        ROUTER_SERVICE,
        registry=site.registry,
        transport=site.transport,
        metadata=component_metadata(NODE, NAME, "eu"),
        instance_id=f"{ROUTER_SERVICE}-{NODE}",
    )

    async def garbage() -> AsyncIterator[dict[str, Any]]:
        yield {"node": NODE, "table": "all"}
        yield {"table": [["local", {"service": ["x"]}, True]]}

    service.server.add("Router.Watch", garbage, idempotent=True)
    await service.start()
    await until(lambda: "text is missing" in str(site.availability[-1]))
    assert len(copy.lookup("near")) == 1
    await site.stop_serving()
    await site.serve()
    await until(lambda: site.availability[-1] is None)
    assert copy.routes() == site.table.list()
