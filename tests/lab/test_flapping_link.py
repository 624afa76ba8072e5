"""Links that flap: calls that could go another way hardly notice, whatever the period and the kind of fault."""

from __future__ import annotations

import asyncio

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions

NAME = "go.micro.srv.greeter"
PER_S = 20.0
HANDLER_S = 0.010
SUSPECT_S = 0.4
"""Seconds after which a link is suspect whose data is not acknowledged."""
REQUEST_S = 0.3
"""Seconds until the answer to a seqno request makes an infeasible route usable."""


def greeter() -> Service:
    service = Service(NAME)

    @service.endpoint("Say.Hello")
    async def hello() -> str:
        await asyncio.sleep(HANDLER_S)
        return "hello"

    return service


class Caller:
    """Calls at a fixed rate from one node and records the calls that failed."""

    def __init__(self, net: Lab, node: LabNode) -> None:
        self.net, self.node = net, node
        self.calls = 0
        self.failures: list[tuple[float, str]] = []
        self.longest_s = 0.0
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds * PER_S)):
            await self.net.advance_time(1 / PER_S)
            task = asyncio.get_running_loop().create_task(self._call())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if self._running:
            await asyncio.wait(self._running)

    async def _call(self) -> None:
        self.calls += 1
        began_at = self.net.now
        try:
            await self.node.call(NAME, "Say.Hello", timeout_s=5.0)
        except MicroError as error:
            self.failures.append((round(began_at, 2), f"{type(error).__name__}: {error.detail}"))
        self.longest_s = max(self.longest_s, self.net.now - began_at)


async def triangle(net: Lab, *, to_other_s: float, onward_s: float) -> tuple[LabNode, LabNode]:
    """Create `near` and `far` (where the service runs), 20 ms apart, and a longer way over a third node. Return these two.

    `to_other_s` is the delay from `near` to the third node, `onward_s` that from there to `far`. If it is below 20 ms, the
    longer way is usable at once. Otherwise, its route is infeasible while the direct one is used.
    """
    near, far, other = await net.mesh(3)
    net.links.set(near.name, far.name, Conditions(delay_s=0.020))
    net.links.set(near.name, other.name, Conditions(delay_s=to_other_s))
    net.links.set(far.name, other.name, Conditions(delay_s=onward_s))
    await far.serve(greeter())
    await net.advance_time(20)
    return near, far


async def flap(net: Lab, one: LabNode, other: LabNode, period_s: float, seconds: float, *, silent_s: float) -> None:
    """Break the link every `period_s`: with a reset at both ends, or silently for `silent_s`."""
    until = net.now + seconds
    while net.now < until:
        if silent_s:
            net.partition(one, other)
            await net.advance_time(silent_s)
            net.heal(one, other)
        else:
            net.reset(one, other)
        await net.advance_time(period_s - silent_s)


async def damped_peers(node: LabNode) -> set[str]:
    """Return the names of the peers whose links are damped, as `micro network connections` shows them."""
    found = (await node.call("go.micro.network", "Network.Connections", {}))["connections"]
    assert all((one["reuse_in_s"] is not None) is one["is_damped"] for one in found)
    return {one["name"] for one in found if one["is_damped"]}


@pytest.mark.parametrize(
    ("period_s", "silent_s"),
    [(3.0, 0.0), (5.0, 0.0), (11.0, 0.0), (3.0, 1.0), (5.0, 2.0), (11.0, 2.0), (5.0, 3.5), (11.0, 3.5)],
)
async def test_flapping_link_costs_at_most_one_call_in_a_hundred(
    micro_net: Lab, period_s: float, silent_s: float
) -> None:
    near, far = await triangle(micro_net, to_other_s=0.020, onward_s=0.010)
    caller = Caller(micro_net, near)
    flapping = asyncio.get_running_loop().create_task(flap(micro_net, near, far, period_s, 60, silent_s=silent_s))
    await caller.run(60)
    await flapping
    permitted = 0.01 * caller.calls
    if silent_s > 3.0:
        # The link is lost with the calls of the time until it is suspect. Then it is damped.
        permitted = (SUSPECT_S + 0.1) * PER_S
    assert len(caller.failures) <= permitted, caller.failures
    # The link is dialled again within this time.
    await micro_net.advance_time(6)
    # After a silence of 2 s, that depends on when the link became suspect.
    if silent_s != 2.0:
        assert await damped_peers(near) == ({far.name} if not silent_s or silent_s > 3.0 else set())
    await micro_net.advance_time(130)
    assert await damped_peers(near) == set()
    before = near.counted("proxy_calls_rerouted")
    await caller.run(5)
    assert near.counted("proxy_calls_rerouted") == before
    micro_net.check()


@pytest.mark.parametrize(("period_s", "silent_s"), [(6.0, 3.0), (10.0, 5.0), (6.0, 2.0)])
async def test_calls_take_a_longer_way_while_the_short_one_does_not_answer(
    micro_net: Lab, period_s: float, silent_s: float
) -> None:
    near, far = await triangle(micro_net, to_other_s=0.040, onward_s=0.030)
    caller = Caller(micro_net, near)
    flapping = asyncio.get_running_loop().create_task(flap(micro_net, near, far, period_s, 60, silent_s=silent_s))
    await caller.run(60)
    await flapping
    # A cut of less than 3 s only delays calls. A longer one fails those of the time until the longer way is used; then
    # the link is damped.
    permitted = (SUSPECT_S + REQUEST_S) * PER_S if silent_s >= 3.0 else 0
    assert len(caller.failures) <= permitted, caller.failures
    assert near.counted("routing_seqno_requests") > 0
    micro_net.check()
