"""Instances and nodes are replaced one after the other while clients call without a pause; no call may fail."""

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
    # Long enough for calls to be in progress whenever a process stops.
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
                    # The endpoint is not idempotent, so a call is retried only if no handler was started.
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


def has_next_hops(lab: Any, site: Any, count: int) -> bool:
    """Return whether the node has `count` next hops to the service: local instances or neighbours.

    Routes are not counted, since several may lead through one neighbour.
    """
    found = lab.json(site, "network", "routes", "--service", "worker")["routes"]
    return len({(route["gateway"], route["address"]) for route in found}) == count


def check_calls(caller: Any) -> None:
    """Stop the calling process and check that no call has failed."""
    caller.child.send_signal(signal.SIGTERM)
    caller.wait_for(lambda lines: lines[-1].startswith("answered"))
    _, answered, _, failures = caller.lines[-1].split(maxsplit=3)
    assert int(answered) > 50
    assert failures == "[]"


def test_instances_are_replaced_without_a_failed_call(lab: Any) -> None:
    eu = lab.site("eu")
    us = lab.site("us", joins=[eu])
    lab.node(eu)
    lab.node(us)
    instance = lab.python("worker-0", eu, SERVICE)
    lab.until(lambda: has_next_hops(lab, us, 1), "us has a route to the service")
    caller = lab.python("caller", us, CALLER, MICRO_PROXY="go.micro.network")
    for number in (1, 2):
        successor = lab.python(f"worker-{number}", eu, SERVICE)
        lab.until(lambda: has_next_hops(lab, eu, 2), "eu has a route to the successor")
        assert instance.stop() == 0
        instance = successor
    check_calls(caller)


def test_nodes_are_replaced_without_a_failed_call(lab: Any) -> None:
    first = lab.site("eu")
    second = lab.site("eu", node="eu-2", joins=[first])
    us = lab.site("us", joins=[first, second])
    nodes = {site.config: lab.node(site) for site in (first, second)}
    lab.node(us)
    lab.python("worker", first, SERVICE)
    lab.until(lambda: has_next_hops(lab, us, 2), "us has routes through both nodes")
    caller = lab.python("caller", us, CALLER, MICRO_PROXY="go.micro.network")
    for site in (first, second):
        assert nodes[site.config].stop() == 0
        nodes[site.config] = lab.node(site)
        lab.until(lambda: has_next_hops(lab, us, 2), "us has routes through both nodes again")
    check_calls(caller)
