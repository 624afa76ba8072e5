"""The built-in scenarios. They are also examples for your own ones.

Your own scenario is a Python file with `async def scenario(lab, watch, count)`: create nodes with `lab`, measure the
convergence time of each step with `watch.settle("name of the step")`, and let time pass with `lab.advance_time(seconds)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.report import Observer
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

Body = Callable[[Lab, Observer, int], Awaitable[None]]

WAN = Conditions(delay_s=0.040, jitter_s=0.005, loss=0.002)
"""Between clouds: a round trip of 80 ms and a little loss."""

LAN = Conditions(delay_s=0.0005)
"""Within a cloud: a round trip of 1 ms."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A built-in scenario. `count` is its default number of nodes."""

    name: str
    summary: str
    count: int
    body: Body


SCENARIOS: dict[str, Scenario] = {}


def _scenario(name: str, count: int) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        summary = (body.__doc__ or "").partition("\n")[0]
        SCENARIOS[name] = Scenario(name, summary, count, body)
        return body

    return add


async def serve_each(nodes: Sequence[LabNode], services: int = 1) -> None:
    """Start `services` services with different names on the site of each node."""
    for node in nodes:
        for number in range(services):
            await node.serve(Service(f"svc.{node.name}.{number}"))


# ---------------------------------------------------------------------------------- shapes


def _shape(name: str, title: str, count: int, build: Callable[[Lab, int], Awaitable[list[LabNode]]]) -> None:
    async def body(lab: Lab, watch: Observer, count: int) -> None:
        nodes = await build(lab, count)
        await serve_each(nodes)
        await watch.settle("start")
        service = await nodes[0].serve(Service("svc.late"))
        await watch.settle("a service starts")
        await nodes[0].stop_service(service)
        await watch.settle("the service stops")
        await nodes[-1].kill()
        await watch.settle("a node crashes")
        await nodes[-1].start()
        await watch.settle("the node restarts")
        await lab.advance_time(60)

    body.__doc__ = f"{title} of nodes: a service starts and stops, a node crashes and restarts."
    _scenario(name, count)(body)


_shape("line", "A line", 6, Lab.line)
_shape("ring", "A ring", 8, Lab.ring)
_shape("star", "A star", 8, Lab.star)
_shape("mesh", "A full mesh", 8, Lab.mesh)
_shape("random", "A random graph", 20, Lab.random_graph)


async def clouds(lab: Lab, sizes: Sequence[int], connections: Sequence[tuple[int, int]]) -> list[list[LabNode]]:
    """Create full meshes with fast links, and slow links between the first nodes of the given pairs of meshes."""
    groups = [await lab.mesh(size) for size in sizes]
    for group in groups:
        for one in group:
            for other in group:
                if one.name < other.name:
                    lab.links.set(one.name, other.name, LAN)
    for one_cloud, other_cloud in connections:
        one, other = groups[one_cloud][0], groups[other_cloud][0]
        lab.links.set(one.name, other.name, WAN)
        await lab.link(other, one)
    return groups


@_scenario("two-clouds", 8)
async def two_clouds(lab: Lab, watch: Observer, count: int) -> None:
    """Two full meshes joined by one link, which is cut and repaired."""
    left, right = await clouds(lab, [count // 2, count - count // 2], [(0, 1)])
    await serve_each([*left, *right])
    await watch.settle("start")
    lab.partition(left, right)
    await lab.advance_time(10)
    await watch.settle("the link is cut")
    lab.heal(left, right)
    await watch.settle("the link is repaired")


@_scenario("four-clouds", 12)
async def four_clouds(lab: Lab, watch: Observer, count: int) -> None:
    """Four clouds of three nodes, joined by slow links. One cloud is cut off and reconnected."""
    size = max(1, count // 4)
    connections = [(one, other) for one in range(4) for other in range(one + 1, 4)]
    groups = await clouds(lab, [size] * 4, connections)
    nodes = [node for group in groups for node in group]
    await serve_each(nodes)
    await watch.settle("start")
    lab.partition(groups[0], [node for group in groups[1:] for node in group])
    await lab.advance_time(10)
    await watch.settle("a cloud is cut off")
    lab.heal(groups[0], [node for group in groups[1:] for node in group])
    await watch.settle("the cloud is reconnected")


# ---------------------------------------------------------------------------------- faults


@_scenario("churn", 12)
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


@_scenario("rolling-restart", 8)
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


@_scenario("flapping-link", 6)
async def flapping_link(lab: Lab, watch: Observer, count: int) -> None:
    """One link of a ring breaks every seven seconds. All services stay reachable in the other direction."""
    nodes = await lab.ring(count)
    await serve_each(nodes)
    await watch.settle("start")
    for _ in range(20):
        lab.reset(nodes[0], nodes[1])
        await lab.advance_time(7.0)
    await watch.settle("the link is stable")


@_scenario("partition", 10)
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


@_scenario("slow-flap", 8)
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


@_scenario("storm", 50)
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
