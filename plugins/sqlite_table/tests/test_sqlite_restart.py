"""A lab node with the real table and file that crashes and restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from micro_sqlite_table import micro_table
from micro_sqlite_table.options import SqliteOptions

from micro_core import Service
from micro_core.contract import DriverContext, Table
from micro_core.contract.errors import RouteNotFound
from micro_core.lab.lab_node import LabNode, TableMaker
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions

NAME = "go.micro.srv.greeter"
WAN = Conditions(delay_s=0.2)


def table_in(directory: Path) -> TableMaker:
    def make(context: DriverContext) -> Table:
        return micro_table().create(SqliteOptions(), replace(context, state_dir=str(directory)))

    return make


async def line(net: Lab, directory: Path) -> tuple[LabNode, LabNode, LabNode]:
    service = Service(NAME)

    @service.endpoint("Say.Hello")
    async def hello() -> str:
        return "hello"

    a = await net.add("a")
    b = await net.add("b", links=[a])
    net.links.set("b", "c", WAN)
    c = await net.add("c", links=[b], table=table_in(directory))
    await a.serve(service)
    await net.converged()
    await net.advance_time(1.0)
    return a, b, c


def stale_services(node: LabNode) -> list[str]:
    return [route.service for route in node.routes() if route.is_stale]


async def test_calls_continue_as_soon_as_the_link_is_open_again(micro_net: Lab, tmp_path: Path) -> None:
    _, _, c = await line(micro_net, tmp_path)
    await c.kill()
    await micro_net.advance_time(5.0)
    await c.start()
    assert NAME in stale_services(c)
    while not c.node.network.links():
        await micro_net.advance_time(0.001)
    started_at = micro_net.now
    assert await c.call(NAME, "Say.Hello") == "hello"
    assert micro_net.now - started_at < 2 * WAN.delay_s + 0.1
    await micro_net.converged()
    # The full table of the neighbour may come after that of the restarted node.
    await micro_net.advance_time(1.0)
    assert stale_services(c) == []


async def test_node_that_was_down_for_long_restores_no_routes(micro_net: Lab, tmp_path: Path) -> None:
    a, b, c = await line(micro_net, tmp_path)
    await c.kill()
    await a.kill()
    await b.kill()
    await micro_net.advance_time(3_600.0)
    await c.start()
    micro_net.check()
    assert stale_services(c) == []
    with pytest.raises(RouteNotFound):
        await c.call(NAME, "Say.Hello")


async def test_repeated_restarts_do_not_extend_leases_of_routes_to_dead_nodes(micro_net: Lab, tmp_path: Path) -> None:
    a, b, c = await line(micro_net, tmp_path)
    for node in (a, b, c):
        await node.kill()
    for _ in range(6):
        await c.start()
        for _ in range(4):
            await micro_net.advance_time(5.0)
            micro_net.check()
        await c.kill()
    await c.start()
    assert stale_services(c) == []
