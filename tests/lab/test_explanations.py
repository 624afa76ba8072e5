"""Explanations, flaps, events and past tables, queried from nodes as `micro network` does."""

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


async def candidates(node: LabNode, service: str = GREETER) -> list[dict[str, Any]]:
    answer = await node.call(NODE, "Network.Explain", {"service": service})
    return list(answer["candidates"])


async def test_cost_of_a_route_is_the_sum_of_its_terms(micro_net: Lab) -> None:
    a, _, c = await micro_net.line(3)
    await a.serve(Service(GREETER))
    await micro_net.advance_time(30)
    (candidate,) = await candidates(c)
    assert candidate["status"] == "best"
    assert candidate["total_us"] == candidate["announced_us"] + candidate["link_us"]
    assert candidate["link_terms"]["rtt_us"] == pytest.approx(10_000, rel=0.1)
    assert candidate["path"] == ["a", "b"]
    assert (candidate["router_name"], candidate["gateway_name"]) == ("a", "b")


async def test_nearest_site_is_best_and_others_have_a_reason(micro_net: Lab) -> None:
    middle, near, far, twin = await micro_net.star(4)
    micro_net.links.set(middle.name, far.name, Conditions(delay_s=0.050))
    for node in (near, far, twin):
        await node.serve(Service(GREETER))
    await micro_net.advance_time(30)
    found = {one["router_name"]: one for one in await candidates(middle)}
    assert {found[near.name]["status"], found[twin.name]["status"]} == {"best", "shares"}
    assert found[far.name]["status"] == "spare"
    assert "worse than the best" in found[far.name]["why"]
    await middle.serve(Service(GREETER))
    await micro_net.advance_time(1)
    first, *others = await candidates(middle)
    assert (first["status"], first["gateway"]) == ("best", "")
    assert {one["why"] for one in others} == {"this site has an instance of its own"}


async def test_route_that_may_be_a_loop_is_infeasible(micro_net: Lab) -> None:
    a, b, c = await micro_net.ring(3)
    await a.serve(Service(GREETER))
    await micro_net.advance_time(30)
    by_gateway = {one["gateway_name"]: one for one in await candidates(c)}
    assert by_gateway["a"]["status"] == "best"
    assert by_gateway["b"]["status"] == "infeasible"
    assert "possible loop" in by_gateway["b"]["why"]
    assert b.routes(GREETER)


async def flap(net: Lab, node: LabNode, times: int, period_s: float) -> None:
    for number in range(times):
        service = await node.serve(Service(GREETER), instance_id=f"flapping-{number}")
        await net.advance_time(period_s / 2)
        await node.stop_service(service)
        await net.advance_time(period_s / 2)


async def test_flapping_service_is_suppressed_shown_and_released(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await flap(micro_net, a, 8, 4.0)
    await a.serve(Service(GREETER))
    await micro_net.advance_time(2)
    assert b.routes(GREETER) == []
    (flap_view,) = (await a.call(NODE, "Network.Flaps", {}))["flaps"]
    assert flap_view["is_suppressed"]
    assert flap_view["losses"] == 8
    assert 0 < flap_view["reuse_in_s"] <= 120
    assert len(flap_view["curve"]) == 13
    assert flap_view["curve"][6] == pytest.approx(flap_view["penalty"] / 2, abs=1), (
        "the penalty is halved after a minute"
    )
    elsewhere = await b.call(NODE, "Network.Flaps", {})
    assert elsewhere["flaps"] == []
    assert [(one["router_name"], one["service"]) for one in elsewhere["elsewhere"]] == [(a.name, GREETER)]
    assert elsewhere["origins"][0]["router_name"] == a.name
    suppressed = [one for one in await candidates(a) if one["status"] == "suppressed"]
    assert "advertised to neighbours again in" in suppressed[0]["why"]
    assert await a.call(NODE, "Network.Release", {"service": GREETER}) == {"released": GREETER}
    await micro_net.advance_time(1)
    assert b.routes(GREETER)
    with pytest.raises(NotFound, match="is not suppressed by this node"):
        await a.call(NODE, "Network.Release", {"service": GREETER})


async def test_suppressed_service_is_reused_with_its_latest_state(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await flap(micro_net, a, 8, 4.0)
    await a.serve(Service(GREETER, version="9"))
    await micro_net.advance_time(121)
    (route,) = b.routes(GREETER)
    assert route.version == "9"


async def test_events_after_a_number_are_returned(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await micro_net.converged()
    before = (await b.call(NODE, "Network.Events", {"limit": 1}))["events"][-1]["number"]
    service = await a.serve(Service(GREETER))
    await micro_net.advance_time(1)
    await a.stop_service(service)
    await micro_net.advance_time(1)
    events = (await b.call(NODE, "Network.Events", {"after": before}))["events"]
    kinds = [(event["kind"], event["service"]) for event in events if event["service"] == GREETER]
    assert kinds == [("created", GREETER), ("deleted", GREETER)]


async def test_past_table_and_changes_since_then_are_returned(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    service = await a.serve(Service(GREETER))
    await micro_net.advance_time(60)
    await a.stop_service(service)
    await a.serve(Service("go.micro.srv.other"))
    await micro_net.advance_time(10)
    past = await b.call(NODE, "Network.Past", {"ago_s": 20.0})
    assert GREETER in {route["service"] for route in past["routes"]}
    assert [route["service"] for route in past["removed"]] == [GREETER]
    assert [route["service"] for route in past["added"]] == ["go.micro.srv.other"]
    b.node.router.journal.reaches_back_to = b.clock.wall() - 5.0
    with pytest.raises(NotFound, match="reaches back 5 s"):
        await b.call(NODE, "Network.Past", {"ago_s": 20.0})
