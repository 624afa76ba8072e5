"""Calls to a service on two sites: their distribution follows a change of the load without swinging."""

from __future__ import annotations

import asyncio

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.traffic import ENDPOINT, Calls
from micro_core.rpc.service import Service

CAPACITY = 2
DURATION_S = 0.040
"""A site serves 50 calls per second."""
WINDOW_S = 3.0
SETTLED_S = 15.0


def limited(site: str) -> Service:
    service, semaphore = Service("svc.work"), asyncio.Semaphore(CAPACITY)

    async def do() -> str:
        async with semaphore:
            await asyncio.sleep(DURATION_S)
        return site

    service.endpoint(ENDPOINT, idempotent=True)(do)
    return service


async def shares(seed: int) -> tuple[list[float], int, int]:
    """Return (share of the near site in each window after the load has risen, failed calls, all calls)."""
    lab = Lab(seed, options=LabOptions(keep_log=False))
    near, far, *callers = await lab.mesh(4)
    for caller in callers:
        lab.links.set(caller.name, near.name, Conditions(delay_s=0.020))
        lab.links.set(caller.name, far.name, Conditions(delay_s=0.030))
    for node in (near, far):
        await node.serve(limited(node.site))
    await lab.converged()
    await lab.advance_time(10)
    calls = Calls(lab, [(caller, "svc.work") for caller in callers], per_s=75, timeout_s=2.0)
    began_at = lab.now
    await lab.advance_time(42)
    await calls.stop()
    found = []
    for index in range(int(42 / WINDOW_S)):
        since = began_at + index * WINDOW_S
        window = [one for one in calls.records if since <= one.began_at < since + WINDOW_S and not one.error]
        found.append(sum(one.answered_by == near.site for one in window) / max(1, len(window)))
    result = found, len(calls.failed()), len(calls.records)
    await lab.close()
    return result


def test_load_between_two_sites_settles() -> None:
    found, failed, count = loop.run(shares(1))
    shown = " ".join(f"{share:.2f}" for share in found)
    settled = found[int(SETTLED_S / WINDOW_S) :]
    mean = sum(settled) / len(settled)
    assert failed <= 0.01 * count, f"{failed} of {count} calls failed; {shown}"
    assert max(abs(share - mean) for share in settled) <= 0.2 * mean, shown
