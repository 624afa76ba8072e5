"""Policies and default routes in a network."""

from __future__ import annotations

import pytest

from micro_core import Service
from micro_core.contract.errors import LoopDetected, MicroError, RouteNotFound
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.routing.options import EngineOptions
from micro_core.routing.policy import parse
from micro_core.routing.router import RouterOptions

NAME = "go.micro.srv.greeter"


def greeter() -> Service:
    service = Service(NAME)

    @service.endpoint("Say.Hello")
    async def hello() -> str:
        return "hello"

    return service


def router_options(*rules: str, is_gateway: bool = False) -> RouterOptions:
    return RouterOptions(is_gateway=is_gateway, engine=EngineOptions(policies=tuple(map(parse, rules))))


async def line(net: Lab, middle: RouterOptions) -> tuple[LabNode, LabNode, LabNode]:
    a = await net.add("a")
    b = await net.add("b", links=[a], router=middle)
    c = await net.add("c", links=[b])
    await a.serve(greeter())
    await net.advance_time(5)
    return a, b, c


async def test_export_local_does_not_forward_for_a_neighbour(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, router_options("name=c: export=local"))
    assert b.routes(NAME)
    assert c.routes(NAME) == []
    assert {route.router for route in c.routes()} == {b.id, c.id}


async def test_filtered_services_are_neither_advertised_nor_accepted(micro_net: Lab) -> None:
    a, b, c = await line(
        micro_net, router_options("name=a: import-services=!go.micro.srv.*", "name=c: services=!go.micro.broker")
    )
    assert b.routes(NAME) == []
    assert b.counted("routing_entries_refused_by_policy") > 0
    assert {route.service for route in c.routes() if route.router == a.id} == {"go.micro.network"}


async def test_export_best_advertises_the_best_origin_and_then_the_next(micro_net: Lab) -> None:
    near, far = await micro_net.add("near"), await micro_net.add("far")
    middle = await micro_net.add(
        "middle", links=[near, far], router=router_options("name=edge: export=best", "name=far: cost=50000")
    )
    edge = await micro_net.add("edge", links=[middle])
    services = {node.name: await node.serve(greeter()) for node in (near, far)}
    await micro_net.advance_time(5)
    assert {route.router for route in middle.routes(NAME)} == {near.id, far.id}
    assert {route.router for route in edge.routes(NAME)} == {near.id}
    await near.stop_service(services["near"])
    await micro_net.advance_time(5)
    assert {route.router for route in edge.routes(NAME)} == {far.id}


async def test_digests_match_with_policies(micro_net: Lab) -> None:
    _, b, c = await line(micro_net, router_options("name=c: export=local", "name=a: import=none"))
    await micro_net.advance_time(600)
    assert b.counted("routing_digests_differ") == c.counted("routing_digests_differ") == 0


async def test_gateway_receives_calls_without_another_route(micro_net: Lab) -> None:
    a, b, c = await line(micro_net, router_options("name=c: services=*,!go.micro.srv.*", is_gateway=True))
    assert c.routes(NAME) == []
    assert {route.router for route in c.routes("*")} == {b.id}
    assert await c.call(NAME, "Say.Hello") == "hello"
    with pytest.raises(RouteNotFound):
        await c.call("go.micro.srv.unknown", "Say.Hello")
    assert a.routes("*")


async def test_two_gateways_do_not_forward_calls_in_a_loop(micro_net: Lab) -> None:
    one = await micro_net.add("one", router=router_options(is_gateway=True))
    other = await micro_net.add("other", links=[one], router=router_options(is_gateway=True))
    await micro_net.advance_time(5)
    for node in (one, other):
        with pytest.raises((RouteNotFound, LoopDetected)) as caught:
            await node.call("go.micro.srv.unknown", "Say.Hello")
        assert isinstance(caught.value, MicroError)
