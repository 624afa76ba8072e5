"""A node whose process is stopped for eight seconds and continued (SIGSTOP, SIGCONT), as when a laptop sleeps."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Lab, Process

SERVICE = """
from micro_core import Service

service = Service("go.micro.srv.greeter")


@service.endpoint("Say.Hello")
async def hello(request: dict) -> dict:
    return {"msg": "Hello " + request["name"]}


service.run()
"""

CALLER = """
import asyncio
import time

from micro_core import Client, MicroError


async def call(client: Client) -> None:
    try:
        await client.call("go.micro.srv.greeter", "Say.Hello", {"name": "John"}, timeout_s=2.0)
        print("ok", time.monotonic(), flush=True)
    except MicroError as error:
        print("failed", time.monotonic(), type(error).__name__, error, flush=True)


async def main() -> None:
    calls = set()
    async with Client(proxy="go.micro.network") as client:
        print("ready", flush=True)
        while True:
            task = asyncio.create_task(call(client))
            calls.add(task)
            task.add_done_callback(calls.discard)
            await asyncio.sleep(0.1)


asyncio.run(main())
"""

STOPPED_S = 8.0


def times(process: Process, outcome: str) -> list[float]:
    return [float(line.split()[1]) for line in [*process.lines] if line.startswith(f"{outcome} ")]


@pytest.mark.timeout(240)
def test_node_that_was_stopped_joins_again_before_it_forwards_calls(lab: Lab) -> None:
    eu = lab.site("eu")
    # On one machine, all paths are equally short. Calls from here to `eu` must not lead through the node that is stopped.
    us = lab.site("us", joins=[eu], extra='policies = ["site=asia: cost=1000000"]')
    sleepy = lab.site("asia", joins=[eu, us])
    lab.node(eu)
    lab.python("greeter", eu, SERVICE)
    lab.node(us)
    node = lab.node(sleepy)
    caller = lab.python("caller", us, CALLER)
    sleepy_caller = lab.python("sleepy-caller", sleepy, CALLER)
    lab.until(lambda: min(len(times(caller, "ok")), len(times(sleepy_caller, "ok"))) > 20, "calls are answered")
    before = lab.json(sleepy, "network", "status")["counters"]
    assert "tunnel_suspensions" not in before
    settled_at = time.monotonic()

    node.child.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    continued_at = time.monotonic()
    node.child.send_signal(signal.SIGCONT)

    lab.until(lambda: any(at > continued_at + 4.0 for at in times(sleepy_caller, "ok")), "calls are answered again")
    assert any("process was suspended" in line for line in node.lines)
    counters = lab.json(sleepy, "network", "status")["counters"]
    assert counters["tunnel_suspensions"] == 1
    failed = [line for line in caller.lines if line.startswith("failed") and float(line.split()[1]) > settled_at]
    assert failed == [], f"calls that no fault touches never fail; continued at {continued_at}"
    late = [line for line in sleepy_caller.lines if line.startswith("failed") and float(line.split()[1]) > continued_at]
    assert [line for line in late if float(line.split()[1]) > continued_at + 2.0] == []
    # Calls that waited in the sockets of the stopped node, and those of the moment in which it joins. Sending such a call again
    # is safe, unless its deadline had passed.
    assert {line.split()[2] for line in late} <= {"RouteNotFound", "Unreachable", "DeadlineExceeded"}
    assert len(late) <= 40
