"""Calls while the only other route is much longer, so that a neighbour must first request a new sequence number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError, RouteNotFound
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions
from micro_core.proxy.waiting_calls import MAX_WAIT_S
from micro_core.routing.reachable_origins import EXPECTED_S
from micro_core.wire.codec import BYTES
from micro_core.wire.header import CallMode

NAME = "go.micro.srv.worker"
LONG = Conditions(delay_s=0.04)


def worker() -> Service:
    service = Service(NAME)

    @service.endpoint("Do.Work")
    async def work() -> str:
        return "done"

    @service.endpoint("Do.Total")
    async def total(items: AsyncIterator[bytes]) -> int:
        size = 0
        async for item in items:
            size += len(item)
        return size

    return service


class Callers:
    """A client that makes a call every 10 ms, without retries."""

    def __init__(self, node: LabNode, *, timeout_s: float = 5.0) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._node = node
        self._timeout_s = timeout_s
        self._calls: set[asyncio.Task[None]] = set()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            task = asyncio.ensure_future(self._call())
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            await asyncio.sleep(0.01)

    async def _call(self) -> None:
        try:
            await self._node.call(NAME, "Do.Work", timeout_s=self._timeout_s, retries=0)
            self.answered += 1
        except MicroError as error:
            self.failures.append(f"{self._node.clock.now():.3f} {error}")

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(*self._calls)


async def short_and_long_route(net: Lab) -> tuple[LabNode, LabNode, LabNode, list[LabNode]]:
    """Create calling - middle - serving, and a route of three nodes with long links beside it."""
    serving = await net.add("serving")
    middle = await net.add("middle", links=[serving])
    c = await net.add("c", links=[serving])
    b = await net.add("b", links=[c])
    a = await net.add("a", links=[b])
    calling = await net.add("calling", links=[middle, a])
    for one, other in ((serving, c), (c, b), (b, a), (a, calling)):
        net.change_path(one, other, LONG)
    await serving.serve(worker())
    await net.converged()
    await net.advance_time(20.0)
    return calling, middle, serving, [a, b, c]


async def test_no_call_fails_when_the_node_on_the_short_route_is_stopped(micro_net: Lab) -> None:
    calling, middle, _, _ = await short_and_long_route(micro_net)
    callers = Callers(calling)
    await micro_net.advance_time(1.0)
    await middle.stop()
    await micro_net.advance_time(5.0)
    await callers.end()
    assert callers.failures == []
    assert callers.answered > 500


async def test_streams_wait_with_the_data_that_their_callers_send(micro_net: Lab) -> None:
    calling, middle, _, _ = await short_and_long_route(micro_net)
    await middle.stop()
    assert calling.node.router.lookup(NAME) == ()
    stream = await calling.stream(NAME, "Do.Total", content_type=BYTES, mode=CallMode.CLIENT_STREAM)
    async with stream:
        for _ in range(20):
            await stream.send(bytes(64 * 1024))
        await stream.end()
        assert await stream.receive() == 20 * 64 * 1024
    assert calling.counted("proxy_calls_held") == 1


async def test_calls_that_the_next_node_refuses_wait_for_another_route(micro_net: Lab) -> None:
    calling, middle, serving, _ = await short_and_long_route(micro_net)
    callers = Callers(calling)
    await micro_net.advance_time(1.0)
    micro_net.partition(middle, serving)
    micro_net.reset(middle, serving)
    await micro_net.advance_time(5.0)
    await callers.end()
    # The calls that had already been sent to the lost link may have been processed, so they are not repeated.
    assert [failure for failure in callers.failures if "broke during the call" not in failure] == []
    assert len(callers.failures) <= 4
    assert middle.counted("proxy_calls_held") == 0, "only the first node of a call holds it"
    assert calling.counted("proxy_calls_held") > 0


async def test_calls_wait_after_the_loss_of_the_own_link(micro_net: Lab) -> None:
    calling, middle, _, _ = await short_and_long_route(micro_net)
    callers = Callers(calling)
    await micro_net.advance_time(1.0)
    micro_net.partition(calling, middle)
    micro_net.reset(calling, middle)
    await micro_net.advance_time(5.0)
    await callers.end()
    assert [failure for failure in callers.failures if "broke during the call" not in failure] == []
    assert len(callers.failures) <= 4
    assert calling.counted("proxy_calls_held") > 0


async def test_calls_to_a_stopped_origin_fail_at_once(micro_net: Lab) -> None:
    calling, _, serving, _ = await short_and_long_route(micro_net)
    await serving.stop()
    began = micro_net.now
    with pytest.raises(RouteNotFound):
        await calling.call(NAME, "Do.Work", retries=0)
    assert micro_net.now - began < 0.1


async def test_calls_to_a_killed_origin_fail_at_once_after_two_seconds(micro_net: Lab) -> None:
    calling, _, serving, _ = await short_and_long_route(micro_net)
    await serving.kill()
    while calling.node.router.lookup(NAME):
        await micro_net.advance_time(0.1)
    began = micro_net.now
    with pytest.raises(RouteNotFound):
        await calling.call(NAME, "Do.Work", retries=0)
    assert micro_net.now - began < MAX_WAIT_S + 0.1
    await micro_net.advance_time(EXPECTED_S)
    began = micro_net.now
    with pytest.raises(RouteNotFound):
        await calling.call(NAME, "Do.Work", retries=0)
    assert micro_net.now - began < 0.1


async def test_stopping_node_releases_the_calls_that_wait_there(micro_net: Lab) -> None:
    calling, middle, _, nodes = await short_and_long_route(micro_net)
    await nodes[0].stop()
    await middle.stop()
    task = asyncio.ensure_future(calling.call(NAME, "Do.Work", retries=0))
    await micro_net.advance_time(0.05)
    assert calling.counted("proxy_calls_held") == 1
    began = micro_net.now
    await calling.stop()
    with pytest.raises(MicroError):
        await task
    assert micro_net.now - began < 1.0
