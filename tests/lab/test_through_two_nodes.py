"""What passes through nodes, as their users see it: streams of all kinds, deadlines, refusals, routes that fail."""

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
from micro_core.wire.codec import BYTES
from micro_core.wire.header import CallMode

NAME = "go.micro.srv.worker"
MIB = 1024 * 1024


class Worker:
    """A service of every kind of endpoint, and what befell it."""

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
            yield {"heard": item["say"]}
        yield {"heard": "the end"}

    async def wait(self) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def fail(self) -> None:
        raise BadRequest("no", hint="never")

    async def busy(self) -> dict[str, str]:
        self.calls += 1
        return {"by": self.name}


async def line_of_three(net: Lab) -> tuple[Any, Worker]:
    a, _, c = await net.line(3)
    worker = Worker("a")
    await a.serve(worker.service)
    await net.converged()
    return c, worker


async def test_a_server_stream_comes_whole_and_ends(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Count", {"to": 500}, mode=CallMode.SERVER_STREAM) as stream:
        assert [item async for item in stream] == list(range(500))


async def test_a_client_stream_of_64_mib_crosses_with_little_held_on_the_way(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Total", content_type=BYTES, mode=CallMode.CLIENT_STREAM) as stream:
        for _ in range(64):
            await stream.send(bytes(MIB))
        await stream.end()
        assert await stream.receive() == 64 * MIB


async def test_both_sides_stream_and_the_answer_goes_on_after_the_caller_has_ended(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    async with await c.stream(NAME, "Do.Chat") as stream:
        await stream.send({"say": "one"})
        assert await stream.receive() == {"heard": "one"}
        await stream.send({"say": "two"})
        await stream.end()
        assert [item["heard"] async for item in stream] == ["two", "the end"]
        with pytest.raises(Ended):
            await stream.receive()


async def test_a_large_request_and_a_large_answer_cross(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    answer = await c.call(NAME, "Do.Echo", {"body": bytes(3 * MIB)}, timeout_s=30.0)
    assert len(answer["body"]) == 3 * MIB
    with pytest.raises(TooLarge):
        await c.call(NAME, "Do.Echo", {"body": bytes(5 * MIB)})


async def test_the_deadline_holds_and_cancels_the_handler_at_the_far_end(micro_net: Lab) -> None:
    c, worker = await line_of_three(micro_net)
    began = micro_net.now
    with pytest.raises(DeadlineExceeded):
        await c.call(NAME, "Do.Wait", timeout_s=0.5)
    assert micro_net.now - began == pytest.approx(0.5, abs=0.1)
    await asyncio.wait_for(worker.cancelled.wait(), 1.0)


async def test_cancelling_the_caller_cancels_the_handler(micro_net: Lab) -> None:
    c, worker = await line_of_three(micro_net)
    task = asyncio.ensure_future(c.call(NAME, "Do.Wait", timeout_s=60.0))
    await micro_net.pass_time(1.0)
    task.cancel()
    await asyncio.wait_for(worker.cancelled.wait(), 1.0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_arrive_as_they_were_raised(micro_net: Lab) -> None:
    c, _ = await line_of_three(micro_net)
    with pytest.raises(BadRequest) as caught:
        await c.call(NAME, "Do.Fail")
    assert (caught.value.detail, caught.value.hint) == ("no", "never")
    with pytest.raises(EndpointNotFound):
        await c.call(NAME, "Do.Nothing")
    began = micro_net.now
    with pytest.raises(RouteNotFound, match="no route to"):
        await c.call("go.micro.srv.nobody", "Do.Echo", {})
    assert micro_net.now - began < 0.1, "at once, not a timeout"


async def test_a_call_in_flight_over_a_link_that_breaks_fails_at_once_and_says_where(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    await a.serve(Worker("a").service)
    await micro_net.converged()
    task = asyncio.ensure_future(c.call(NAME, "Do.Echo", {"x": 1}))
    await micro_net.pass_time(0.012)
    micro_net.reset(a, b)
    began = micro_net.now
    with pytest.raises(MicroError) as caught:
        await task
    assert micro_net.now - began < 1.0
    assert caught.value.at


async def test_a_refused_call_goes_to_another_site_and_what_may_have_begun_does_not(micro_net: Lab) -> None:
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


async def test_sites_share_the_calls_and_the_one_that_dies_is_left_out(micro_net: Lab) -> None:
    middle, left, right = await micro_net.star(3)
    workers = {node.name: Worker(node.name) for node in (left, right)}
    for node in (left, right):
        await node.serve(workers[node.name].service)
    await micro_net.converged()
    for _ in range(40):
        await middle.call(NAME, "Do.Busy")
    assert min(worker.calls for worker in workers.values()) >= 8
    await left.kill()
    await micro_net.pass_time(5.0)
    before = workers[right.name].calls
    for _ in range(10):
        assert (await middle.call(NAME, "Do.Busy"))["by"] == right.name
    assert workers[right.name].calls == before + 10


async def test_metadata_may_pin_a_call_to_a_site(micro_net: Lab) -> None:
    middle, left, right = await micro_net.star(3)
    for node in (left, right):
        await node.serve(Worker(node.name).service)
    await micro_net.converged()
    for node in (left, right):
        answers = {(await middle.call(NAME, "Do.Busy", metadata={"micro-site": node.site}))["by"] for _ in range(5)}
        assert answers == {node.name}


async def test_a_call_that_has_used_its_hops_is_refused(micro_net: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_core.wire import limits

    monkeypatch.setattr(limits, "MAX_HOPS", 16)
    nodes = await micro_net.line(17)
    await nodes[0].serve(Worker("a").service)
    await micro_net.pass_time(15.0)
    assert await nodes[14].call(NAME, "Do.Busy", timeout_s=5.0) == {"by": "a"}
    with pytest.raises((RouteNotFound, LoopDetected)):
        await nodes[16].call(NAME, "Do.Busy")


async def test_too_many_calls_at_once_are_refused_and_those_taken_are_answered(micro_net: Lab) -> None:
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


async def test_a_node_that_stops_finishes_what_passes_through_it(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    service = Service(NAME)

    @service.endpoint("Do.Slow")
    async def slow() -> str:
        await asyncio.sleep(2.0)
        return "done"

    await a.serve(service)
    await micro_net.converged()
    task = asyncio.ensure_future(c.call(NAME, "Do.Slow"))
    await micro_net.pass_time(0.5)
    await b.stop()
    try:
        assert await task == "done"
    except Cancelled:
        pytest.fail("cut off by a node that had time to finish")
