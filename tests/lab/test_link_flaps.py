"""A link that breaks and returns again and again carries few calls, since other paths are available."""

from __future__ import annotations

import pytest

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.traffic import Calls, worker

FLAPS_S = 66.0


async def failures(period_s: float) -> tuple[int, int]:
    """Cut the link between two of four nodes for `period_s`, repair it for `period_s`, and so on."""
    lab = Lab(1, options=LabOptions(keep_log=False), conditions=Conditions(delay_s=0.010))
    nodes = await lab.mesh(4)
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    await lab.converged()
    pairs = [(one, f"svc.{other.name}") for one in nodes for other in nodes if one is not other]
    await lab.advance_time(10)
    calls = Calls(lab, pairs, per_s=12)
    began_at = lab.now
    await lab.flap(nodes[0], nodes[1], period_s, times=int(FLAPS_S / (2 * period_s)))
    await calls.stop()
    result = len(calls.failed(began_at)), calls.count(began_at)
    await lab.close()
    return result


@pytest.mark.parametrize("period_s", [3.0, 5.0, 11.0])
def test_flapping_link_fails_few_calls(period_s: float) -> None:
    failed, count = loop.run(failures(period_s))
    assert failed <= 0.01 * count, f"{failed} of {count} calls failed"
