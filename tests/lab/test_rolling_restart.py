"""Nodes that calls pass through are replaced one after the other, on virtual time: nobody may notice."""

from __future__ import annotations

import asyncio

import pytest

from micro_core import Service
from micro_core.contract.errors import Draining, MicroError
from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.contract.tunnel import Priority
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.proxy.proxy import CHANNEL

NAME = "go.micro.srv.worker"
CALLERS = 8


def worker() -> Service:
    service = Service(NAME)

    @service.endpoint("Do.Work")
    async def work() -> str:
        await asyncio.sleep(0.02)
        return "done"

    return service


class Callers:
    """Calls without a pause, none of which may be made twice."""

    def __init__(self, node: LabNode) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._node = node
        self._is_over = False
        self._tasks = [asyncio.ensure_future(self._call()) for _ in range(CALLERS)]

    async def _call(self) -> None:
        while not self._is_over:
            try:
                await self._node.call(NAME, "Do.Work", timeout_s=20.0)
                self.answered += 1
            except MicroError as error:
                self.failures.append(str(error))

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


async def two_ways(net: Lab) -> tuple[list[LabNode], LabNode, Callers]:
    """The nodes on both ways to the service, the node where it is called, and the calls under way."""
    serving = await net.add("serving")
    ways = [await net.add(name, links=[serving]) for name in ("upper", "lower")]
    calling = await net.add("calling", links=ways)
    await serving.serve(worker())
    await net.converged()
    callers = Callers(calling)
    await net.pass_time(1.0)
    return ways, calling, callers


def is_linked(node: LabNode, other: LabNode) -> bool:
    return any(link.peer == other.id for link in node.node.network.links())


async def test_the_nodes_on_both_ways_to_a_service_are_replaced_without_a_call_lost(micro_net: Lab) -> None:
    ways, _, callers = await two_ways(micro_net)
    for node in ways:
        await node.stop()
        await micro_net.pass_time(5.0)
        await node.start()
        await micro_net.converged()
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 1_000


async def test_calls_pass_by_a_node_whose_proxy_is_away(micro_net: Lab) -> None:
    ways, calling, callers = await two_ways(micro_net)
    # As where `micro proxy` is stopped: its calls end, then nobody listens, while tunnel and router stand.
    proxy, tunnel = ways[0].node.proxy, ways[0].node.tunnel
    await proxy.drain(10.0)
    tunnel._channels._acceptors.pop(CHANNEL)
    for connection in list(proxy._accepted):
        if connection.peer_id == calling.id:
            await connection.close()
    await micro_net.pass_time(3.0)
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 500


async def test_a_neighbour_that_drains_and_leads_to_hundreds_costs_one_look(micro_net: Lab) -> None:
    calling = await micro_net.add("calling")
    draining = await micro_net.add("draining", links=[calling])
    await micro_net.converged()
    for number in range(600):
        origin = f"{number:032x}"
        calling.node.table.put(
            Route(
                service=NAME,
                address="",
                gateway=draining.id,
                network="lab",
                router=origin,
                link=NETWORK_LINK,
                metric=10_000,
                site="x",
                version="",
            )
        )
    connection = calling.node.proxy._peer_connection(draining.id, Priority.CALLS)
    await micro_net.pass_time(0.1)
    for accepted in list(draining.node.proxy._accepted):
        accepted.goaway()
    await micro_net.pass_time(0.1)
    assert connection.is_draining
    with pytest.raises(Draining):
        await calling.call(NAME, "Do.Work", retries=0)
    assert connection.open_streams == 0


async def test_a_node_that_was_long_away_is_linked_again_as_soon_as_others_tell_of_it(micro_net: Lab) -> None:
    known = await micro_net.add("known")
    absent = await micro_net.add("absent", links=[known])
    waiting = await micro_net.add("waiting", links=[absent, known])
    await micro_net.converged()
    await absent.stop()
    # By now it is dialled every quarter of a minute.
    await micro_net.pass_time(120.0)
    for _ in range(5):
        await absent.start()
        await micro_net.pass_time(2.0)
        assert is_linked(waiting, absent)
        await absent.kill()
        await micro_net.pass_time(60.0)
