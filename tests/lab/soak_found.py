"""Soak test of networks whose nodes find each other: random sites and resolvers, random faults, calls and messages throughout.

Run by `tests/lab/soak.py`. Returns the hash of the event log, which depends on the seed alone.
"""

from __future__ import annotations

from micro_core.lab.connectivity import components, possible_components
from micro_core.lab.directory import Spelling
from micro_core.lab.lab_node import LabNode, SiteBroker
from micro_core.lab.monitor import Monitor
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.process import CpuModel
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.topologies import CLOUD_LOSS, SitePlan, add_sites, flat
from micro_core.lab.traffic import Calls, Messages, time_until, worker

ONE_COMPONENT_S = 10.0
"""Time from the end of the last fault until all nodes that can be connected are connected."""

CONVERGED_S = 3.0 + 90.0 + 120.0 + 10.0
"""Detection of dead links + lease of a registry record + maximum suppression of a service + convergence."""

STEPS = 8


async def soak_found(seed: int) -> tuple[str, float]:
    """Run one seed. Returns (hash of the event log, seconds until one component after the last fault).

    Raises AssertionError if an invariant is violated, the network does not become one component again or does not converge,
    or a message was doubled.
    """
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=CpuModel(speed=0.25)))
    groups = await _network(lab)
    nodes = flat(groups)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    messages = Messages(lab, "orders")
    for group in groups[:2]:
        await messages.subscribe(group[-1])
    await lab.advance_time(15)
    monitor = Monitor(lab)
    pairs = [(one, f"svc.{other.name}") for one in nodes for other in nodes if one.site != other.site]
    lab.random.shuffle(pairs)
    calls = Calls(lab, pairs, per_s=4)
    messages.publish_from(nodes, per_s=4)
    for _ in range(STEPS):
        await _fault(lab, groups)
        lab.check()
    last_at = lab.now
    seconds = await time_until(
        lab,
        lambda: len(components(lab)) <= len(possible_components(lab)),
        timeout_s=ONE_COMPONENT_S + 0.1,
    )
    assert seconds <= ONE_COMPONENT_S, f"{len(components(lab))} components {ONE_COMPONENT_S} s after the last fault"
    await lab.advance_time(5)
    await calls.stop()
    await messages.stop()
    await lab.advance_time(2)
    await monitor.stop()
    lab.check()
    assert messages.doubled() == []
    await lab.converged(CONVERGED_S)
    lab.check()
    assert monitor.one_component_after_s(last_at) <= ONE_COMPONENT_S
    digest = lab.digest
    await lab.close()
    return digest, seconds


async def _network(lab: Lab) -> list[list[LabNode]]:
    source = lab.random
    names = [f"s{number}-" for number in range(source.randrange(2, 5))]
    for index, one in enumerate(names):
        for other in names[:index]:
            delay_s = source.choice([0.0025, 0.02, 0.075])
            lab.links.set_between_sites(one, other, Conditions(delay_s=delay_s, loss=CLOUD_LOSS))
    broker = source.choice([SiteBroker.NODES, SiteBroker.SHARED])
    plans = [
        SitePlan(
            name=name,
            nodes=source.randrange(1, 4),
            broker=broker,
            is_behind_nat=index > 1 and source.random() < 0.3,
            spelling=source.choice([*Spelling]),
            has_registry_resolver=source.random() < 0.5,
        )
        for index, name in enumerate(names)
    ]
    return await add_sites(lab, plans, stale=source.choice([0, 0, 3]))


async def _fault(lab: Lab, groups: list[list[LabNode]]) -> None:
    """Inject one fault at random, wait, and repair it."""
    source, nodes = lab.random, flat(groups)
    group = groups[source.randrange(0, len(groups))]
    others = [node for node in nodes if node not in group]
    node, other = group[source.randrange(0, len(group))], others[source.randrange(0, len(others))]
    wait_s = source.choice([1.0, 4.0, 12.0])
    match source.randrange(0, 9):
        case 0:
            lab.partition(group, others)
            await lab.advance_time(wait_s)
            lab.heal(group, others)
        case 1:
            half = len(groups) // 2
            left, right = flat(groups[:half]), flat(groups[half:])
            lab.partition(left, right)
            await lab.advance_time(wait_s)
            lab.heal(left, right)
        case 2:
            lab.cut_one_way(node, other)
            await lab.advance_time(wait_s)
            lab.heal(node, other)
        case 3:
            node.sleep(wait_s)
            await lab.advance_time(wait_s + 1.0)
        case 4:
            leader = min(group, key=lambda one: one.id)
            await leader.kill(with_services=source.random() < 0.5)
            await lab.advance_time(wait_s)
            await leader.start()
        case 5:
            await lab.flap(node, other, source.choice([3.0, 5.0, 11.0]), times=2)
        case 6:
            lab.change_path(node, other, Conditions(delay_s=source.choice([0.005, 0.2])))
            await lab.advance_time(wait_s)
        case 7:
            lab.shrink_path(node, other, 1_280)
            await lab.advance_time(wait_s)
            lab.shrink_path(node, other, None)
        case 8:
            for one in group:
                await one.stop()
                await lab.advance_time(1.0)
                await one.start()
                await lab.advance_time(2.0)
    await lab.advance_time(source.choice([0.5, 3.0]))
