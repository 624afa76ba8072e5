"""Scenarios on four clouds whose nodes find each other through resolvers, with calls and messages in the background.

The nodes need processor time for their work: twelve of them share two cores. Each scenario requires that the network is one
component again `ONE_COMPONENT_S` seconds after its last fault, and that no message was received twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from micro_core.lab.connectivity import components
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.process import CpuModel
from micro_core.lab.report import Observer
from micro_core.lab.scenarios.registry import scenario
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.topologies import flat, four_clouds, many_sites
from micro_core.lab.traffic import Calls, Messages, time_until, worker

TWELVE_ON_TWO_CORES = CpuModel(speed=1 / 6)

ONE_COMPONENT_S = 10.0

Groups = list[list[LabNode]]
Fault = Callable[[Lab, Groups], Awaitable[None]]


async def _with_traffic(lab: Lab, watch: Observer, groups: Groups, name: str, fault: Fault) -> None:
    """Run calls and messages through a fault, and check the requirements in the docstring of this module."""
    nodes = flat(groups)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    messages = Messages(lab, "orders")
    for group in groups[:2]:
        await messages.subscribe(group[-1])
    await watch.settle("start")
    pairs = [(one, f"svc.{other.name}") for one in nodes for other in nodes if one.site != other.site]
    lab.random.shuffle(pairs)
    calls = Calls(lab, pairs, per_s=10)
    messages.publish_from(nodes, per_s=5)
    await lab.advance_time(5)
    await fault(lab, groups)
    seconds = await time_until(lab, lambda: len(components(lab)) == 1, timeout_s=ONE_COMPONENT_S + 1.0)
    watch.report.settled.append((f"one component after {name}", seconds))
    assert seconds <= ONE_COMPONENT_S, f"{len(components(lab))} components after {name}"
    await calls.stop()
    await messages.stop()
    await lab.advance_time(2)
    assert messages.doubled() == []
    await watch.settle(name, 240.0)


def _found(name: str, summary: str, fault: Fault, count: int = 12) -> None:
    async def body(lab: Lab, watch: Observer, count: int) -> None:
        await _with_traffic(lab, watch, await four_clouds(lab, max(1, count // 4)), name, fault)

    body.__doc__ = summary
    scenario(f"found-{name}", count, cpu=TWELVE_ON_TWO_CORES)(body)


async def _cloud(lab: Lab, groups: Groups) -> None:
    lab.partition(groups[0], flat(groups[1:]))
    await lab.advance_time(30)
    lab.heal(groups[0], flat(groups[1:]))


async def _halves(lab: Lab, groups: Groups) -> None:
    lab.partition(flat(groups[:2]), flat(groups[2:]))
    await lab.advance_time(30)
    lab.heal(flat(groups[:2]), flat(groups[2:]))


async def _one_way(lab: Lab, groups: Groups) -> None:
    for node in groups[0]:
        for other in groups[1]:
            lab.cut_one_way(node, other)
    await lab.advance_time(15)
    lab.heal(groups[0], groups[1])


async def _leader(lab: Lab, groups: Groups) -> None:
    leader = min(groups[0], key=lambda node: node.id)
    await leader.kill(with_services=False)
    await lab.advance_time(20)
    await leader.start()


async def _sleep(lab: Lab, groups: Groups) -> None:
    groups[0][0].sleep(30.0)
    await lab.advance_time(32)


async def _flap(lab: Lab, groups: Groups) -> None:
    for period_s in (3.0, 5.0, 11.0):
        await lab.flap(groups[0][0], groups[1][0], period_s, times=2)


async def _delay(lab: Lab, groups: Groups) -> None:
    for node in groups[0]:
        for other in groups[1]:
            lab.change_path(node, other, Conditions(delay_s=0.2))
    await lab.advance_time(20)


async def _mtu(lab: Lab, groups: Groups) -> None:
    for largest_bytes in (1_280, None):
        for node in groups[0]:
            for other in flat(groups[1:]):
                lab.shrink_path(node, other, largest_bytes)
        await lab.advance_time(10)


async def _recycle(lab: Lab, groups: Groups) -> None:
    node = groups[0][0]
    instances = [await node.serve(worker(f"svc.recycled.{number // 2}", node.site)) for number in range(20)]
    await lab.advance_time(5)
    for instance in instances:
        await node.stop_service(instance)
        await lab.advance_time(0.5)
        await node.serve(worker(instance.name, node.site))


async def _rolling(lab: Lab, groups: Groups) -> None:
    for node in flat(groups):
        await node.stop()
        await lab.advance_time(1.0)
        await node.start()
        await lab.advance_time(2.0)


_found("cloud", "Four clouds found by resolvers: one of them is cut off for 30 s.", _cloud)
_found("halves", "Four clouds found by resolvers: two of them are cut off from the others for 30 s.", _halves)
_found("one-way", "Four clouds found by resolvers: data passes in one direction only between two of them.", _one_way)
_found("leader", "Four clouds found by resolvers: the node that leads a cloud is killed.", _leader)
_found("sleep", "Four clouds found by resolvers: a node is stopped for 30 s and continues.", _sleep)
_found("flap", "Four clouds found by resolvers: a path is cut every 3, 5 and 11 s.", _flap)
_found("delay", "Four clouds found by resolvers: the paths between two of them become ten times slower.", _delay)
_found("mtu", "Four clouds found by resolvers: the paths of one of them lose large datagrams.", _mtu)
_found("recycle", "Four clouds found by resolvers: twenty instances are restarted one after the other.", _recycle)
_found("rolling", "Four clouds found by resolvers: all nodes are restarted one after the other.", _rolling)


@scenario("found-sites", 30, cpu=CpuModel())
async def found_sites(lab: Lab, watch: Observer, count: int) -> None:
    """Thirty sites found by resolvers with stale addresses, a third of them behind NATs. A third is cut off for 20 s."""
    groups = await many_sites(lab, count, behind_nat=count // 3, stale=5)
    await watch.settle("start")
    part, others = flat(groups[: count // 3]), flat(groups[count // 3 :])
    lab.partition(part, others)
    await lab.advance_time(20)
    lab.heal(part, others)
    seconds = await time_until(lab, lambda: len(components(lab)) == 1, timeout_s=ONE_COMPONENT_S + 1.0)
    watch.report.settled.append(("one component", seconds))
    assert seconds <= ONE_COMPONENT_S, f"{len(components(lab))} components"
    await watch.settle("the sites are connected again", 240.0)
