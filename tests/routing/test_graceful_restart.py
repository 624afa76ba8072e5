"""Stale routes after a restart: the rules for their use and removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route, RouteKey
from micro_core.routing.events import Count, DeleteRoute, Effect, PutRoute
from micro_core.routing.explain import CandidateStatus, stale_candidates
from micro_core.routing.graceful_restart import StaleRoutes

ME, LEFT, RIGHT, FAR = ("m" * 32, "l" * 32, "r" * 32, "f" * 32)
LEASE_S = 60.0

ROUTE = Route(service="greeter", address="", gateway=LEFT, network="n", router=FAR, link=NETWORK_LINK, metric=500)


class StaleRoutesHarness:
    """The stale routes of a router with their table and a clock."""

    def __init__(self, *routes: Route, lease_s: float = LEASE_S) -> None:
        self.stale = StaleRoutes(router=ME, lease_s=lease_s)
        self.now = 1_000.0
        self.table = {route.key: route for route in routes}
        self.counted: dict[str, int] = {}
        self.apply(self.stale.restore(routes, self.now))

    def apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table[route.key] = route
                case DeleteRoute(key):
                    del self.table[key]
                case Count(name, amount):
                    self.counted[name] = self.counted.get(name, 0) + amount

    def put(self, route: Route) -> None:
        """Put a route into the table as the engine does."""
        self.table[route.key] = route
        self.apply(self.stale.route_learned(route))

    def usable(self) -> list[RouteKey]:
        return sorted(route.key for route in self.stale.usable([*self.table.values()]))


def test_restored_route_is_stale_until_its_lease_ends() -> None:
    harness = StaleRoutesHarness(ROUTE)
    (route,) = harness.table.values()
    assert route == replace(ROUTE, expires_at=1_060.0)
    assert route.is_stale
    assert harness.counted == {"routing_stale_routes_found": 1}
    assert harness.stale.wake_at == 1_060.0
    harness.apply(harness.stale.expire(1_059.9))
    assert harness.table
    harness.apply(harness.stale.expire(1_060.0))
    assert not harness.table
    assert harness.counted["routing_stale_routes_dropped"] == 1
    assert harness.stale.wake_at is None


def test_lease_of_a_stale_route_is_not_extended() -> None:
    short, past = replace(ROUTE, expires_at=1_005.0), replace(ROUTE, gateway=RIGHT, expires_at=999.0)
    harness = StaleRoutesHarness(short, past, replace(ROUTE, service="other", expires_at=9_999.0))
    assert {route.service: route.expires_at for route in harness.table.values()} == {
        "greeter": 1_005.0,
        "other": 1_060.0,
    }
    assert harness.stale.wake_at == 1_005.0
    harness.apply(harness.stale.expire(1_005.0))
    assert [route.service for route in harness.table.values()] == ["other"]
    assert harness.stale.wake_at == 1_060.0


def test_local_and_invalid_routes_are_deleted_at_once() -> None:
    local = replace(ROUTE, link=LOCAL_LINK, address="tcp://127.0.0.1:1", gateway="", router=ME)
    invalid = [replace(ROUTE, gateway=""), replace(ROUTE, gateway=ME), replace(ROUTE, router=ME), local]
    harness = StaleRoutesHarness(*invalid)
    assert not harness.table
    assert not harness.stale


def test_no_route_is_restored_without_a_lease() -> None:
    assert not StaleRoutesHarness(ROUTE, lease_s=0.0).table


def test_stale_route_is_usable_only_while_a_link_to_its_gateway_is_open() -> None:
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, service="other", gateway=RIGHT))
    assert harness.usable() == []
    harness.stale.link_up(LEFT)
    assert harness.usable() == [ROUTE.key]


def test_learned_route_is_not_stale_any_more() -> None:
    harness = StaleRoutesHarness(ROUTE)
    harness.put(replace(ROUTE, metric=700))
    assert [*harness.table.values()] == [replace(ROUTE, metric=700)]
    assert harness.usable() == [ROUTE.key]
    harness.apply(harness.stale.expire(2_000.0))
    harness.stale.link_up(LEFT)
    harness.apply(harness.stale.link_down(LEFT))
    assert harness.table, "only the engine deletes a learned route"


def test_learned_route_replaces_stale_routes_to_the_same_origin() -> None:
    elsewhere = replace(ROUTE, router="o" * 32)
    harness = StaleRoutesHarness(ROUTE, elsewhere)
    harness.put(replace(ROUTE, gateway=RIGHT))
    assert {(route.gateway, route.router) for route in harness.table.values()} == {
        (RIGHT, FAR),
        (LEFT, elsewhere.router),
    }


def test_full_table_removes_stale_routes_that_it_does_not_contain() -> None:
    other = replace(ROUTE, gateway=RIGHT, service="other")
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, service="removed"), other)
    harness.stale.link_up(LEFT)
    harness.put(ROUTE)
    harness.apply(harness.stale.full_table_received(LEFT))
    assert sorted(route.service for route in harness.table.values()) == ["greeter", "other"]


def test_closed_link_removes_the_stale_routes_through_it() -> None:
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, gateway=RIGHT, service="other"))
    harness.stale.link_up(LEFT)
    harness.apply(harness.stale.link_down(LEFT))
    assert [route.service for route in harness.table.values()] == ["other"]
    harness.stale.link_up(LEFT)
    assert harness.usable() == []


def test_explanation_contains_remaining_lease_and_usability() -> None:
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, gateway=RIGHT))
    harness.stale.link_up(LEFT)
    table = [*harness.table.values(), replace(ROUTE, gateway="x" * 32)]
    candidates = {one.via: one for one in stale_candidates(table, harness.stale.is_usable, 1_010.0)}
    assert {via: one.status for via, one in candidates.items()} == {
        LEFT: CandidateStatus.SPARE,
        RIGHT: CandidateStatus.UNREACHABLE,
    }
    assert candidates[LEFT].stale_for_s == 50.0
    assert "no link" in candidates[RIGHT].why


STEPS = st.one_of(
    st.tuples(st.sampled_from(["up", "down", "everything"]), st.sampled_from([LEFT, RIGHT])),
    st.tuples(st.just("put"), st.sampled_from([LEFT, RIGHT])),
    st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([LEFT, RIGHT]), st.sampled_from([FAR, ME])), max_size=8),
    st.lists(STEPS, max_size=12),
)
def test_no_stale_route_outlives_its_lease_and_the_timer_is_set(
    found: list[tuple[str, str, str]], steps: list[tuple[str, object]]
) -> None:
    harness = StaleRoutesHarness(*{replace(ROUTE, service=s, gateway=g, router=r) for s, g, r in found})
    for what, which in steps:
        match what, which:
            case "up", str(peer):
                harness.stale.link_up(peer)
            case "down", str(peer):
                harness.apply(harness.stale.link_down(peer))
            case "everything", str(peer):
                harness.apply(harness.stale.full_table_received(peer))
            case "put", str(peer):
                harness.put(replace(ROUTE, service="a", gateway=peer))
            case "wait", float(seconds):
                harness.now += seconds
                harness.apply(harness.stale.expire(harness.now))
        stale = {key: route for key, route in harness.table.items() if route.expires_at is not None}
        assert len(stale) == len(harness.stale)
        assert all(route.expires_at is not None and route.expires_at > harness.now for route in stale.values())
        next_expiry = min((route.expires_at for route in stale.values() if route.expires_at is not None), default=None)
        assert (harness.stale.wake_at is None) == (next_expiry is None)
        assert next_expiry is None or (harness.stale.wake_at is not None and harness.stale.wake_at <= next_expiry)
