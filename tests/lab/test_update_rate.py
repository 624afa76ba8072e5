"""Routing messages after faults: bounded, and soon back at rest. The nodes need processor time for their work."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from micro_core.lab import loop
from micro_core.lab.connectivity import components
from micro_core.lab.lab_node import LabNode
from micro_core.lab.monitor import CALM_PER_S, Monitor
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.process import CpuModel
from micro_core.lab.topologies import flat, four_clouds
from micro_core.lab.traffic import Calls, worker

CALM_S = 3.0
"""Time after which the nodes are calm after the end of a fault."""

EIGHT_ON_TWO_CORES = CpuModel(speed=1 / 4)
TWELVE_ON_TWO_CORES = CpuModel(speed=1 / 6)


@dataclass(frozen=True)
class Result:
    calm_after_s: float
    messages: int
    highest_rate: float
    failed: int
    untouched_failed: int
    slowdown: float
    links: int


async def clouds_of_two(seed: int) -> tuple[Lab, list[list[LabNode]], Monitor]:
    """Start four clouds of two nodes with a service each."""
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=EIGHT_ON_TWO_CORES))
    groups = await four_clouds(lab, 2)
    for node in flat(groups):
        await node.serve(worker(f"svc.{node.name}", node.site))
    return lab, groups, Monitor(lab)


async def heal(seed: int) -> Result:
    lab, groups, monitor = await clouds_of_two(seed)
    nodes = flat(groups)
    await lab.advance_time(12)
    others = flat(groups[1:])
    pairs = [(one, f"svc.{other.name}") for one in others for other in others if one.site != other.site]
    calls = Calls(lab, pairs, per_s=10)
    await lab.advance_time(5)
    lab.partition(groups[0], others)
    await lab.advance_time(8)
    usual_s = calls.quantile_s(0.5, lab.now - 3)
    lab.heal(groups[0], others)
    healed_at = lab.now
    # Longer than the time after which the nodes must be calm.
    await lab.advance_time(CALM_S + 2.0)
    await calls.stop()
    await monitor.stop()
    assert len(components(lab)) == 1
    result = Result(
        monitor.calm_after_s(healed_at),
        monitor.messages(healed_at),
        monitor.highest_rate(healed_at),
        len(calls.failed(healed_at + 2.0)),
        len(calls.unexplained()),
        calls.quantile_s(0.5, healed_at) / usual_s,
        sum(len(node.node.network.links()) for node in nodes),
    )
    await lab.close()
    return result


def test_network_is_calm_soon_after_a_heal() -> None:
    result = loop.run(heal(1))
    assert result.calm_after_s <= CALM_S, result
    # The routes to each of the eight origins may change, and are then advertised and acknowledged at each end of each link.
    assert result.messages <= 2 * 8 * result.links, result


def test_calls_of_other_clouds_do_not_notice_a_heal() -> None:
    result = loop.run(heal(2))
    assert result.untouched_failed == 0, result
    assert result.failed == 0, result
    assert result.slowdown <= 1.5, result


async def join_halves(seed: int) -> tuple[float, list[str]]:
    """Separate two halves of a network and join them.

    Returns the seconds after which all nodes are calm, and the links that are the last resort though they are up again.
    """
    lab, groups, monitor = await clouds_of_two(seed)
    nodes = flat(groups)
    await lab.advance_time(15)
    halves = flat(groups[:2]), flat(groups[2:])
    lab.partition(*halves)
    await lab.advance_time(10)
    assert len(components(lab)) == 2
    lab.heal(*halves)
    healed_at = lab.now
    await lab.advance_time(CALM_S)
    assert len(components(lab)) == 1
    damped = [
        f"{node.name} to {flap.peer:.8}" for node in nodes for flap in node.node.router.link_flaps() if flap.reuse_at
    ]
    # Until the last hold of a first loss would end.
    await lab.advance_time(15)
    await monitor.stop()
    await lab.close()
    return monitor.calm_after_s(healed_at), damped


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_halves_that_are_joined_are_calm_soon_and_use_all_links_at_once(seed: int) -> None:
    calm_after_s, damped = loop.run(join_halves(seed))
    assert damped == []
    assert calm_after_s <= CALM_S


async def start(seed: int) -> float:
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=TWELVE_ON_TWO_CORES))
    nodes = flat(await four_clouds(lab))
    monitor = Monitor(lab)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    await lab.advance_time(14)
    await monitor.stop()
    await lab.close()
    return monitor.calm_after_s(0.0)


def test_network_is_calm_soon_after_the_start_of_all_nodes() -> None:
    calm_after_s = loop.run(start(1))
    assert calm_after_s <= 10.0


async def recycle(seed: int) -> tuple[float, float, int]:
    """Return (messages per second of all other nodes, highest of one node, failed calls to other services)."""
    lab = Lab(seed, options=LabOptions(keep_log=False, cpu=EIGHT_ON_TWO_CORES))
    groups = await four_clouds(lab, 2)
    nodes = flat(groups)
    for node in nodes[2:]:
        await node.serve(worker(f"svc.{node.name}", node.site))
    home = nodes[0]
    instances = [await home.serve(worker(f"svc.recycled.{number // 2}", home.site)) for number in range(20)]
    await lab.advance_time(12)
    monitor = Monitor(lab)
    others = nodes[2:]
    calls = Calls(
        lab, [(one, f"svc.{other.name}") for one in others for other in others if one.site != other.site], per_s=10
    )
    began_at = lab.now
    for index, instance in enumerate(instances):
        await home.stop_service(instance)
        await lab.advance_time(0.25)
        instances[index] = await home.serve(worker(instance.name, home.site))
        await lab.advance_time(0.25)
    await calls.stop()
    await monitor.stop()
    first, last = monitor.readings[0], monitor.readings[-1]
    seconds = last.at - first.at
    rates = [(last.sent[node.name] - first.sent[node.name]) / seconds for node in others]
    result = sum(rates) / len(rates), max(rates), len(calls.failed(began_at))
    await lab.close()
    return result


def test_recycled_instances_cause_few_messages_of_other_nodes() -> None:
    mean, highest, failed = loop.run(recycle(1))
    assert failed == 0
    assert highest <= 5.0, f"{mean:.1f} messages per second and node, up to {highest:.1f}; calm is {CALM_PER_S}"
