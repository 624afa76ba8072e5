"""Scenarios on networks of different shapes with fixed links."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.report import Observer
from micro_core.lab.scenarios.registry import scenario, serve_each
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

WAN = Conditions(delay_s=0.040, jitter_s=0.005, loss=0.002)
"""Between clouds: a round trip of 80 ms and a little loss."""

LAN = Conditions(delay_s=0.0005)
"""Within a cloud: a round trip of 1 ms."""


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
    scenario(name, count)(body)


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


@scenario("two-clouds", 8)
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


@scenario("four-clouds", 12)
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
