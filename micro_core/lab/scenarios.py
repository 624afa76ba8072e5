"""The scenarios that come with the lab, each a few lines: look here to see how to write one.

A scenario of your own is a Python file with `async def scenario(lab, watch, count)`: build with `lab`, let `watch.settle("what")`
measure, and let time pass.
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
"""Between clouds: 80 ms there and back, a little loss."""

LAN = Conditions(delay_s=0.0005)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One that is shipped; `count` nodes unless somebody says another number."""

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
    """So many services on the site of each node, each with a name of its own."""
    for node in nodes:
        for number in range(services):
            await node.serve(Service(f"svc.{node.name}.{number}"))


# ---------------------------------------------------------------------------------- shapes


def _shape(name: str, count: int, build: Callable[[Lab, int], Awaitable[list[LabNode]]]) -> None:
    async def body(lab: Lab, watch: Observer, count: int) -> None:
        nodes = await build(lab, count)
        await serve_each(nodes)
        await watch.settle("start")
        service = await nodes[0].serve(Service("svc.late"))
        await watch.settle("a service comes")
        await nodes[0].stop_service(service)
        await watch.settle("it goes")
        await nodes[-1].kill()
        await watch.settle("a node is killed")
        await nodes[-1].start()
        await watch.settle("it comes back")
        await lab.pass_time(60)

    body.__doc__ = f"A {name} of nodes: start, a service comes and goes, a node is killed and comes back."
    _scenario(name, count)(body)


_shape("line", 6, Lab.line)
_shape("ring", 8, Lab.ring)
_shape("star", 8, Lab.star)
_shape("mesh", 8, Lab.mesh)
_shape("random", 20, Lab.random_graph)


async def clouds(lab: Lab, sizes: Sequence[int], joints: Sequence[tuple[int, int]]) -> list[list[LabNode]]:
    """Full meshes on fast wires, joined by links between their first nodes over slow ones."""
    groups = [await lab.mesh(size) for size in sizes]
    for group in groups:
        for one in group:
            for other in group:
                if one.name < other.name:
                    lab.wires.set(one.name, other.name, LAN)
    for one_cloud, other_cloud in joints:
        one, other = groups[one_cloud][0], groups[other_cloud][0]
        lab.wires.set(one.name, other.name, WAN)
        await lab.link(other, one)
    return groups


@_scenario("two-clouds", 8)
async def two_clouds(lab: Lab, watch: Observer, count: int) -> None:
    """Two full meshes joined by one link, which is cut and comes back."""
    left, right = await clouds(lab, [count // 2, count - count // 2], [(0, 1)])
    await serve_each([*left, *right])
    await watch.settle("start")
    lab.partition(left, right)
    await lab.pass_time(10)
    await watch.settle("the link is cut")
    lab.heal(left, right)
    await watch.settle("it comes back")


@_scenario("four-clouds", 12)
async def four_clouds(lab: Lab, watch: Observer, count: int) -> None:
    """Four clouds of three nodes, each joined to each over the sea: the deployment of the founding article."""
    size = max(1, count // 4)
    joints = [(one, other) for one in range(4) for other in range(one + 1, 4)]
    groups = await clouds(lab, [size] * 4, joints)
    everybody = [node for group in groups for node in group]
    await serve_each(everybody)
    await watch.settle("start")
    lab.partition(groups[0], [node for group in groups[1:] for node in group])
    await lab.pass_time(10)
    await watch.settle("a cloud is cut off")
    lab.heal(groups[0], [node for group in groups[1:] for node in group])
    await watch.settle("it is back")


# ---------------------------------------------------------------------------------- troubles


@_scenario("churn", 12)
async def churn(lab: Lab, watch: Observer, count: int) -> None:
    """Ten minutes in which services come and go everywhere, nodes die and come back."""
    nodes = await lab.random_graph(count)
    await serve_each(nodes)
    await watch.settle("start")
    await churn_for(lab, nodes, 600.0)
    await watch.settle("the churn stops", 300.0)


async def churn_for(lab: Lab, nodes: Sequence[LabNode], seconds: float, every_s: float = 2.0) -> None:
    """Something happens every `every_s` seconds; nodes that were killed are back in the end."""
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
        await lab.pass_time(lab.random.uniform(0.5, 1.5) * every_s)
    for node in nodes:
        if not node.is_alive:
            await node.start()


@_scenario("rolling-restart", 8)
async def rolling_restart(lab: Lab, watch: Observer, count: int) -> None:
    """Twenty instances of one service are restarted one after the other: nobody elsewhere should notice."""
    nodes = await lab.ring(count)
    instances = [await nodes[0].serve(Service("svc.rolling")) for _ in range(20)]
    await watch.settle("start")
    for place, instance in enumerate(instances):
        await nodes[0].stop_service(instance)
        await lab.pass_time(2.0)
        instances[place] = await nodes[0].serve(Service("svc.rolling", version="2"))
        await lab.pass_time(1.0)
    await watch.settle("all are restarted")


@_scenario("flapping-link", 6)
async def flapping_link(lab: Lab, watch: Observer, count: int) -> None:
    """A link of a ring breaks every seven seconds; all stays reachable the other way round."""
    nodes = await lab.ring(count)
    await serve_each(nodes)
    await watch.settle("start")
    for _ in range(20):
        lab.reset(nodes[0], nodes[1])
        await lab.pass_time(7.0)
    await watch.settle("the link stays")


@_scenario("partition", 10)
async def partition(lab: Lab, watch: Observer, count: int) -> None:
    """A random graph falls in two for a minute, with services coming and going on both sides, and heals."""
    nodes = await lab.random_graph(count)
    await serve_each(nodes)
    await watch.settle("start")
    left, right = nodes[: count // 2], nodes[count // 2 :]
    lab.partition(left, right)
    await lab.pass_time(60)
    await serve_each([left[0], right[0]], 3)
    await lab.pass_time(5)
    lab.heal(left, right)
    await watch.settle("healed")


@_scenario("slow-flap", 8)
async def slow_flap(lab: Lab, watch: Observer, count: int) -> None:
    """Two services flap every 5 and every 11 seconds for ten minutes: both are caught, and both come back."""
    nodes = await lab.ring(count)
    await watch.settle("start")
    for period_s, node in ((5.0, nodes[0]), (11.0, nodes[1])):
        for _ in range(int(300 / period_s)):
            service = await node.serve(Service(f"svc.flapping.{node.name}"))
            await lab.pass_time(period_s / 2)
            await node.stop_service(service)
            await lab.pass_time(period_s / 2)
    for node in nodes[:2]:
        await node.serve(Service(f"svc.flapping.{node.name}"))
    await watch.settle("both stay", 300.0)


@_scenario("storm", 50)
async def storm(lab: Lab, watch: Observer, count: int) -> None:
    """One service is recycled a thousand times, as fast as it goes."""
    nodes = await lab.random_graph(count)
    await watch.settle("start")
    for _ in range(1_000):
        service = await nodes[0].serve(Service("svc.storm"))
        await lab.pass_time(0.3)
        await nodes[0].stop_service(service)
        await lab.pass_time(0.1)
    await watch.settle("the storm is over", 300.0)
