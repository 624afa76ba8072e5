"""Restart of a node whose table keeps its routes."""

from __future__ import annotations

import itertools
import logging

import pytest

from micro_core import Service
from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.driver import CountersInMemory, DriverContext
from micro_core.contract.errors import MicroError, RouteNotFound
from micro_core.contract.table import Table
from micro_core.lab.lab_node import LabNode, TableMaker, memory_table
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions
from micro_core.routing.router import RouterOptions

NAME = "go.micro.srv.greeter"
WAN = Conditions(delay_s=0.2)
STEP_S = 0.001


def greeter() -> Service:
    service = Service(NAME)

    @service.endpoint("Say.Hello")
    async def hello() -> str:
        return "hello"

    return service


def persistent_table() -> TableMaker:
    """Return a maker that returns the same table at each start of a node."""
    table = MemoryTable(logger=logging.getLogger("test"), counters=CountersInMemory())

    def make(_context: DriverContext) -> Table:
        return table

    return make


async def line(net: Lab, table: TableMaker, router: RouterOptions | None = None) -> tuple[LabNode, LabNode, LabNode]:
    """Create the line a - b - c with a service at a, a slow link between b and c, and `table` at c."""
    a = await net.add("a")
    b = await net.add("b", links=[a])
    net.links.set("b", "c", WAN)
    c = await net.add("c", links=[b], table=table, router=router)
    await a.serve(greeter())
    await net.converged()
    return a, b, c


async def linked(net: Lab, node: LabNode) -> None:
    while not node.node.network.links():
        await net.advance_time(STEP_S)


def stale(node: LabNode) -> list[str]:
    return [route.service for route in node.routes() if route.is_stale]


async def first_answer_after(net: Lab, node: LabNode) -> tuple[float, int]:
    """Wait for a link. Returns the seconds from then to the first answer, and the number of calls refused before."""
    await linked(net, node)
    began = net.now
    for refused in itertools.count():
        try:
            assert await node.call(NAME, "Say.Hello") == "hello"
        except RouteNotFound:
            await net.advance_time(0.01)
            continue
        return net.now - began, refused
    raise AssertionError


async def test_stale_routes_are_used_as_soon_as_the_link_is_open(micro_net: Lab) -> None:
    _, _, c = await line(micro_net, persistent_table())
    await c.kill()
    await micro_net.advance_time(5.0)
    await c.start()
    assert NAME in stale(c)
    seconds, refused = await first_answer_after(micro_net, c)
    assert refused == 0
    assert seconds < 2 * WAN.delay_s + 0.1, "the first call is sent immediately and takes one round trip"
    await micro_net.converged()
    # The full table of the neighbour may come after that of the restarted node.
    await micro_net.advance_time(1.0)
    assert stale(c) == []


async def test_calls_fail_until_the_first_full_table_without_a_persistent_table(micro_net: Lab) -> None:
    _, _, c = await line(micro_net, memory_table)
    await c.kill()
    await micro_net.advance_time(5.0)
    await c.start()
    seconds, refused = await first_answer_after(micro_net, c)
    assert refused > 0
    assert seconds > 2 * WAN.delay_s


async def test_graceful_shutdown_keeps_routes(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table())
    await c.stop()
    c.node.router.neighbour_down(b.id)
    await c.start()
    assert NAME in stale(c)
    assert {route.service for route in c.routes() if route.router == c.id and route.is_stale} == set()
    assert (await first_answer_after(micro_net, c))[1] == 0


async def test_call_is_refused_at_once_while_there_is_no_link(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table())
    await c.kill()
    micro_net.partition(b, c)
    await c.start()
    began = micro_net.now
    with pytest.raises(RouteNotFound):
        await c.call(NAME, "Say.Hello")
    assert micro_net.now - began < 0.1
    assert NAME in stale(c)


async def test_stale_routes_expire_without_their_gateway(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table())
    await c.kill()
    await b.kill()
    await c.start()
    assert NAME in stale(c)
    await micro_net.advance_time(RouterOptions().restart_lease_s + 0.1)
    micro_net.check()
    assert {route.router for route in c.routes()} == {c.id}


async def test_service_that_stopped_meanwhile_is_removed_with_the_full_table(micro_net: Lab) -> None:
    a, _, c = await line(micro_net, persistent_table())
    await c.kill()
    for service in [*a.services]:
        await a.stop_service(service)
    await micro_net.advance_time(3.0)
    await c.start()
    assert NAME in stale(c)
    await linked(micro_net, c)
    # The gateway refuses the call, as this node would without a route.
    with pytest.raises(MicroError):
        await c.call(NAME, "Say.Hello")
    await micro_net.converged(timeout_s=3.0)
    assert c.routes(NAME) == []


async def test_stale_routes_are_not_advertised(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table())
    d = await micro_net.add("d", links=[c])
    await micro_net.converged()
    assert d.routes(NAME)
    await c.kill()
    await micro_net.advance_time(30.0)
    micro_net.partition(b, c)
    assert d.routes(NAME) == []
    await c.start()
    await micro_net.advance_time(40.0)
    assert d.node.network.links()
    assert NAME in stale(c)
    assert d.routes(NAME) == []
    micro_net.heal(b, c)
    await micro_net.converged()
    assert d.routes(NAME)


async def test_repeated_restarts_do_not_extend_the_lease(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table())
    await c.kill()
    await b.kill()
    for _ in range(5):
        await c.start()
        await micro_net.advance_time(20.0)
        micro_net.check()
        await c.kill()
    await c.start()
    assert stale(c) == []


async def test_simultaneous_restart_of_two_nodes_creates_no_loop(micro_net: Lab) -> None:
    one, other = persistent_table(), persistent_table()
    a = await micro_net.add("a")
    b = await micro_net.add("b", links=[a], table=one)
    c = await micro_net.add("c", links=[a, b], table=other)
    d = await micro_net.add("d", links=[b, c])
    await a.serve(greeter())
    await micro_net.converged()
    for node in (b, c):
        await node.kill()
    micro_net.partition(a, [b, c])
    for node in (b, c):
        await node.start()
    for _ in range(90):
        micro_net.check()
        await micro_net.advance_time(1.0)
    assert stale(b) == stale(c) == []
    assert d.routes(NAME) == []
    micro_net.heal(a, [b, c])
    await micro_net.converged()
    assert await d.call(NAME, "Say.Hello") == "hello"


async def test_kept_routes_are_not_used_without_a_lease(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, persistent_table(), RouterOptions(restart_lease_s=0.0))
    await c.kill()
    micro_net.partition(b, c)
    await c.start()
    assert {route.router for route in c.routes()} == {c.id}
