"""Replacement of forwarding nodes one after the other: no call may fail."""

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
    """Clients that call without a pause."""

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


async def two_routes(net: Lab) -> tuple[list[LabNode], LabNode, Callers]:
    """Create a network with two routes to a service.

    Returns the nodes on both routes, the node of the clients, and the clients.
    """
    serving = await net.add("serving")
    forwarding = [await net.add(name, links=[serving]) for name in ("upper", "lower")]
    calling = await net.add("calling", links=forwarding)
    await serving.serve(worker())
    await net.converged()
    callers = Callers(calling)
    await net.advance_time(1.0)
    return forwarding, calling, callers


def is_linked(node: LabNode, other: LabNode) -> bool:
    return any(link.peer == other.id for link in node.node.network.links())


async def test_forwarding_nodes_are_replaced_without_a_failed_call(micro_net: Lab) -> None:
    forwarding, calling, callers = await two_routes(micro_net)
    for node in forwarding:
        await node.stop()
        await micro_net.advance_time(5.0)
        await node.start()
        # As an operator does: the next node is stopped only when this one carries calls again.
        while not any(route.gateway == node.id for route in calling.routes(NAME)):
            await micro_net.advance_time(0.05)
        await micro_net.converged()
        # A network with one route to each service has converged. The next node is stopped when the other route is back.
        await micro_net.advance_time(1.0)
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 1_000


async def test_calls_avoid_a_node_whose_proxy_is_stopped(micro_net: Lab) -> None:
    forwarding, calling, callers = await two_routes(micro_net)
    # As if `micro proxy` is stopped while the tunnel and the router still run.
    proxy, tunnel = forwarding[0].node.proxy, forwarding[0].node.tunnel
    await proxy.drain(10.0)
    tunnel._channels._acceptors.pop(CHANNEL)
    for connection in list(proxy._accepted):
        if connection.peer_id == calling.id:
            await connection.close()
    await micro_net.advance_time(3.0)
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 500


async def test_draining_neighbour_with_many_routes_is_tried_once(micro_net: Lab) -> None:
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
    connection = calling.node.proxy._peers.get(draining.id, Priority.CALLS)
    await micro_net.advance_time(0.1)
    for accepted in list(draining.node.proxy._accepted):
        accepted.send_goaway()
    await micro_net.advance_time(0.1)
    assert not connection.can_open_streams
    with pytest.raises(Draining):
        await calling.call(NAME, "Do.Work", retries=0)
    assert connection.open_streams == 0


async def test_node_that_was_down_for_long_is_linked_as_soon_as_others_report_it(micro_net: Lab) -> None:
    known = await micro_net.add("known")
    absent = await micro_net.add("absent", links=[known])
    waiting = await micro_net.add("waiting", links=[absent, known])
    await micro_net.converged()
    await absent.stop()
    # It is dialled only every 15 s now.
    await micro_net.advance_time(120.0)
    for _ in range(5):
        await absent.start()
        await micro_net.advance_time(2.0)
        assert is_linked(waiting, absent)
        await absent.kill()
        await micro_net.advance_time(60.0)


async def test_stop_of_a_node_is_the_reported_reason_and_not_a_flap(micro_net: Lab) -> None:
    first, second = await micro_net.line(2)
    await micro_net.converged()
    for _ in range(4):
        await second.stop()
        await micro_net.advance_time(1.0)
        await second.start()
        await micro_net.converged()
    lost = [line.split(maxsplit=1)[1] for line in micro_net.log if " lost " in line]
    stops = ["b lost a (a): this node stops", "a lost b (b): the node at the other end stops"]
    assert [line.strip() for line in lost] == stops * 4
    assert first.node.router.link_flaps() == []
