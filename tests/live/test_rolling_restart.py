"""Services and nodes replaced one after the other while somebody calls: nobody may notice."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(180)

SERVICE = """
import asyncio
from micro_core import Service

service = Service("worker")

@service.endpoint("Do.Work")
async def work() -> str:
    await asyncio.sleep(0.02)
    return "done"

service.run()
"""

CALLER = """
import asyncio, signal
from micro_core import Client, MicroError

async def main() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    answered, failures = 0, []
    async with Client() as client:
        async def call() -> None:
            nonlocal answered
            while not done.is_set():
                try:
                    # Not idempotent: only what was certainly not begun may be made again.
                    await client.call("worker", "Do.Work", timeout_s=20.0)
                    answered += 1
                except MicroError as error:
                    failures.append(f"{type(error).__name__}: {error}")
        await client.call("worker", "Do.Work")
        print("ready", flush=True)
        await asyncio.gather(*(call() for _ in range(8)))
    print("answered", answered, "failures", failures, flush=True)

asyncio.run(main())
"""


def known_at(lab: Any, site: Any, count: int) -> bool:
    """Whether the site's node knows `count` next hops to the service: instances here, neighbours elsewhere."""
    found = lab.json(site, "network", "routes", "--service", "worker")["routes"]
    # Not the places where it is: two of them may be reached through one neighbour alone.
    return len({(route["gateway"], route["address"]) for route in found}) == count


def ended(caller: Any) -> None:
    caller.child.send_signal(signal.SIGTERM)
    caller.wait_for(lambda lines: lines[-1].startswith("answered"))
    words = caller.lines[-1].split(maxsplit=3)
    assert int(words[1]) > 50
    assert words[3] == "[]", caller.lines[-1]


def test_instances_are_replaced_without_a_call_lost(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    standing = lab.python("worker-0", eu, SERVICE)
    lab.until(lambda: known_at(lab, us, 1), "us knows the service")
    caller = lab.python("caller", us, CALLER, MICRO_PROXY="go.micro.network")
    for number in (1, 2):
        successor = lab.python(f"worker-{number}", eu, SERVICE)
        lab.until(lambda: known_at(lab, eu, 2), "eu knows the successor")
        assert standing.stop() == 0
        standing = successor
    ended(caller)


def test_nodes_are_replaced_without_a_call_lost(lab: Any) -> None:
    first = lab.site("eu")
    second = lab.site("eu", node="eu-2", joins=[first])
    us = lab.site("us", joins=[first, second])
    nodes = {site.config: lab.node(site) for site in (first, second)}
    lab.node(us)
    lab.python("worker", first, SERVICE)
    lab.until(lambda: known_at(lab, us, 2), "us knows a way through both nodes")
    caller = lab.python("caller", us, CALLER, MICRO_PROXY="go.micro.network")
    for site in (first, second):
        assert nodes[site.config].stop() == 0
        nodes[site.config] = lab.node(site)
        lab.until(lambda: known_at(lab, us, 2), "us knows both ways again")
    ended(caller)
