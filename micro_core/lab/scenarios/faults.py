"""Scenarios of churn, flapping and partitions on networks with fixed links."""

from __future__ import annotations

from collections.abc import Sequence

from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.report import Observer
from micro_core.lab.scenarios.registry import scenario, serve_each
from micro_core.rpc.service import Service


@scenario("churn", 12)
async def churn(lab: Lab, watch: Observer, count: int) -> None:
    """Ten minutes in which services start and stop on all sites, and nodes crash and restart."""
    nodes = await lab.random_graph(count)
    await serve_each(nodes)
    await watch.settle("start")
    await churn_for(lab, nodes, 600.0)
    await watch.settle("the churn stops", 300.0)


async def churn_for(lab: Lab, nodes: Sequence[LabNode], seconds: float, every_s: float = 2.0) -> None:
    """Start or stop a service or a node about every `every_s` seconds. In the end, all nodes run."""
    end = lab.now + seconds
    while lab.now < end:
        node = nodes[lab.random.randrange(0, len(nodes))]
        chance = lab.random.random()
        if not node.is_alive:
            await node.start()
        elif chance < 0.05:
            await node.kill()
        elif chance < 0.5 and node.services:
            await node.stop_service(node.services[lab.random.randrange(0, len(node.services))])
        else:
            await node.serve(Service(f"svc.{node.name}.{lab.next_number()}"))
        await lab.advance_time(lab.random.uniform(0.5, 1.5) * every_s)
    for node in nodes:
        if not node.is_alive:
            await node.start()


@scenario("rolling-restart", 8)
async def rolling_restart(lab: Lab, watch: Observer, count: int) -> None:
    """Twenty instances of one service are restarted one after the other, which other sites should not notice."""
    nodes = await lab.ring(count)
    instances = [await nodes[0].serve(Service("svc.rolling")) for _ in range(20)]
    await watch.settle("start")
    for index, instance in enumerate(instances):
        await nodes[0].stop_service(instance)
        await lab.advance_time(2.0)
        instances[index] = await nodes[0].serve(Service("svc.rolling", version="2"))
        await lab.advance_time(1.0)
    await watch.settle("all instances are restarted")


@scenario("flapping-link", 6)
async def flapping_link(lab: Lab, watch: Observer, count: int) -> None:
    """One link of a ring breaks every seven seconds. All services stay reachable in the other direction."""
    nodes = await lab.ring(count)
    await serve_each(nodes)
    await watch.settle("start")
    for _ in range(20):
        lab.reset(nodes[0], nodes[1])
        await lab.advance_time(7.0)
    await watch.settle("the link is stable")


@scenario("partition", 10)
async def partition(lab: Lab, watch: Observer, count: int) -> None:
    """A random graph is partitioned for a minute, while services start on both sides, and repaired."""
    nodes = await lab.random_graph(count)
    await serve_each(nodes)
    await watch.settle("start")
    left, right = nodes[: count // 2], nodes[count // 2 :]
    lab.partition(left, right)
    await lab.advance_time(60)
    await serve_each([left[0], right[0]], 3)
    await lab.advance_time(5)
    lab.heal(left, right)
    await watch.settle("the partition is repaired")


@scenario("slow-flap", 8)
async def slow_flap(lab: Lab, watch: Observer, count: int) -> None:
    """Two services flap every 5 and 11 seconds for five minutes each. Both are suppressed and later advertised again."""
    nodes = await lab.ring(count)
    await watch.settle("start")
    for period_s, node in ((5.0, nodes[0]), (11.0, nodes[1])):
        for _ in range(int(300 / period_s)):
            service = await node.serve(Service(f"svc.flapping.{node.name}"))
            await lab.advance_time(period_s / 2)
            await node.stop_service(service)
            await lab.advance_time(period_s / 2)
    for node in nodes[:2]:
        await node.serve(Service(f"svc.flapping.{node.name}"))
    await watch.settle("both services are stable", 300.0)


@scenario("storm", 50)
async def storm(lab: Lab, watch: Observer, count: int) -> None:
    """One service is stopped and started a thousand times in quick succession."""
    nodes = await lab.random_graph(count)
    await watch.settle("start")
    for _ in range(1_000):
        service = await nodes[0].serve(Service("svc.storm"))
        await lab.advance_time(0.3)
        await nodes[0].stop_service(service)
        await lab.advance_time(0.1)
    await watch.settle("the service is stopped", 300.0)
