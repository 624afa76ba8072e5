"""Load: calls move gradually from an overloaded near site to a far one, and return."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions

NAME = "go.micro.srv.worker"
MAX_CONCURRENT, DURATION_S = 2, 0.020
"""One site can serve 100 calls per second."""


def worker(site: str) -> Service:
    service, semaphore = Service(NAME), asyncio.Semaphore(MAX_CONCURRENT)

    @service.endpoint("Work.Do")
    async def do() -> str:
        async with semaphore:
            await asyncio.sleep(DURATION_S)
        return site

    return service


class Caller:
    """Calls at a fixed rate, and counts the answers of each site."""

    def __init__(self, net: Lab, node: LabNode) -> None:
        self.net = net
        self.node = node
        self.failed = 0

    async def share(self, per_s: float, seconds: float) -> tuple[float, float]:
        """Returns (share of the far site, mean duration of a call in seconds)."""
        answers: Counter[str] = Counter()
        spent = 0.0

        async def one() -> None:
            nonlocal spent
            began_at = self.net.now
            try:
                answers[await self.node.call(NAME, "Work.Do")] += 1
            except MicroError:
                self.failed += 1
            spent += self.net.now - began_at

        calls = []
        until = self.net.now + seconds
        while self.net.now < until:
            calls.append(asyncio.get_running_loop().create_task(one()))
            await self.net.advance_time(1 / per_s)
        await asyncio.gather(*calls)
        return answers["far"] / len(calls), spent / len(calls)


@pytest.mark.parametrize("is_local", [False, True])
async def test_calls_move_gradually_from_an_overloaded_site_and_return(micro_net: Lab, is_local: bool) -> None:
    c, a, b = await micro_net.star(3)
    micro_net.links.set("c" if is_local else a.name, c.name, Conditions(delay_s=0.005))
    micro_net.links.set(b.name, c.name, Conditions(delay_s=0.015))
    near = c if is_local else a
    await near.serve(worker("near"))
    await b.serve(worker("far"))
    await micro_net.advance_time(20)
    caller = Caller(micro_net, c)

    share, usual_s = await caller.share(50, 10)
    assert share == 0.0, "without load, the nearest site gets all calls"
    rising = [await caller.share(rate, 10) for rate in (110, 130, 150)]
    shares = [share for share, _ in rising]
    assert 0.0 < shares[0] < 0.4, "a slight overload moves few calls"
    assert shares == sorted(shares)
    steady = [await caller.share(150, 10) for _ in range(3)]
    assert all(0.25 < share < 0.6 for share, _ in steady), steady
    assert all(mean_s < 0.4 for _, mean_s in steady), (
        "calls do not oscillate between the sites, which would take more than a second"
    )
    await caller.share(50, 10)
    share, back_s = await caller.share(50, 10)
    assert share == 0.0, "all calls have returned"
    assert back_s == pytest.approx(usual_s, rel=0.1)
    assert caller.failed == 0
    assert near.counted("routing_messages_sent") < 200, "load is advertised in steps, not with every call"


async def test_load_is_advertised_to_other_sites_and_explained(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await a.serve(worker("near"))
    await micro_net.advance_time(5)
    await Caller(micro_net, a).share(50, 5)
    (route,) = b.routes(NAME)
    before = route.metric
    flood = asyncio.get_running_loop().create_task(Caller(micro_net, a).share(150, 20))
    await micro_net.advance_time(15)
    (candidate,) = (await b.call("go.micro.network", "Network.Explain", {"service": NAME}))["candidates"]
    assert candidate["load_us"] >= 64_000
    assert candidate["announced_us"] >= candidate["load_us"]
    assert b.routes(NAME)[0].metric > before + 50_000
    await flood
    await micro_net.advance_time(20)
    assert b.routes(NAME)[0].metric < before + 4_000
