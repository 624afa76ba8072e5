"""Calls with metadata are spread over the instances of a service like calls without."""

from __future__ import annotations

from collections import Counter

from micro_core import Service
from micro_core.lab.net import Lab

NAME = "go.micro.srv.worker"


def worker(name: str) -> Service:
    service = Service(NAME)

    @service.endpoint("Work.Do")
    async def do() -> str:
        return name

    return service


async def test_metadata_that_restricts_no_routes_does_not_change_the_choice(micro_net: Lab) -> None:
    node = await micro_net.add("a")
    for name in ("one", "two", "three"):
        await node.serve(worker(name))
    await micro_net.converged()
    count = Counter([await node.call(NAME, "Work.Do", metadata={"trace-id": str(n)}) for n in range(120)])
    assert min(count["one"], count["two"], count["three"]) >= 20


async def test_restricted_calls_are_spread_over_the_permitted_instances(micro_net: Lab) -> None:
    near = await micro_net.add("near")
    far = await micro_net.add("far", links=[near])
    await near.serve(worker("near"))
    for name in ("one", "two"):
        await far.serve(worker(name))
    await micro_net.converged()
    count = Counter([await far.call(NAME, "Work.Do", metadata={"micro-site": "far"}) for _ in range(100)])
    assert min(count["one"], count["two"]) >= 20
    assert count["near"] == 0
