"""A peer that answers late for a moment is not unreachable: nothing is lost, and the network stays calm."""

from __future__ import annotations

import pytest

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.process import CpuModel
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.traffic import Calls, worker

PAUSES = 20


async def pauses(pause_s: float) -> tuple[int, int, int, int]:
    """Stop a node again and again, with a longer way around it. Returns suspicions, failed calls, lost links and requests."""
    lab = Lab(1, options=LabOptions(keep_log=False, cpu=CpuModel()))
    nodes = near, far, other = await lab.mesh(3)
    lab.links.set(near.name, far.name, Conditions(delay_s=0.020))
    lab.links.set(near.name, other.name, Conditions(delay_s=0.040))
    lab.links.set(far.name, other.name, Conditions(delay_s=0.030))
    for node in nodes:
        await node.serve(worker(f"svc.{node.name}", node.site))
    await lab.advance_time(20)
    before = sum(node.counted("routing_seqno_requests") for node in nodes)
    calls = Calls(lab, [(near, f"svc.{far.name}"), (other, f"svc.{far.name}")], per_s=40)
    for _ in range(PAUSES):
        far.sleep(pause_s)
        await lab.advance_time(1.5)
    await calls.stop()
    await lab.advance_time(3)
    assert not any(link.is_suspect for node in nodes for link in node.node.tunnel.links())
    suspicions = sum(node.counted("tunnel_links_suspect") for node in (near, other))
    lost = sum(node.counted("tunnel_links_dead") for node in nodes)
    requests = sum(node.counted("routing_seqno_requests") for node in nodes) - before
    result = suspicions, len(calls.failed()), lost, requests
    await lab.close()
    return result


@pytest.mark.parametrize("pause_s", [0.1, 0.2])
def test_peer_that_answers_within_300_ms_is_not_suspect(pause_s: float) -> None:
    assert loop.run(pauses(pause_s)) == (0, 0, 0, 0)


def test_peer_that_is_late_is_suspect_for_a_moment_and_fails_no_calls() -> None:
    suspicions, failed, lost, requests = loop.run(pauses(0.8))
    assert suspicions >= PAUSES, "both neighbours notice each pause"
    assert (failed, lost) == (0, 0)
    # Every neighbour asks for the way over the other one, at most every two seconds, and forwards such a request.
    assert requests <= 2 * PAUSES
