"""Load: calls that a site cannot serve go to the next one, settle there, and return."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode
from micro_core.lab.load_curve import LoadScenario, LoadSite, settling
from micro_core.lab.net import Lab

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


MAX_OVERSHOOT, SETTLED_S = 0.2, 15.0
"""Bounds of what a step of the load may cause: calls that go too far, and the time until the shares are final."""


def assert_settles(scenario: LoadScenario, since: float, expected: float, *, within: float = 0.05) -> None:
    """Check how the share of the calls of site `near` that `far` answers has followed a step of the load."""
    curve = scenario.curve("near", since, scenario.lab.now - 1.0)
    found = settling(curve, "far")
    assert found.final == pytest.approx(expected, abs=within), curve
    assert found.overshoot <= MAX_OVERSHOOT, curve
    assert found.settled_after_s <= SETTLED_S, curve


@pytest.mark.parametrize(("rtt_s", "nodes"), [(0.001, 1), (0.040, 2), (0.150, 1)])
async def test_calls_beyond_the_capacity_of_a_site_settle_on_the_other(
    micro_net: Lab, rtt_s: float, nodes: int
) -> None:
    sites = [LoadSite(name="near", nodes=nodes), LoadSite(name="far", nodes=nodes)]
    scenario = await LoadScenario.create(micro_net, sites, rtt_s=rtt_s, is_random=False)
    capacity = 2 * scenario.instance_per_s
    began_at = micro_net.now
    await scenario.run({"near": 0.6 * capacity, "far": 0.3 * capacity}, 8)
    assert scenario.share("near", "far", began_at, micro_net.now) == 0.0, "the nearest site gets all calls"
    usual_s = scenario.mean_s("near", began_at, micro_net.now)

    began_at = micro_net.now
    await scenario.run({"near": 1.3 * capacity, "far": 0.3 * capacity}, 22)
    assert_settles(scenario, began_at, 1 - 1 / 1.3)
    assert scenario.mean_s("near", began_at + 10, micro_net.now) < 0.15 + 1.5 * rtt_s

    began_at = micro_net.now
    await scenario.run({"near": 0.6 * capacity, "far": 0.3 * capacity}, 8)
    assert scenario.share("near", "far", began_at + 2, micro_net.now) == 0.0, "all calls have returned"
    assert scenario.mean_s("near", began_at + 2, micro_net.now) == pytest.approx(usual_s, rel=0.1)

    began_at = micro_net.now
    await scenario.lose_instances("near", 1)
    await scenario.run({"near": 0.8 * capacity, "far": 0.3 * capacity}, 22)
    assert_settles(scenario, began_at, 1 - 0.5 / 0.8)
    assert scenario.failed() == 0
    assert micro_net.counted("routing_messages_sent") < 2_000, "load is advertised in steps, not with every call"


async def test_random_calls_settle_on_three_sites_with_two_nodes_each(micro_net: Lab) -> None:
    def rtt_s(one: str, other: str) -> float:
        return 0.100 if "third" in (one, other) else 0.030

    sites = [LoadSite(name=name, nodes=2) for name in ("near", "far", "third")]
    scenario = await LoadScenario.create(micro_net, sites, rtt_s=rtt_s)
    capacity = 2 * scenario.instance_per_s
    low = {"far": 0.3 * capacity, "third": 0.3 * capacity}

    began_at = micro_net.now
    await scenario.run({**low, "near": 0.6 * capacity}, 8)
    for site in ("near", "far", "third"):
        assert scenario.share(site, site, began_at, micro_net.now) >= 0.98

    began_at = micro_net.now
    await scenario.run({**low, "near": 1.4 * capacity}, 25)
    assert_settles(scenario, began_at, 1 - 1 / 1.4, within=0.12)

    began_at = micro_net.now
    await scenario.run({**low, "near": 2.2 * capacity}, 25)
    curve = scenario.curve("near", began_at, micro_net.now - 1.0)
    for site, expected in (("near", 1.0 / 2.2), ("far", 0.7 / 2.2), ("third", 0.5 / 2.2)):
        found = settling(curve, site)
        assert found.final == pytest.approx(expected, abs=0.12), (site, curve)
        assert found.overshoot <= MAX_OVERSHOOT, (site, curve)
        assert found.settled_after_s <= SETTLED_S, (site, curve)
    assert scenario.failed() == 0


async def test_crashed_instances_attract_no_calls(micro_net: Lab) -> None:
    sites = [LoadSite(name="near", instances=4), LoadSite(name="far", instances=4)]
    scenario = await LoadScenario.create(micro_net, sites, rtt_s=0.040)
    await scenario.run({"near": 100.0}, 3)
    await scenario.lose_instances("near", 2, is_crash=True)
    began_at = micro_net.now
    await scenario.run({"near": 80.0}, 10)
    assert scenario.failed(began_at + 0.1) == 0
    assert scenario.share("near", "near", began_at, micro_net.now) >= 0.98
    assert micro_net.counted("proxy_calls_rerouted") < 40, "a dead address is not dialled for every call"


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
    await micro_net.advance_time(30)
    assert b.routes(NAME)[0].metric < before + 4_000, "the load has fallen, one step at a time"
