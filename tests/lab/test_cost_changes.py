"""Changes of the delay of a path: no call fails, and calls leave a path that has become slow."""

from __future__ import annotations

import itertools

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.traffic import Calls, worker

JUMP_S = 5.0
"""Time within which calls leave a path that has become much slower than another one."""


async def failures_while_costs_rise(seed: int) -> tuple[int, int]:
    lab = Lab(seed, options=LabOptions(keep_log=False))
    nodes = await lab.line(3)
    for one, other in itertools.pairwise(nodes):
        lab.links.set(one.name, other.name, Conditions(delay_s=0.0025))
    await nodes[0].serve(worker("svc.far", "a"))
    await lab.converged()
    calls = Calls(lab, [(nodes[2], "svc.far")], per_s=50)
    for delay_s in (0.010, 0.040, 0.075):
        await lab.advance_time(5)
        lab.change_path(nodes[0], nodes[1], Conditions(delay_s=delay_s))
    await lab.advance_time(8)
    await calls.stop()
    result = len(calls.unexplained()), len(calls.records)
    await lab.close()
    return result


def test_rising_cost_of_the_only_path_loses_no_route() -> None:
    failed, count = loop.run(failures_while_costs_rise(1))
    assert failed == 0, f"{failed} of {count} calls failed"


async def failures_on_a_new_slow_link() -> tuple[int, int]:
    lab = Lab(1, options=LabOptions(keep_log=False), conditions=Conditions(delay_s=0.075))
    nodes = await lab.line(4)
    await nodes[0].serve(worker("svc.far", "a"))
    while not nodes[3].routes("svc.far"):
        await lab.advance_time(0.05)
    calls = Calls(lab, [(nodes[3], "svc.far")], per_s=20)
    await lab.advance_time(15)
    await calls.stop()
    result = len(calls.unexplained()), len(calls.records)
    await lab.close()
    return result


def test_first_measurement_of_a_new_link_loses_no_route() -> None:
    failed, count = loop.run(failures_on_a_new_slow_link())
    assert failed == 0, f"{failed} of {count} calls failed"


async def seconds_on_a_slow_path(after: float) -> float:
    lab = Lab(1, options=LabOptions(keep_log=False))
    a, b, _c = await lab.mesh(3)
    lab.links.set("a", "b", Conditions(delay_s=0.020))
    lab.links.set("a", "c", Conditions(delay_s=0.035))
    lab.links.set("b", "c", Conditions(delay_s=0.035))
    await b.serve(worker("svc.b", "b"))
    await lab.converged()
    calls = Calls(lab, [(a, "svc.b")], per_s=10)
    await lab.advance_time(20)
    lab.change_path(a, b, Conditions(delay_s=after))
    jumped_at = lab.now
    await lab.advance_time(12)
    await calls.stop()
    assert not calls.failed()
    slow = [one.began_at for one in calls.records if one.began_at > jumped_at and one.seconds > 0.2]
    await lab.close()
    return max(slow, default=jumped_at) - jumped_at


def test_path_that_becomes_ten_times_slower_is_left_for_a_faster_one() -> None:
    seconds = loop.run(seconds_on_a_slow_path(0.2))
    assert seconds <= JUMP_S, f"calls used the slow path for {seconds:.1f} s"
