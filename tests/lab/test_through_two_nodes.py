"""Calls through two nodes as clients see them: streams, deadlines, errors, and failing routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from micro_core import Service
from micro_core.contract.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    Ended,
    EndpointNotFound,
    LoopDetected,
    MicroError,
    Overloaded,
    RouteNotFound,
    TooLarge,
)
from micro_core.lab.net import Lab
from micro_core.wire import limits
from micro_core.wire.codec import BYTES
from micro_core.wire.header import CallMode

NAME = "go.micro.srv.worker"
MIB = 1024 * 1024


class Worker:
    """A service with every kind of endpoint."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls = 0
        self.cancelled = asyncio.Event()
        self.service = Service(NAME)
        for endpoint in ("echo", "count", "total", "chat", "wait", "fail", "busy"):
            self.service.endpoint(f"Do.{endpoint.capitalize()}", idempotent=endpoint == "wait")(getattr(self, endpoint))

    async def echo(self, request: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        return {**request, "by": self.name}

    async def count(self, request: dict[str, int]) -> AsyncIterator[int]:
        for number in range(request["to"]):
            yield number

    async def total(self, items: AsyncIterator[bytes]) -> int:
        total = 0
        async for item in items:
            total += len(item)
        return total

    async def chat(self, items: AsyncIterator[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
        async for item in items:
            yield {"echo": item["text"]}
        yield {"echo": "end"}

    async def wait(self) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def fail(self) -> None:
        raise BadRequest("no", hint="change the request")

    async def busy(self) -> dict[str, str]:
        self.calls += 1
        return {"by": self.name}


async def line_of_three(net: Lab) -> tuple[Any, Worker]:
    a, _, c = await net.line(3)
    worker = Worker("a")
    await a.serve(worker.service)
    await net.converged()
    return c, worker


async def test_server_stream_is_complete(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Count", {"to": 500}, mode=CallMode.SERVER_STREAM) as stream:
        assert [item async for item in stream] == list(range(500))


async def test_client_stream_of_64_mib_is_received(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Total", content_type=BYTES, mode=CallMode.CLIENT_STREAM) as stream:
        for _ in range(64):
            await stream.send(bytes(MIB))
        await stream.end()
        assert await stream.receive() == 64 * MIB


async def test_bidirectional_stream_continues_after_the_client_has_ended(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Chat") as stream:
        await stream.send({"text": "one"})
        assert await stream.receive() == {"echo": "one"}
        await stream.send({"text": "two"})
        await stream.end()
        assert [item["echo"] async for item in stream] == ["two", "end"]
        with pytest.raises(Ended):
            await stream.receive()


async def test_large_request_and_response_are_received(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    answer = await c.call(NAME, "Do.Echo", {"body": bytes(3 * MIB)}, timeout_s=30.0)
    assert len(answer["body"]) == 3 * MIB
    with pytest.raises(TooLarge):
        await c.call(NAME, "Do.Echo", {"body": bytes(5 * MIB)})


async def test_deadline_is_enforced_and_cancels_the_handler(micro_net: Lab) -> None:
    c, worker = await line_of_three(micro_net)
    began = micro_net.now
    with pytest.raises(DeadlineExceeded):
        await c.call(NAME, "Do.Wait", timeout_s=0.5)
    assert micro_net.now - began == pytest.approx(0.5, abs=0.1)
    await asyncio.wait_for(worker.cancelled.wait(), 1.0)


async def test_cancelled_call_cancels_the_handler(micro_net: Lab) -> None:
    c, worker = await line_of_three(micro_net)
    task = asyncio.ensure_future(c.call(NAME, "Do.Wait", timeout_s=60.0))
    await micro_net.advance_time(1.0)
    task.cancel()
    await asyncio.wait_for(worker.cancelled.wait(), 1.0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_are_received_unchanged(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    with pytest.raises(BadRequest) as caught:
        await c.call(NAME, "Do.Fail")
    assert (caught.value.detail, caught.value.hint) == ("no", "change the request")
    with pytest.raises(EndpointNotFound):
        await c.call(NAME, "Do.Nothing")
    began = micro_net.now
    with pytest.raises(RouteNotFound, match="no route to"):
        await c.call("go.micro.srv.unknown", "Do.Echo", {})
    assert micro_net.now - began < 0.1, "the error comes immediately, not after a timeout"


async def test_call_over_a_broken_link_fails_at_once_with_the_position(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    await a.serve(Worker("a").service)
    await micro_net.converged()
    task = asyncio.ensure_future(c.call(NAME, "Do.Echo", {"x": 1}))
    await micro_net.advance_time(0.012)
    micro_net.reset(a, b)
    began = micro_net.now
    with pytest.raises(MicroError) as caught:
        await task
    assert micro_net.now - began < 1.0
    assert caught.value.at


async def test_refused_call_is_sent_to_another_site(micro_net: Lab) -> None:
    middle, left, right = await micro_net.star(3)
    near, far = Worker("left"), Worker("right")
    await left.serve(near.service)
    await right.serve(far.service)
    await micro_net.converged()
    near.service.server.is_draining = True
    answers = {(await middle.call(NAME, "Do.Busy"))["by"] for _ in range(20)}
    assert answers == {"right"}
    assert near.calls == 0
    assert middle.counted("proxy_calls_rerouted") > 0


async def test_sites_share_calls_and_a_killed_site_gets_none(micro_net: Lab) -> None:
    middle, left, right = await micro_net.star(3)
    workers = {node.name: Worker(node.name) for node in (left, right)}
    for node in (left, right):
        await node.serve(workers[node.name].service)
    await micro_net.converged()
    for _ in range(40):
        await middle.call(NAME, "Do.Busy")
    assert min(worker.calls for worker in workers.values()) >= 8
    await left.kill()
    await micro_net.advance_time(5.0)
    before = workers[right.name].calls
    for _ in range(10):
        assert (await middle.call(NAME, "Do.Busy"))["by"] == right.name
    assert workers[right.name].calls == before + 10


async def test_metadata_selects_the_site_of_a_call(micro_net: Lab) -> None:
    middle, left, right = await micro_net.star(3)
    for node in (left, right):
        await node.serve(Worker(node.name).service)
    await micro_net.converged()
    for node in (left, right):
        answers = {(await middle.call(NAME, "Do.Busy", metadata={"micro-site": node.site}))["by"] for _ in range(5)}
        assert answers == {node.name}


async def test_call_over_the_hop_limit_is_refused(micro_net: Lab) -> None:
    nodes = await micro_net.line(limits.MAX_HOPS + 1)
    await nodes[0].serve(Worker("a").service)
    await micro_net.advance_time(15.0)
    assert await nodes[limits.MAX_HOPS - 2].call(NAME, "Do.Busy", timeout_s=5.0) == {"by": "a"}
    with pytest.raises((RouteNotFound, LoopDetected)):
        await nodes[limits.MAX_HOPS].call(NAME, "Do.Busy")


async def test_calls_over_the_concurrency_limit_are_refused(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    service = Service(NAME, max_concurrent=5)

    @service.endpoint("Do.Slow")
    async def slow() -> str:
        await asyncio.sleep(1.0)
        return "done"

    await a.serve(service)
    await micro_net.converged()
    results = await asyncio.gather(*(b.call(NAME, "Do.Slow", retries=0) for _ in range(8)), return_exceptions=True)
    assert results.count("done") == 5
    assert sum(isinstance(result, Overloaded) for result in results) == 3


async def test_stopping_node_finishes_the_calls_that_it_forwards(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    service = Service(NAME)

    @service.endpoint("Do.Slow")
    async def slow() -> str:
        await asyncio.sleep(2.0)
        return "done"

    await a.serve(service)
    await micro_net.converged()
    task = asyncio.ensure_future(c.call(NAME, "Do.Slow"))
    await micro_net.advance_time(0.5)
    await b.stop()
    try:
        assert await task == "done"
    except Cancelled:
        pytest.fail("the stopping node cancelled a call that it could have finished")
