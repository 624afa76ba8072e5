from __future__ import annotations

from micro_core.contract import LoopDetected, Route
from micro_core.proxy.duplicate_filter import MAX_REMEMBERED, REMEMBER_S, SeenCopies
from micro_core.proxy.forward import check_may_pass, no_route, onward_header, usable_routes
from micro_core.wire.header import CallHeader, decode_call_header, encode_header


def route(gateway: str = "", router: str = "origin", site: str = "eu") -> Route:
    return Route(
        service="greeter",
        address="" if gateway else "tcp://127.0.0.1:1",
        gateway=gateway,
        network="go.micro",
        router=router,
        link="network" if gateway else "local",
        metric=1,
        site=site,
    )


def test_a_call_that_has_been_here_is_refused_as_a_loop() -> None:
    refusal = check_may_pass(CallHeader("greeter", "Say.Hello", via=("me",)), "me", at="node me")
    assert isinstance(refusal, LoopDetected)
    assert refusal.at == "node me"


def test_a_call_without_hops_left_is_refused_as_a_loop() -> None:
    assert isinstance(check_may_pass(CallHeader("greeter", "Say.Hello", hops_left=0), "me", at="x"), LoopDetected)


def test_a_call_is_never_sent_to_a_node_it_has_passed_or_comes_from() -> None:
    header = CallHeader("greeter", "Say.Hello", via=("a",))
    found = usable_routes(header, [route("a"), route("b"), route("c"), route()], came_from="b")
    assert [entry.gateway for entry in found] == ["c", ""]


def test_metadata_restricts_routes_by_origin_site_and_next_hop() -> None:
    routes = [route("a", "one", "eu"), route("b", "two", "us")]
    for metadata, gateway in (
        ({"micro-router": "two"}, "b"),
        ({"micro-site": "eu"}, "a"),
        ({"micro-gateway": "b"}, "b"),
    ):
        header = CallHeader("greeter", "Say.Hello", metadata=metadata)
        assert [entry.gateway for entry in usable_routes(header, routes, came_from="")] == [gateway]


def test_the_header_loses_a_hop_and_the_time_spent_and_gains_the_router() -> None:
    header = CallHeader("greeter", "Say.Hello", timeout_ms=500, hops_left=3, via=("a",), metadata={"k": "v"})
    onward = decode_call_header(onward_header(encode_header(header), "me", 120))
    assert (onward.hops_left, onward.via, onward.timeout_ms, onward.metadata) == (2, ("a", "me"), 380, {"k": "v"})


def test_the_refusal_tells_no_route_from_no_permitted_route() -> None:
    header = CallHeader("greeter", "Say.Hello")
    assert "no route to greeter" in no_route(header, 0, at="me").detail
    assert "none of the 2 routes" in no_route(header, 2, at="me").detail


def test_a_copy_is_recognised_for_a_minute_at_least() -> None:
    seen = SeenCopies()
    assert seen.first_time("id", "target", 0.0)
    assert seen.first_time("id", "other", 0.0)
    assert not seen.first_time("id", "target", REMEMBER_S)
    assert not seen.first_time("id", "target", REMEMBER_S + 1)


def test_the_memory_of_copies_is_bounded() -> None:
    seen = SeenCopies()
    for number in range(3 * MAX_REMEMBERED):
        seen.first_time(str(number), "target", 0.0)
    assert len(seen._old) + len(seen._new) <= 2 * MAX_REMEMBERED
