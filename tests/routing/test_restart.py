"""Stale routes, on virtual time: each rule as a sentence, and what holds whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route, RouteKey
from micro_core.routing.events import Count, DeleteRoute, Effect, PutRoute
from micro_core.routing.explain import Standing, stale_ways
from micro_core.routing.restart import StaleRoutes

ME, LEFT, RIGHT, FAR = ("m" * 32, "l" * 32, "r" * 32, "f" * 32)
LEASE_S = 60.0

ROUTE = Route(service="greeter", address="", gateway=LEFT, network="n", router=FAR, link=NETWORK_LINK, metric=500)


class Bench:
    """Stale routes with their table and the time."""

    def __init__(self, *routes: Route, lease_s: float = LEASE_S) -> None:
        self.stale = StaleRoutes(router=ME, lease_s=lease_s)
        self.now = 1_000.0
        self.table = {route.key: route for route in routes}
        self.counted: dict[str, int] = {}
        self.do(self.stale.found(routes, self.now))

    def do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table[route.key] = route
                case DeleteRoute(key):
                    del self.table[key]
                case Count(name, amount):
                    self.counted[name] = self.counted.get(name, 0) + amount

    def put(self, route: Route) -> None:
        """As the engine does."""
        self.table[route.key] = route
        self.do(self.stale.told(route))

    def usable(self) -> list[RouteKey]:
        return sorted(route.key for route in self.stale.usable([*self.table.values()]))


def test_what_is_found_is_stale_for_the_lease_and_no_longer() -> None:
    bench = Bench(ROUTE)
    (route,) = bench.table.values()
    assert route == replace(ROUTE, expires_at=1_060.0)
    assert route.is_stale
    assert bench.counted == {"routing_stale_routes_found": 1}
    assert bench.stale.wake_at == 1_060.0
    bench.do(bench.stale.expire(1_059.9))
    assert bench.table
    bench.do(bench.stale.expire(1_060.0))
    assert not bench.table
    assert bench.counted["routing_stale_routes_dropped"] == 1
    assert bench.stale.wake_at is None


def test_a_lease_that_a_route_brings_along_is_made_no_longer() -> None:
    short, past = replace(ROUTE, expires_at=1_005.0), replace(ROUTE, gateway=RIGHT, expires_at=999.0)
    bench = Bench(short, past, replace(ROUTE, service="other", expires_at=9_999.0))
    assert {route.service: route.expires_at for route in bench.table.values()} == {"greeter": 1_005.0, "other": 1_060.0}
    assert bench.stale.wake_at == 1_005.0
    bench.do(bench.stale.expire(1_005.0))
    assert [route.service for route in bench.table.values()] == ["other"]
    assert bench.stale.wake_at == 1_060.0


def test_what_is_of_this_site_or_makes_no_sense_goes_at_once() -> None:
    local = replace(ROUTE, link=LOCAL_LINK, address="tcp://127.0.0.1:1", gateway="", router=ME)
    wrong = [replace(ROUTE, gateway=""), replace(ROUTE, gateway=ME), replace(ROUTE, router=ME), local]
    bench = Bench(*wrong)
    assert not bench.table
    assert not bench.stale


def test_without_a_lease_nothing_is_used() -> None:
    assert not Bench(ROUTE, lease_s=0.0).table


def test_it_serves_only_while_a_link_to_its_gateway_stands() -> None:
    bench = Bench(ROUTE, replace(ROUTE, service="other", gateway=RIGHT))
    assert bench.usable() == []
    bench.stale.link_up(LEFT)
    assert bench.usable() == [ROUTE.key]


def test_what_the_engine_puts_is_fresh() -> None:
    bench = Bench(ROUTE)
    bench.put(replace(ROUTE, metric=700))
    assert [*bench.table.values()] == [replace(ROUTE, metric=700)]
    assert bench.usable() == [ROUTE.key]
    bench.do(bench.stale.expire(2_000.0))
    bench.stale.link_up(LEFT)
    bench.do(bench.stale.link_down(LEFT))
    assert bench.table, "what is fresh is the engine's business alone"


def test_a_fresh_way_displaces_the_stale_ones_to_the_same_service_of_the_same_origin() -> None:
    elsewhere = replace(ROUTE, router="o" * 32)
    bench = Bench(ROUTE, elsewhere)
    bench.put(replace(ROUTE, gateway=RIGHT))
    assert {(route.gateway, route.router) for route in bench.table.values()} == {
        (RIGHT, FAR),
        (LEFT, elsewhere.router),
    }


def test_a_full_table_takes_what_was_not_in_it() -> None:
    other = replace(ROUTE, gateway=RIGHT, service="other")
    bench = Bench(ROUTE, replace(ROUTE, service="gone"), other)
    bench.stale.link_up(LEFT)
    bench.put(ROUTE)
    bench.do(bench.stale.told_everything(LEFT))
    assert sorted(route.service for route in bench.table.values()) == ["greeter", "other"]


def test_a_link_that_breaks_takes_the_stale_routes_through_it() -> None:
    bench = Bench(ROUTE, replace(ROUTE, gateway=RIGHT, service="other"))
    bench.stale.link_up(LEFT)
    bench.do(bench.stale.link_down(LEFT))
    assert [route.service for route in bench.table.values()] == ["other"]
    bench.stale.link_up(LEFT)
    assert bench.usable() == []


def test_explanations_say_for_how_long_and_whether_calls_may_take_it() -> None:
    bench = Bench(ROUTE, replace(ROUTE, gateway=RIGHT))
    bench.stale.link_up(LEFT)
    table = [*bench.table.values(), replace(ROUTE, gateway="x" * 32)]
    ways = {way.via: way for way in stale_ways(table, bench.stale.serves, 1_010.0)}
    assert {via: way.standing for via, way in ways.items()} == {LEFT: Standing.SPARE, RIGHT: Standing.UNREACHABLE}
    assert ways[LEFT].stale_for_s == 50.0
    assert "no link" in ways[RIGHT].why


steps = st.one_of(
    st.tuples(st.sampled_from(["up", "down", "everything"]), st.sampled_from([LEFT, RIGHT])),
    st.tuples(st.just("put"), st.sampled_from([LEFT, RIGHT])),
    st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([LEFT, RIGHT]), st.sampled_from([FAR, ME])), max_size=8),
    st.lists(steps, max_size=12),
)
def test_whatever_happens_nothing_stale_outlives_its_lease_and_the_timer_is_set(
    found: list[tuple[str, str, str]], happens: list[tuple[str, object]]
) -> None:
    bench = Bench(*{replace(ROUTE, service=s, gateway=g, router=r) for s, g, r in found})
    for what, which in happens:
        match what, which:
            case "up", str(peer):
                bench.stale.link_up(peer)
            case "down", str(peer):
                bench.do(bench.stale.link_down(peer))
            case "everything", str(peer):
                bench.do(bench.stale.told_everything(peer))
            case "put", str(peer):
                bench.put(replace(ROUTE, service="a", gateway=peer))
            case "wait", float(seconds):
                bench.now += seconds
                bench.do(bench.stale.expire(bench.now))
        standing = {key: route for key, route in bench.table.items() if route.expires_at is not None}
        assert len(standing) == len(bench.stale)
        assert all(route.expires_at is not None and route.expires_at > bench.now for route in standing.values())
        first = min((route.expires_at for route in standing.values() if route.expires_at is not None), default=None)
        assert (bench.stale.wake_at is None) == (first is None)
        assert first is None or (bench.stale.wake_at is not None and bench.stale.wake_at <= first)
