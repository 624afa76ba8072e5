"""Two link drivers between the same nodes, one of which is blocked for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from micro_core import Service
from micro_core.lab.lab_node import LabNode
from micro_core.lab.loop import run
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions

BOTH = LabOptions(schemes=("fast", "fallback"))


async def linked(lab: Lab, node: LabNode, driver: str, within_s: float) -> float:
    """Wait until the only link of the node uses `driver`. Returns the seconds this took."""
    began = lab.now
    while [link.driver for link in node.node.tunnel.links()] != [driver]:
        assert lab.now - began < within_s, f"no link over {driver} within {within_s} s: {node.node.tunnel.links()}"
        await asyncio.sleep(0.001)
    return lab.now - began


def sleeper(served: list[str], seconds: float) -> Service:
    service = Service("go.micro.srv.sleeper")

    @service.endpoint("Sleep.Once")
    async def once() -> str:
        await asyncio.sleep(seconds)
        served.append("done")
        return "done"

    return service


@pytest.fixture(params=[1, 2, 3])
def lab_run(request: pytest.FixtureRequest) -> Callable[[Callable[[Lab], Awaitable[None]]], None]:
    def with_seed(scenario: Callable[[Lab], Awaitable[None]]) -> None:
        async def body() -> None:
            lab = Lab(request.param, options=BOTH)
            try:
                await scenario(lab)
            finally:
                await lab.close()

        run(body())

    return with_seed


LabRun = Callable[[Callable[[Lab], Awaitable[None]]], None]


def test_preferred_driver_is_used_if_both_work(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        b = await lab.add("b", links=[a])
        await linked(lab, b, "fast", 0.1)
        await lab.advance_time(300)
        (link,) = b.node.tunnel.links()
        assert (link.driver, link.generation, link.why) == ("fast", 1, "first choice")
        assert lab.counted("tunnel_paths_fallen_back") == 0

    lab_run(scenario)


def test_fallback_takes_less_than_a_second_and_is_reported(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        lab.links.block("fast", "b", "a")
        lab.links.block("fast", "a", "b")
        b = await lab.add("b", links=[a])
        assert await linked(lab, b, "fallback", 1.0) < 1.0
        (link,) = b.node.tunnel.links()
        assert link.why == "fast did not answer within 0.4 s"
        await lab.advance_time(1)
        lines = [line for line in lab.log if "linked to a" in line]
        assert len(lines) == 1
        assert "over fallback" in lines[0]
        assert "fast did not answer within 0.4 s" in lines[0]

    lab_run(scenario)


def test_link_moves_back_without_losing_calls_or_routes(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        lab.links.block("fast", "b", "a")
        lab.links.block("fast", "a", "b")
        b = await lab.add("b", links=[a])
        served: list[str] = []
        await a.serve(sleeper(served, 0.3))
        await linked(lab, b, "fallback", 1.0)
        await lab.advance_time(0.1)
        await lab.converged()
        lab.unblock("fast", a, b)
        calls = []
        while [link.driver for link in b.node.tunnel.links()] != ["fast"]:
            calls.append(asyncio.ensure_future(b.call("go.micro.srv.sleeper", "Sleep.Once")))
            await asyncio.sleep(0.01)
            assert lab.now < 30
        for _ in range(100):
            calls.append(asyncio.ensure_future(b.call("go.micro.srv.sleeper", "Sleep.Once")))
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*calls)
        assert answers == ["done"] * len(calls)
        assert served == answers
        assert [link.driver for link in a.node.tunnel.links()] == ["fast"]
        (link,) = b.node.tunnel.links()
        assert link.why == "fast answers again"
        assert [line for line in lab.log if "route deleted" in line] == []
        assert len([line for line in lab.log if "moved to fast" in line]) == 2
        # The old link is closed at both ends.
        await lab.advance_time(10)
        assert not a.node.tunnel._retired
        assert not b.node.tunnel._retired
        assert await b.call("go.micro.srv.sleeper", "Sleep.Once") == "done"

    lab_run(scenario)


def test_driver_that_is_blocked_later_is_replaced_and_used_again(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        b = await lab.add("b", links=[a])
        await linked(lab, b, "fast", 0.1)
        await a.serve(sleeper([], 0.0))
        await lab.converged()
        lab.block("fast", a, b)
        # The link is dead after three missed keepalives. Then all paths are raced.
        assert await linked(lab, b, "fallback", 6.0) < 6.0
        await lab.converged()
        assert await b.call("go.micro.srv.sleeper", "Sleep.Once") == "done"
        lab.unblock("fast", a, b)
        await linked(lab, b, "fast", 70.0)
        await lab.converged()
        assert await b.call("go.micro.srv.sleeper", "Sleep.Once") == "done"

    lab_run(scenario)


def test_two_nodes_that_dial_each_other_keep_one_link_over_the_preferred_driver(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        b = await lab.add("b", links=[a])
        await lab.link(a, b)
        await linked(lab, a, "fast", 1.0)
        await lab.advance_time(60)
        assert [link.driver for link in b.node.tunnel.links()] == ["fast"]
        # The driver is blocked in both directions: they keep one link over the other driver, and one node moves it back.
        lab.block("fast", a, b)
        await linked(lab, a, "fallback", 10.0)
        await linked(lab, b, "fallback", 10.0)
        await lab.advance_time(60)
        generations = {link.generation for node in (a, b) for link in node.node.tunnel.links()}
        await lab.advance_time(60)
        assert generations == {link.generation for node in (a, b) for link in node.node.tunnel.links()}
        lab.unblock("fast", a, b)
        await linked(lab, a, "fast", 70.0)
        await linked(lab, b, "fast", 1.0)

    lab_run(scenario)


def test_long_call_on_the_old_link_fails_with_the_reason(lab_run: LabRun) -> None:
    async def scenario(lab: Lab) -> None:
        a = await lab.add("a")
        lab.links.block("fast", "b", "a")
        lab.links.block("fast", "a", "b")
        b = await lab.add("b", links=[a])
        await a.serve(sleeper([], 60.0))
        await linked(lab, b, "fallback", 1.0)
        await lab.advance_time(0.1)
        await lab.converged()
        lab.unblock("fast", a, b)
        calling = asyncio.ensure_future(b.call("go.micro.srv.sleeper", "Sleep.Once", timeout_s=90.0))
        await linked(lab, b, "fast", 30.0)
        moved_at = lab.now
        with pytest.raises(Exception, match="replaced by a newer link"):
            await calling
        assert 4.0 < lab.now - moved_at < 7.0

    lab_run(scenario)
