"""The choice of a route for a call."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route
from micro_core.proxy.destination import ANSWERS_PER_CHANGE
from micro_core.proxy.route_choice import ADJUST_S, MAX_SERVICES, RouteChooser
from micro_core.proxy.route_usage import INITIAL_AVOIDANCE_S, MAX_AVOIDANCE_S, RouteUsage
from micro_core.routing.lookup import LOAD_SHARING_FACTOR


def route(
    name: str,
    metric: int,
    *,
    link: str = NETWORK_LINK,
    gateway: str = "",
    site: str = "",
    load_us: int = 0,
    expires_at: float | None = None,
    service: str = "greeter",
) -> Route:
    is_local = link == LOCAL_LINK
    return Route(
        service=service,
        address=name if is_local else "",
        gateway="" if is_local else gateway or name,
        network="n",
        router="me" if is_local else name,
        link=link,
        metric=metric + load_us,
        site="mine" if is_local else site or f"site of {name}",
        load_us=load_us,
        expires_at=expires_at,
    )


class Caller:
    """Makes calls that do not end unless `end` is called."""

    def __init__(self, seed: int = 1) -> None:
        self.chooser = RouteChooser(random.Random(seed))
        self.now = 0.0

    def choose(self, routes: Sequence[Route], *, via: Collection[str] = (), came_from: str = "") -> RouteUsage | None:
        return self.chooser.choose(routes, self.now, via=via, came_from=came_from)

    def begin(self, routes: Sequence[Route]) -> RouteUsage:
        usage = self.choose(routes)
        assert usage is not None
        usage.outstanding += 1
        usage.destination.call_started(self.now)
        return usage

    def end(self, usage: RouteUsage, duration_s: float = 0.010) -> None:
        usage.outstanding -= 1
        usage.destination.call_ended()
        usage.destination.answered("Say.Hello", duration_s, self.now)
        self.chooser.answered(usage)

    def call(self, routes: Sequence[Route], duration_s: float = 0.010) -> str:
        usage = self.begin(routes)
        self.end(usage, duration_s)
        return usage.gateway


def test_local_routes_come_first_even_if_another_site_advertises_less_load() -> None:
    routes = (route("near", 0), route("here", 0, link=LOCAL_LINK, load_us=500_000))
    assert {Caller(seed).call(routes) for seed in range(20)} == {""}


def test_expired_routes_are_left_out() -> None:
    caller = Caller()
    routes = (route("a", 1, expires_at=10.0), route("b", 1_000))
    assert caller.call(routes) == "a"
    caller.now = 10.0
    assert caller.call(routes) == "b", "the lease is checked at its end, not at the next refresh"
    assert caller.choose(routes[:1]) is None


def test_clearly_worse_destinations_get_no_calls_and_nearly_equal_ones_share() -> None:
    caller, routes = Caller(), (route("a", 1_000), route("b", 1_250), route("c", 1_260))
    assert {caller.call(routes) for _ in range(100)} == {"a", "b"}


def test_nearly_equal_destination_with_fewer_calls_comes_first() -> None:
    caller, routes = Caller(), (route("busy", 1_000), route("quiet", 1_200))
    for _ in range(50):
        usage = caller.begin(routes)
        others = [one for one in ("busy", "quiet") if one != usage.gateway]
        again = caller.begin(routes)
        assert again.gateway in others
        caller.end(usage)
        caller.end(again)


@pytest.mark.parametrize("link", [LOCAL_LINK, NETWORK_LINK])
def test_calls_are_spread_over_equal_routes(link: str) -> None:
    caller, routes = Caller(), tuple(route(name, 1_000, link=link) for name in "abcd")
    count = Counter(caller.begin(routes).route for _ in range(400))
    assert all(80 <= count[one] <= 120 for one in routes)


def test_several_ways_to_one_origin_are_one_destination() -> None:
    caller = Caller()
    short, long = route("o", 1_000, gateway="g1"), route("o", 5_000, gateway="g2")
    other = route("p", 9_000)
    usage = caller.begin((short, long, other))
    usage.destination.window = 1.0
    assert caller.begin((short, long, other)).gateway == "p", "the other way leads to the same busy instances"


def test_nodes_of_one_site_are_one_destination_unless_the_site_has_no_name() -> None:
    for site, gateway in (("paris", "far"), ("local", "n2")):
        caller = Caller()
        routes = (route("n1", 1_000, site=site), route("n2", 5_000, site=site), route("far", 9_000, site="rome"))
        caller.begin(routes).destination.window = 1.0
        assert caller.begin(routes).gateway == gateway


def test_calls_beyond_the_window_go_to_the_next_destination_and_return_with_the_first_answer() -> None:
    caller = Caller()
    routes = (route("here", 0, link=LOCAL_LINK), route("b", 10_000), route("c", 90_000))
    first = caller.begin(routes)
    first.destination.window = 2.0
    assert [caller.begin(routes).gateway for _ in range(3)] == ["", "b", "b"]
    caller.end(first)
    assert caller.begin(routes).gateway == ""


def test_full_destinations_share_calls_in_proportion_to_their_windows() -> None:
    caller = Caller()
    routes = (route("here", 0, link=LOCAL_LINK), route("b", 10_000))
    for window, usage in zip((10.0, 30.0), (caller.choose(routes), caller.choose(routes[1:])), strict=True):
        assert usage is not None
        usage.destination.window = window
    # The state of the second call was computed without the local route, so windows are set again.
    here, away = caller.begin(routes), None
    here.destination.window = 10.0
    for _ in range(9):
        caller.begin(routes)
    away = caller.begin(routes)
    assert away.gateway == "b"
    away.destination.window = 30.0
    count = Counter(caller.begin(routes).gateway for _ in range(149))
    assert 35 <= count[""] + 10 <= 45
    assert count["b"] >= 105


def test_advertised_load_counts_only_for_destinations_without_own_measurements() -> None:
    caller = Caller()
    near, far = route("near", 10_000, load_us=100_000), route("far", 50_000)
    assert caller.call((near, far)) == "far"
    caller = Caller()
    for _ in range(ANSWERS_PER_CHANGE):
        assert caller.call((replace(near, load_us=0, metric=10_000), far)) == "near"
    assert caller.call((near, far)) == "near", "its window limits the calls, if they do wait"


def test_next_hops_that_the_call_has_passed_or_comes_from_are_left_out() -> None:
    caller, routes = Caller(), (route("a", 10), route("b", 100), route("c", 1_000))
    for via, came_from, gateway in (((), "", "a"), (("a",), "", "b"), ((), "a", "b"), (("a",), "b", "c")):
        usage = caller.choose(routes, via=via, came_from=came_from)
        assert usage is not None
        assert usage.gateway == gateway
    assert caller.choose(routes, via=("a", "b", "c")) is None


def test_route_that_refuses_calls_quickly_is_avoided_for_a_growing_time() -> None:
    caller, routes = Caller(), (route("hole", 10), route("good", 100_000))
    usage = caller.begin(routes)
    times = []
    for _ in range(8):
        assert usage.gateway == "hole"
        caller.chooser.refused(usage, caller.now)
        began_at = caller.now
        while (usage := caller.begin(routes)).gateway != "hole":
            assert caller.now - began_at <= MAX_AVOIDANCE_S + 2 * ADJUST_S
            caller.now += ADJUST_S
        times.append(caller.now - began_at)
    assert times[0] == pytest.approx(INITIAL_AVOIDANCE_S, abs=2 * ADJUST_S)
    assert times == sorted(times)
    assert times[-1] >= MAX_AVOIDANCE_S
    caller.end(usage)
    caller.chooser.refused(usage, caller.now)
    caller.now += INITIAL_AVOIDANCE_S + ADJUST_S
    assert caller.begin(routes).gateway == "hole", "an answer ends the history"


def test_avoided_route_is_used_if_it_is_the_only_one() -> None:
    caller, routes = Caller(), (route("hole", 10),)
    for _ in range(5):
        usage = caller.begin(routes)
        caller.chooser.refused(usage, caller.now)


def test_full_destination_is_better_than_one_that_refuses_calls() -> None:
    caller, routes = Caller(), (route("here", 0, link=LOCAL_LINK), route("hole", 10))
    usage = caller.begin(routes)
    hole = caller.choose(routes, via=())
    assert hole is usage
    usage.destination.window = 1.0
    away = caller.begin(routes)
    caller.chooser.refused(away, caller.now)
    usage.destination.window = 1.0
    assert caller.begin(routes).gateway == ""


def test_new_calls_avoid_a_next_hop_that_does_not_answer_pings() -> None:
    caller = Caller()
    routes = (route("o", 1_000, gateway="g1"), route("o", 5_000, gateway="g2"))
    assert caller.call(routes) == "g1"
    caller.chooser.peer_suspect("g1", True)
    assert caller.call(routes) == "g2", "at once"
    caller.chooser.peer_suspect("g2", True)
    assert caller.call(routes) == "g1", "the better of two bad ways"
    caller.chooser.peer_suspect("g1", False)
    caller.chooser.peer_suspect("g2", False)
    assert caller.call(routes) == "g1"
    only = routes[:1]
    caller.chooser.peer_suspect("g1", True)
    assert caller.call(only) == "g1", "the only way"


def test_restricted_calls_use_only_permitted_routes() -> None:
    caller, routes = Caller(), (route("a", 10), route("b", 100), route("c", 1_000))
    keys = [one.key for one in routes]
    for permitted, gateway in ((keys[1:], "b"), (keys[2:], "c")):
        usage = caller.chooser.choose(routes, 0.0, permitted=permitted)
        assert usage is not None
        assert usage.gateway == gateway
    usage = caller.begin(routes)
    usage.destination.window = 1.0
    second = caller.chooser.choose(routes, 0.0, permitted=keys)
    assert second is not None
    assert second.gateway == "b"
    assert caller.chooser.choose(routes, 0.0, permitted=keys[:1]) is usage, "a full destination that is the only one"
    assert caller.chooser.choose(routes, 0.0, permitted=()) is None


@pytest.mark.parametrize("link", [LOCAL_LINK, NETWORK_LINK])
def test_restricted_calls_are_spread_over_equal_permitted_routes(link: str) -> None:
    caller, routes = Caller(), tuple(route(name, 1_000, link=link) for name in "abcd")
    permitted = [one.key for one in routes[1:]]
    count: Counter[Route] = Counter()
    for _ in range(300):
        usage = caller.chooser.choose(routes, 0.0, permitted=permitted)
        assert usage is not None
        usage.outstanding += 1
        usage.destination.call_started(0.0)
        count[usage.route] += 1
    assert all(80 <= count[one] <= 120 for one in routes[1:])


def test_state_follows_the_routes_and_is_bounded() -> None:
    caller = Caller()
    first = caller.begin((route("a", 10),))
    for number in range(100):
        caller.call((route(f"n{number}", 10),))
    state = caller.chooser._states["greeter"]
    assert len(state.usage) <= 2
    assert first.route.key in state.usage, "calls are in progress on it"
    for number in range(MAX_SERVICES + 10):
        caller.call((route("a", 10, service=f"s{number}"),))
    assert len(caller.chooser._states) == MAX_SERVICES


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.booleans(), st.booleans()), max_size=12),
    st.integers(0, 2**32),
)
def test_choice_is_a_valid_route_and_nearly_the_best(made: list[tuple[int, bool, bool]], seed: int) -> None:
    routes = tuple(
        route(f"r{number}", metric, link=LOCAL_LINK if is_local else NETWORK_LINK, expires_at=0.5 if is_old else None)
        for number, (metric, is_local, is_old) in enumerate(made)
    )
    caller = Caller(seed)
    caller.now = 1.0
    alive = [one for one in routes if one.expires_at is None]
    usage = caller.choose(routes) if routes else None
    if not alive:
        assert usage is None
        return
    assert usage is not None
    assert usage.route in alive
    assert (usage.route.link == LOCAL_LINK) is any(one.link == LOCAL_LINK for one in alive)
    if usage.route.link != LOCAL_LINK:
        assert usage.route.metric <= min(one.metric for one in alive) * LOAD_SHARING_FACTOR
