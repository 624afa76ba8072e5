"""Nodes that find each other through resolvers alone: the network becomes one component, and again after every fault."""

from __future__ import annotations

import itertools

import pytest

from micro_core.lab import loop
from micro_core.lab.connectivity import components
from micro_core.lab.directory import Spelling
from micro_core.lab.monitor import Monitor
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.process import CpuModel
from micro_core.lab.topologies import SitePlan, add_sites, flat, four_clouds, many_sites
from micro_core.lab.traffic import time_until

pytestmark = pytest.mark.timeout(240)
"""Up to 6 s of processor time each, for two minutes of twelve nodes. The machine may be busy."""

HEAL_S = 10.0
"""Time from the end of the last fault until the network is one component."""

TWELVE_ON_TWO_CORES = CpuModel(speed=1 / 6)


def lab_with(seed: int) -> Lab:
    return Lab(seed, options=LabOptions(keep_log=False, cpu=TWELVE_ON_TWO_CORES))


async def heal_after_partition(seed: int, cut_clouds: int, spelling: Spelling) -> float:
    lab = lab_with(seed)
    groups = await four_clouds(lab, spelling=spelling)
    await lab.advance_time(30)
    assert len(components(lab)) == 1, "the network starts as one component"
    left, right = flat(groups[:cut_clouds]), flat(groups[cut_clouds:])
    lab.partition(left, right)
    await lab.advance_time(60)
    assert len(components(lab)) == 2
    lab.heal(left, right)
    seconds = await time_until(lab, lambda: len(components(lab)) == 1, timeout_s=HEAL_S + 1.0)
    await lab.close()
    return seconds


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("cut_clouds", [1, 2])
def test_partitioned_clouds_become_one_component(cut_clouds: int, seed: int) -> None:
    assert loop.run(heal_after_partition(seed, cut_clouds, Spelling.MIXED)) <= HEAL_S


def test_partitioned_clouds_with_one_spelling_become_one_component() -> None:
    assert loop.run(heal_after_partition(1, 1, Spelling.BARE)) <= HEAL_S


async def outage_in_rolling_restart(seed: int) -> tuple[float, float]:
    lab = lab_with(seed)
    groups = await four_clouds(lab, 2)
    await lab.advance_time(15)
    monitor, apart_s, began_at = Monitor(lab), 0.0, lab.now
    for node in flat(groups):
        await node.stop()
        await lab.advance_time(1.0)
        await node.start()
        await lab.advance_time(2.0)
    last = lab.now
    await lab.advance_time(15)
    await monitor.stop()
    await lab.close()
    readings = [one for one in monitor.readings if one.at >= began_at]
    for before, after in itertools.pairwise(readings):
        if before.components > 1:
            apart_s += after.at - before.at
    return apart_s, monitor.one_component_after_s(last)


def test_rolling_restart_cuts_no_cloud_off() -> None:
    apart_s, one_after_s = loop.run(outage_in_rolling_restart(1))
    # Each of the eight nodes is a component of its own until its first link is established.
    assert apart_s <= 8 * 0.75, apart_s
    assert one_after_s <= HEAL_S


async def missing_links_at_rest(seed: int) -> list[int]:
    lab = lab_with(seed)
    nodes = flat(await four_clouds(lab))
    await lab.advance_time(60)
    counts = [sum(max(0, side.wanted - side.open) for side in node.node.network.sides()) for node in nodes]
    assert all(len(node.node.network.links()) >= 4 for node in nodes)
    await lab.close()
    return counts


def test_every_node_has_the_wanted_number_of_links_at_rest() -> None:
    assert loop.run(missing_links_at_rest(1)) == [0] * 12


async def test_nodes_behind_nats_and_stale_addresses_do_not_split_the_network(micro_net: Lab) -> None:
    await many_sites(micro_net, 12, behind_nat=5, stale=6, spelling=Spelling.MIXED)
    await micro_net.advance_time(30)
    assert len(components(micro_net)) == 1


async def test_partial_answers_of_resolvers_are_enough(micro_net: Lab) -> None:
    names = [f"p{number}-" for number in range(6)]
    plans = [
        SitePlan(name=name, nodes=1, only=(f"p{(number + 1) % 6}-1", f"p{(number + 2) % 6}-1"))
        for number, name in enumerate(names)
    ]
    await add_sites(micro_net, plans)
    await micro_net.advance_time(30)
    assert len(components(micro_net)) == 1
