"""Nodes that calls pass through are replaced one after the other, on virtual time: nobody may notice."""

from __future__ import annotations

import asyncio

from micro_core import Service
from micro_core.lab.member import LabNode
from micro_core.lab.net import Lab
from micro_core.spec.errors import MicroError

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


def is_linked(node: LabNode, other: LabNode) -> bool:
    return any(link.peer == other.id for link in node.node.network.links())


async def test_the_nodes_on_both_ways_to_a_service_are_replaced_without_a_call_lost(micro_net: Lab) -> None:
    serving = await micro_net.add("serving")
    ways = [await micro_net.add(name, links=[serving]) for name in ("upper", "lower")]
    calling = await micro_net.add("calling", links=ways)
    await serving.serve(worker())
    await micro_net.converged()
    callers = Callers(calling)
    await micro_net.pass_time(1.0)
    for node in ways:
        await node.stop()
        await micro_net.pass_time(5.0)
        await node.start()
        await micro_net.converged()
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 1_000


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
