"""Stale routes after a restart: the rules for their use and removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.table import NETWORK_LINK, Offer, OriginRoute, OriginRouteKey, Route
from micro_core.routing.events import ChangeOffers, Count, DeleteOriginRoute, Effect, PutOriginRoute
from micro_core.routing.explain import CandidateStatus, stale_candidates
from micro_core.routing.graceful_restart import StaleRoutes

ME, LEFT, RIGHT, FAR = ("m" * 32, "l" * 32, "r" * 32, "f" * 32)
LEASE_S = 60.0

ROUTE = OriginRoute(origin=FAR, gateway=LEFT, network="n", metric=500)
OTHER = replace(ROUTE, origin="o" * 32)


def route_of(route: OriginRoute) -> Route:
    return Route(
        service="greeter",
        address="",
        gateway=route.gateway,
        network=route.network,
        router=route.origin,
        link=NETWORK_LINK,
        metric=route.metric,
        expires_at=route.expires_at,
    )


class StaleRoutesHarness:
    """The stale routes of a router with their table and a clock. Each origin in the table has an offer."""

    def __init__(self, *routes: OriginRoute, lease_s: float = LEASE_S) -> None:
        self.stale = StaleRoutes(router=ME, lease_s=lease_s)
        self.now = 1_000.0
        self.table = {route.key: route for route in routes}
        self.offers = {route.origin: [Offer("greeter")] for route in routes}
        self.counted: dict[str, int] = {}
        self.apply(self.stale.restore(routes, self.now))

    def apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case PutOriginRoute(route):
                    self.table[route.key] = route
                case DeleteOriginRoute(key):
                    del self.table[key]
                case ChangeOffers(origin, changed, (), True):
                    self.offers[origin] = [*changed]
                case Count(name, amount):
                    self.counted[name] = self.counted.get(name, 0) + amount

    def put(self, route: OriginRoute) -> None:
        """Put a route into the table as the engine does."""
        self.table[route.key] = route
        self.apply(self.stale.route_learned(route))

    def usable(self) -> list[OriginRouteKey]:
        routes = self.stale.usable([route_of(route) for route in self.table.values()])
        return sorted(OriginRouteKey(route.router, route.gateway) for route in routes)


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
    assert harness.offers == {FAR: []}
    assert harness.stale.wake_at is None


def test_stored_offers_are_used_until_a_neighbour_sends_its_list() -> None:
    harness = StaleRoutesHarness(ROUTE, OTHER)
    for route in (ROUTE, OTHER):
        harness.put(route)
    harness.stale.offers_learned(FAR)
    assert harness.offers == {FAR: [Offer("greeter")], OTHER.origin: [Offer("greeter")]}
    assert harness.stale.wake_at is not None
    harness.apply(harness.stale.expire(1_060.0))
    assert harness.offers == {FAR: [Offer("greeter")], OTHER.origin: []}, "no neighbour has sent the list of the other"
    assert harness.stale.wake_at is None


def test_lease_of_a_stale_route_is_not_extended() -> None:
    short, past = replace(ROUTE, expires_at=1_005.0), replace(ROUTE, gateway=RIGHT, expires_at=999.0)
    harness = StaleRoutesHarness(short, past, replace(OTHER, expires_at=9_999.0))
    assert {route.origin: route.expires_at for route in harness.table.values()} == {
        FAR: 1_005.0,
        OTHER.origin: 1_060.0,
    }
    assert harness.stale.wake_at == 1_005.0
    harness.apply(harness.stale.expire(1_005.0))
    assert [*harness.table] == [OTHER.key]
    assert harness.stale.wake_at == 1_060.0


def test_invalid_routes_are_deleted_at_once() -> None:
    harness = StaleRoutesHarness(replace(ROUTE, gateway=""), replace(ROUTE, gateway=ME), replace(OTHER, origin=ME))
    assert not harness.table
    assert harness.offers == {FAR: [], ME: []}
    assert not harness.stale.is_pending


def test_no_route_is_restored_without_a_lease() -> None:
    harness = StaleRoutesHarness(ROUTE, lease_s=0.0)
    assert not harness.table
    assert harness.offers == {FAR: []}


def test_stale_route_is_usable_only_while_a_link_to_its_gateway_is_open() -> None:
    harness = StaleRoutesHarness(ROUTE, replace(OTHER, gateway=RIGHT))
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
    harness = StaleRoutesHarness(ROUTE, OTHER)
    harness.put(replace(ROUTE, gateway=RIGHT))
    assert {*harness.table} == {(FAR, RIGHT), OTHER.key}


def test_full_table_removes_stale_routes_that_it_does_not_contain() -> None:
    other = replace(OTHER, gateway=RIGHT)
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, origin="x" * 32), other)
    harness.stale.link_up(LEFT)
    harness.put(ROUTE)
    harness.apply(harness.stale.full_table_received(LEFT))
    assert {*harness.table} == {ROUTE.key, other.key}


def test_closed_link_removes_the_stale_routes_through_it() -> None:
    other = replace(OTHER, gateway=RIGHT)
    harness = StaleRoutesHarness(ROUTE, other)
    harness.stale.link_up(LEFT)
    harness.apply(harness.stale.link_down(LEFT))
    assert [*harness.table] == [other.key]
    harness.stale.link_up(LEFT)
    assert harness.usable() == []


def test_explanation_contains_remaining_lease_and_usability() -> None:
    harness = StaleRoutesHarness(ROUTE, replace(ROUTE, gateway=RIGHT))
    harness.stale.link_up(LEFT)
    table = [route_of(route) for route in (*harness.table.values(), replace(ROUTE, gateway="x" * 32))]
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
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", ME]), st.sampled_from([LEFT, RIGHT])), max_size=8),
    st.lists(STEPS, max_size=12),
)
def test_no_stale_route_outlives_its_lease_and_the_timer_is_set(
    found: list[tuple[str, str]], steps: list[tuple[str, object]]
) -> None:
    harness = StaleRoutesHarness(*{replace(ROUTE, origin=origin, gateway=gateway) for origin, gateway in found})
    for what, which in steps:
        match what, which:
            case "up", str(peer):
                harness.stale.link_up(peer)
            case "down", str(peer):
                harness.apply(harness.stale.link_down(peer))
            case "everything", str(peer):
                harness.apply(harness.stale.full_table_received(peer))
            case "put", str(peer):
                harness.put(replace(ROUTE, origin="a", gateway=peer))
                harness.stale.offers_learned("a")
            case "wait", float(seconds):
                harness.now += seconds
                harness.apply(harness.stale.expire(harness.now))
        stale = {key: route for key, route in harness.table.items() if route.expires_at is not None}
        assert len(stale) == len(harness.stale)
        assert all(route.expires_at is not None and route.expires_at > harness.now for route in stale.values())
        next_expiry = min((route.expires_at for route in stale.values() if route.expires_at is not None), default=None)
        assert (harness.stale.wake_at is None) == (not harness.stale.is_pending)
        assert not harness.stale.is_pending or harness.now < 1_000.0 + LEASE_S
        assert next_expiry is None or (harness.stale.wake_at is not None and harness.stale.wake_at <= next_expiry)
