"""Explanations, flaps, events and past tables, asked of nodes as `micro network` asks them."""

from __future__ import annotations

from typing import Any

import pytest

from micro_core import Service
from micro_core.contract.errors import NotFound
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions

NODE = "go.micro.network"
GREETER = "go.micro.srv.greeter"


async def ways(node: LabNode, service: str = GREETER) -> list[dict[str, Any]]:
    answer = await node.call(NODE, "Network.Explain", {"service": service})
    return list(answer["ways"])


async def test_the_cost_of_a_way_adds_up_term_by_term(micro_net: Lab) -> None:
    a, _, c = await micro_net.line(3)
    await a.serve(Service(GREETER))
    await micro_net.pass_time(30)
    (way,) = await ways(c)
    assert way["standing"] == "best"
    assert way["total_us"] == way["announced_us"] + way["link_us"]
    assert way["link_terms"]["rtt_us"] == pytest.approx(10_000, rel=0.1)
    assert way["path"] == ["a", "b"]
    assert (way["router_name"], way["gateway_name"]) == ("a", "b")


async def test_of_several_sites_the_nearest_is_best_and_the_others_say_why_not(micro_net: Lab) -> None:
    middle, near, far, twin = await micro_net.star(4)
    micro_net.wires.set(middle.name, far.name, Conditions(delay_s=0.050))
    for node in (near, far, twin):
        await node.serve(Service(GREETER))
    await micro_net.pass_time(30)
    found = {way["router_name"]: way for way in await ways(middle)}
    assert {found[near.name]["standing"], found[twin.name]["standing"]} == {"best", "shares"}
    assert found[far.name]["standing"] == "spare"
    assert "worse than the best" in found[far.name]["why"]
    await middle.serve(Service(GREETER))
    await micro_net.pass_time(1)
    first, *others = await ways(middle)
    assert (first["standing"], first["gateway"]) == ("best", "")
    assert {way["why"] for way in others} == {"this site has an instance of its own"}


async def test_a_way_that_might_lead_back_is_shown_as_infeasible(micro_net: Lab) -> None:
    a, b, c = await micro_net.ring(3)
    await a.serve(Service(GREETER))
    await micro_net.pass_time(30)
    standings = {way["gateway_name"]: way for way in await ways(c)}
    assert standings["a"]["standing"] == "best"
    assert standings["b"]["standing"] == "infeasible"
    assert "might lead back here" in standings["b"]["why"]
    assert b.routes(GREETER)


async def flap(net: Lab, node: LabNode, times: int, period_s: float) -> None:
    for number in range(times):
        service = await node.serve(Service(GREETER), instance_id=f"flapping-{number}")
        await net.pass_time(period_s / 2)
        await node.stop_service(service)
        await net.pass_time(period_s / 2)


async def test_a_flapping_service_is_held_back_shown_and_let_out(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await flap(micro_net, a, 8, 4.0)
    await a.serve(Service(GREETER))
    await micro_net.pass_time(2)
    assert b.routes(GREETER) == []
    (shown,) = (await a.call(NODE, "Network.Flaps", {}))["flaps"]
    assert shown["is_held"]
    assert shown["losses"] == 8
    assert 0 < shown["release_in_s"] <= 120
    assert len(shown["curve"]) == 13
    assert shown["curve"][6] == pytest.approx(shown["penalty"] / 2, abs=1), "a minute on, half of it"
    seen = await b.call(NODE, "Network.Flaps", {})
    assert seen["flaps"] == []
    assert [(one["router_name"], one["service"]) for one in seen["elsewhere"]] == [(a.name, GREETER)]
    assert seen["origins"][0]["router_name"] == a.name
    held = [way for way in await ways(a) if way["standing"] == "held"]
    assert "neighbours hear of it in" in held[0]["why"]
    assert await a.call(NODE, "Network.Release", {"service": GREETER}) == {"released": GREETER}
    await micro_net.pass_time(1)
    assert b.routes(GREETER)
    with pytest.raises(NotFound, match="is not held back here"):
        await a.call(NODE, "Network.Release", {"service": GREETER})


async def test_what_is_held_is_let_out_by_itself_with_its_latest_state(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await flap(micro_net, a, 8, 4.0)
    await a.serve(Service(GREETER, version="9"))
    await micro_net.pass_time(121)
    (route,) = b.routes(GREETER)
    assert route.version == "9"


async def test_events_can_be_followed_by_number(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await micro_net.converged()
    before = (await b.call(NODE, "Network.Events", {"limit": 1}))["events"][-1]["number"]
    service = await a.serve(Service(GREETER))
    await micro_net.pass_time(1)
    await a.stop_service(service)
    await micro_net.pass_time(1)
    events = (await b.call(NODE, "Network.Events", {"after": before}))["events"]
    kinds = [(event["kind"], event["service"]) for event in events if event["service"] == GREETER]
    assert kinds == [("created", GREETER), ("deleted", GREETER)]


async def test_the_table_of_a_past_moment_and_what_has_changed_since(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    service = await a.serve(Service(GREETER))
    await micro_net.pass_time(60)
    await a.stop_service(service)
    await a.serve(Service("go.micro.srv.other"))
    await micro_net.pass_time(10)
    past = await b.call(NODE, "Network.Past", {"ago_s": 20.0})
    assert GREETER in {route["service"] for route in past["routes"]}
    assert [route["service"] for route in past["gone"]] == [GREETER]
    assert [route["service"] for route in past["come"]] == ["go.micro.srv.other"]
    b.node.router.journal.reaches_back_to = b.clock.wall() - 5.0
    with pytest.raises(NotFound, match="reaches back 5 s"):
        await b.call(NODE, "Network.Past", {"ago_s": 20.0})
