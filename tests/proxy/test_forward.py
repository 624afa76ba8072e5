"""The forwarding decision of one hop, and the filter of duplicate messages."""

from __future__ import annotations

from micro_core.contract import LoopDetected, Route
from micro_core.proxy.duplicate_filter import MAX_REMEMBERED, RETENTION_S, DuplicateFilter
from micro_core.proxy.forward import check_may_pass, next_hop_header, no_route, usable_routes
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


def test_call_that_passed_this_node_before_is_refused_as_a_loop() -> None:
    refusal = check_may_pass(CallHeader("greeter", "Say.Hello", via=("me",)), "me", at="node me")
    assert isinstance(refusal, LoopDetected)
    assert refusal.at == "node me"


def test_call_at_its_hop_limit_is_refused_as_a_loop() -> None:
    assert isinstance(check_may_pass(CallHeader("greeter", "Say.Hello", hops_left=0), "me", at="x"), LoopDetected)


def test_call_is_not_sent_to_nodes_that_it_passed_or_comes_from() -> None:
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


def test_onward_header_has_one_hop_less_the_remaining_time_and_this_router() -> None:
    header = CallHeader("greeter", "Say.Hello", timeout_ms=500, hops_left=3, via=("a",), metadata={"k": "v"})
    onward = decode_call_header(next_hop_header(encode_header(header), "me", 120))
    assert (onward.hops_left, onward.via, onward.timeout_ms, onward.metadata) == (2, ("a", "me"), 380, {"k": "v"})


def test_error_distinguishes_no_route_from_no_permitted_route() -> None:
    header = CallHeader("greeter", "Say.Hello")
    assert "no route to greeter" in no_route(header, 0, at="me").detail
    assert "none of the 2 routes" in no_route(header, 2, at="me").detail


def test_duplicate_is_recognized_for_at_least_a_minute() -> None:
    duplicates = DuplicateFilter()
    assert duplicates.is_first("id", "target", 0.0)
    assert duplicates.is_first("id", "other", 0.0)
    assert not duplicates.is_first("id", "target", RETENTION_S)
    assert not duplicates.is_first("id", "target", RETENTION_S + 1)


def test_number_of_remembered_messages_is_bounded() -> None:
    duplicates = DuplicateFilter()
    for number in range(3 * MAX_REMEMBERED):
        duplicates.is_first(str(number), "target", 0.0)
    assert len(duplicates._previous) + len(duplicates._current) <= 2 * MAX_REMEMBERED
