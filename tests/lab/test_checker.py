"""The checks of the lab: they find what is wrong, and a second look costs only what has changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from micro_core.contract.errors import BadRequest
from micro_core.lab import loop
from micro_core.lab.faults import FaultLog, path_between
from micro_core.lab.invariants import Checker, differences, violations
from micro_core.lab.lab_node import SiteBroker
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions
from micro_core.lab.table_view import view_of
from micro_core.lab.topologies import SitePlan, add_sites
from micro_core.lab.traffic import ENDPOINT, Calls, Messages, worker
from micro_core.rpc.service import Service


async def test_incremental_checker_finds_the_same_as_a_new_one(micro_net: Lab) -> None:
    nodes = await micro_net.random_graph(6)
    for _ in range(40):
        node = nodes[micro_net.random.randrange(0, len(nodes))]
        if not node.is_alive:
            await node.start()
        elif micro_net.random.random() < 0.2:
            await node.kill()
        else:
            await node.serve(worker(f"svc.{micro_net.random.randrange(0, 3)}", node.site))
        await micro_net.advance_time(micro_net.random.choice([0.0, 0.02, 0.5, 4.0]))
        assert micro_net.checker.differences() == differences(micro_net)
        assert micro_net.checker.violations() == violations(micro_net) == []


async def test_tables_that_did_not_change_are_not_read_again(micro_net: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = await micro_net.line(4)
    await micro_net.converged()
    read: list[str] = []

    def counted(node):  # type: ignore[no-untyped-def]
        read.append(node.name)
        return view_of(node)

    monkeypatch.setattr("micro_core.lab.invariants.view_of", counted)
    micro_net.checker.violations()
    assert read == []
    await nodes[0].serve(worker("svc.one", "a"))
    # Its own router knows the service, and no other one yet.
    await micro_net.advance_time(0.001)
    micro_net.checker.violations()
    assert read == ["a"]
    await micro_net.converged()
    assert set(read) == {"a", "b", "c", "d"}


async def test_loop_of_next_hops_is_found_and_forgotten(micro_net: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = await micro_net.line(3)
    await c.serve(worker("svc.c", "c"))
    await micro_net.converged()
    checker = Checker(micro_net)
    assert checker.violations() == []

    def looping(node):  # type: ignore[no-untyped-def]
        view = view_of(node)
        if node is not b:
            return view
        hops = {origin: frozenset({a.id}) for origin in view.next_hops if origin != a.id}
        return replace(view, next_hops={**view.next_hops, **hops})

    with monkeypatch.context() as patch:
        patch.setattr("micro_core.lab.invariants.view_of", looping)
        b.table_version += 1
        found = checker.violations()
    assert found in (["loop of routes to c: a > b > a"], ["loop of routes to c: b > a > b"])
    b.table_version += 1
    assert checker.violations() == []


async def test_services_belong_to_the_site_of_several_nodes(micro_net: Lab) -> None:
    (group, _other) = await add_sites(micro_net, [SitePlan(name="x", nodes=2), SitePlan(name="y", nodes=1)])
    await group[0].serve(worker("svc.x", "x"))
    await micro_net.converged(60.0)
    await group[0].kill(with_services=False)
    await micro_net.converged(120.0)
    assert await _other[0].call("svc.x", "Work.Do") == "x"


def test_fault_log_knows_what_was_faulty_and_when() -> None:
    now = 0.0
    log = FaultLog(lambda: now)
    now = 10.0
    log.begin("cut", path_between("b", "a"))
    log.begin("cut", ("a", "b"))
    now = 20.0
    log.end("cut", ("a", "b"))
    log.end("cut", ("a", "c"))
    assert len(log.faults) == 1
    path = [("a", "b")]
    assert not log.touch(path, 0.0, 9.9, 4.0)
    assert log.touch(path, 9.0, 10.0, 4.0)
    assert log.touch(path, 24.0, 25.0, 4.0)
    assert not log.touch(path, 24.1, 25.0, 4.0)
    assert not log.touch(["a", ("b", "c")], 9.0, 25.0, 4.0)
    log.at_once("sleep", "a", lasts_s=5.0)
    assert log.touch(["a"], 29.0, 30.0, 4.0)
    assert log.last_change_at == 25.0
    assert log.has_changed(19.0, 21.0)
    assert not log.has_changed(10.5, 19.5)


async def test_failed_call_is_explained_only_by_a_fault_on_its_route(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    broken = Service("svc.a")

    async def do() -> str:
        raise BadRequest("broken")

    broken.endpoint(ENDPOINT)(do)
    await a.serve(broken)
    await c.serve(worker("svc.c", "c"))
    await micro_net.converged()
    calls = Calls(micro_net, [(b, "svc.a"), (b, "svc.c")], per_s=10, retries=0)
    await micro_net.advance_time(2)
    micro_net.partition(b, c)
    await micro_net.advance_time(10)
    await calls.stop()
    assert {one.service for one in calls.failed()} == {"svc.a", "svc.c"}
    assert {one.service for one in calls.failed() if one.is_touched} == {"svc.c"}
    assert {one.service for one in calls.unexplained()} == {"svc.a"}
    assert len(calls.unexplained()) == sum(one.service == "svc.a" for one in calls.records)


async def test_messages_count_what_each_subscriber_and_group_received(micro_net: Lab) -> None:
    (group,) = await add_sites(micro_net, [SitePlan(name="x", nodes=2, broker=SiteBroker.SHARED)])
    messages = Messages(micro_net, "orders")
    await messages.subscribe(group[0])
    for node in group:
        await messages.subscribe(node, queue="workers")
    await micro_net.advance_time(2)
    messages.publish_from([group[0]], per_s=10)
    await micro_net.advance_time(2)
    await messages.stop()
    await micro_net.advance_time(1)
    assert messages.count() == 2 * len(messages.records)
    assert (messages.doubled(), messages.lost()) == ([], [])
    record = next(iter(messages.records.values()))
    name = next(iter(record.received))
    record.received[name].append(micro_net.now)
    assert len(messages.doubled()) == 1
    record.received.clear()
    assert len(messages.lost()) == 2
    assert len(messages.unexplained()) == 2
    assert messages.longest_loss_s() > 0.05


async def test_processes_wait_while_they_are_busy_or_stopped(micro_net: Lab) -> None:
    micro_net.links.default_conditions = Conditions(delay_s=0.01)
    a, b = await micro_net.line(2)
    await a.serve(worker("svc.a", "a"))
    await micro_net.converged()
    a.sleep(1.5)
    began_at = micro_net.now
    assert await b.call("svc.a", "Work.Do", timeout_s=5.0) == "a"
    assert micro_net.now - began_at == pytest.approx(1.52, abs=0.05)


def test_exception_in_a_timer_of_a_node_is_a_violation(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        lab = Lab(7)
        (node,) = await lab.line(1)
        lab.check()
        lab.check_callbacks()
        asyncio.get_running_loop().call_later(1.0, dict[str, str]().__getitem__, node.id)
        await lab.advance_time(2.0)
        for check in (lab.check, lab.check_callbacks):
            with pytest.raises(AssertionError, match=r"seed 7\):\n.*Exception in callback.* at 1.000 s: KeyError"):
                check()
        await lab.close()

    loop.run(run())
    assert "Exception in callback" in caplog.text
