"""The fixture `micro_net`: networks for tests of services."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from micro_core import Service
from micro_core.contract.errors import MicroError, RouteNotFound
from micro_core.lab.net import Lab, NotConverged

GREETER = "go.micro.srv.greeter"


def greeter(greeting: str = "Hello") -> Service:
    service = Service(GREETER)

    @service.endpoint("Say.Hello")
    async def hello(request: dict[str, str]) -> dict[str, str]:
        return {"msg": f"{greeting} {request['name']}"}

    return service


async def test_data_sent_during_a_stall_arrives_after_it_and_no_link_is_lost(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await a.serve(greeter())
    await micro_net.converged()
    micro_net.stall(a, b, 1.5)
    began_at = micro_net.now
    assert await b.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}
    assert 1.5 <= micro_net.now - began_at < 2.0
    assert a.counted("tunnel_links_dead") == 0


async def test_call_crosses_two_nodes(micro_net: Lab) -> None:
    a, _, c = await micro_net.line(3)
    await a.serve(greeter())
    await micro_net.converged()
    assert await c.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}
    (route,) = c.routes(GREETER)
    assert route.hops == 2


async def test_network_works_after_an_hour_of_virtual_time(micro_net: Lab) -> None:
    a, _, c = await micro_net.line(3)
    await a.serve(greeter())
    began = time.monotonic()
    await micro_net.advance_time(3_600.0)
    assert time.monotonic() - began < 60.0
    assert micro_net.now >= 3_600.0
    assert await c.call(GREETER, "Say.Hello", {"name": "Ann"}) == {"msg": "Hello Ann"}


async def test_partition_removes_routes_and_repair_restores_them(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    await a.serve(greeter())
    await micro_net.converged()
    micro_net.partition(a, b)
    await micro_net.advance_time(6.0)
    with pytest.raises(RouteNotFound):
        await c.call(GREETER, "Say.Hello", {"name": "John"})
    await micro_net.converged()
    micro_net.heal(a, b)
    assert await micro_net.converged() < 40.0
    assert await c.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}


async def test_short_partition_does_not_lose_the_link(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await a.serve(greeter())
    await micro_net.converged()
    micro_net.partition(a, b)
    await micro_net.advance_time(1.0)
    micro_net.heal(a, b)
    assert await b.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}
    assert [line for line in micro_net.log if "lost" in line] == []


async def test_routes_to_a_killed_node_are_removed_within_five_seconds(micro_net: Lab) -> None:
    a, b, c = await micro_net.line(3)
    await a.serve(greeter())
    await micro_net.converged()
    await b.kill()
    await micro_net.advance_time(5.0)
    assert {route.router for route in c.routes()} == {c.id}
    with pytest.raises(MicroError, match="no route to"):
        await c.call(GREETER, "Say.Hello", {"name": "John"})
    await b.start()
    await micro_net.converged()
    assert await c.call(GREETER, "Say.Hello", {"name": "John"}) == {"msg": "Hello John"}


async def test_message_reaches_each_site_with_a_subscriber_once(micro_net: Lab) -> None:
    a, _, c, d = await micro_net.line(4)
    received: list[tuple[str, Any]] = []
    for node in (a, c):
        service = Service(f"go.micro.srv.listener.{node.name}")
        service.subscriber("orders")(_subscriber(received, node.name))
        await node.serve(service)
    await micro_net.converged()
    await d.publish("orders", {"id": 7})
    await micro_net.advance_time(2.0)
    assert sorted(received) == [("a", 7), ("c", 7)]


def _subscriber(received: list[tuple[str, Any]], name: str) -> Any:
    async def receive(message: dict[str, Any]) -> None:
        received.append((name, message["id"]))

    return receive


async def test_function_for_a_thread_runs_immediately_in_the_loop(micro_net: Lab) -> None:
    await micro_net.line(1)
    before = micro_net.now
    assert await asyncio.to_thread(threading.get_ident) == threading.get_ident()
    assert micro_net.now == before


async def test_missing_convergence_reports_differences_and_the_seed(micro_net: Lab) -> None:
    a, b = await micro_net.line(2)
    await a.serve(greeter())
    micro_net.links.cut(a.name, b.name)
    with pytest.raises(NotConverged, match="seed 0") as caught:
        await micro_net.converged(0.0)
    assert "network did not converge within 0 s: " in str(caught.value)


@pytest.mark.parametrize("count", [2, 5])
async def test_fixture_works_with_parameters_and_other_fixtures(micro_net: Lab, tmp_path: Any, count: int) -> None:
    nodes = await micro_net.ring(count)
    assert len(nodes) == count
    assert tmp_path.is_dir()
    await micro_net.converged()


class TestInAClass:
    async def test_fixture_works_in_methods(self, micro_net: Lab) -> None:
        (node,) = await micro_net.line(1)
        assert node.name == "a"
