"""The ranking of the routes of a service for one call."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route, RouteKey
from micro_core.routing.lookup import LOAD_SHARING_FACTOR, OVERLOADED_US, SHARED_UNDER_LOAD, rank


def route(gateway: str, metric: int, *, link: str = NETWORK_LINK, expires_at: float | None = None) -> Route:
    return Route(
        service="greeter",
        address=gateway if link == LOCAL_LINK else "",
        gateway="" if link == LOCAL_LINK else gateway,
        network="n",
        router=gateway,
        link=link,
        metric=metric,
        expires_at=expires_at,
    )


def idle(_: RouteKey) -> int:
    return 0


def test_ranking_without_routes_is_empty() -> None:
    assert rank([], now=0, outstanding=idle, waiting_us=idle, random=random.Random(1)) == []


def test_local_routes_come_first() -> None:
    remote, local = route("near", 0), route("here", 500, link=LOCAL_LINK)
    for seed in range(20):
        assert rank([remote, local], now=0, outstanding=idle, waiting_us=idle, random=random.Random(seed)) == [
            local,
            remote,
        ]


def test_expired_routes_are_left_out() -> None:
    stale, fresh, lasting = route("a", 1, expires_at=10.0), route("b", 100, expires_at=10.1), route("c", 1_000)
    assert rank([stale, fresh, lasting], now=10.0, outstanding=idle, waiting_us=idle, random=random.Random(1)) == [
        fresh,
        lasting,
    ]
    assert rank([stale], now=10.0, outstanding=idle, waiting_us=idle, random=random.Random(1)) == []


def test_clearly_worse_routes_never_come_first() -> None:
    routes = [route("a", 1_000), route("b", 1_250), route("c", 1_260)]
    leaders = {
        rank(routes, now=0, outstanding=idle, waiting_us=idle, random=random.Random(seed))[0].gateway
        for seed in range(100)
    }
    assert leaders == {"a", "b"}


def test_nearly_equal_route_with_fewer_calls_comes_first() -> None:
    quiet, busy = route("a", 1_200), route("b", 1_000)
    calls = {quiet.key: 1, busy.key: 2}
    for seed in range(50):
        assert (
            rank([busy, quiet], now=0, outstanding=calls.__getitem__, waiting_us=idle, random=random.Random(seed))[0]
            is quiet
        )


def test_local_route_is_not_preferred_if_calls_wait_there() -> None:
    remote = route("near", 20_000)
    for load_us, is_first in ((OVERLOADED_US - 1, True), (OVERLOADED_US, False)):
        local = route("here", load_us, link=LOCAL_LINK)
        ranked = rank([local, remote], now=0, outstanding=idle, waiting_us=idle, random=random.Random(1))
        assert (ranked[0] is local) is is_first


def test_measured_waiting_time_counts_at_once_and_makes_more_routes_share() -> None:
    usual, other, far = route("a", 10_000), route("b", 30_000), route("c", 90_000)
    measured = {usual.key: 10_000, other.key: 0, far.key: 0}
    calls = {usual.key: 5, other.key: 1, far.key: 0}
    assert 30_000 <= 20_000 * SHARED_UNDER_LOAD < 90_000
    for seed in range(50):
        ranked = rank(
            [usual, other, far],
            now=0,
            outstanding=calls.__getitem__,
            waiting_us=measured.__getitem__,
            random=random.Random(seed),
        )
        assert [one.gateway for one in ranked] == ["b", "a", "c"]
    idle_ranking = rank([usual, other], now=0, outstanding=calls.__getitem__, waiting_us=idle, random=random.Random(1))
    assert idle_ranking[0] is usual, "without waiting time, the route with the lowest cost comes first"


def test_calls_are_spread_over_nearly_equal_routes() -> None:
    routes = [route(name, 1_000) for name in "abcd"]
    outstanding: Counter[RouteKey] = Counter()
    source = random.Random(1)
    for _ in range(400):
        outstanding[
            rank(routes, now=0, outstanding=outstanding.__getitem__, waiting_us=idle, random=source)[0].key
        ] += 1
    assert all(80 <= outstanding[one.key] <= 120 for one in routes)


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.booleans(), st.booleans()), max_size=12),
    st.integers(0, 2**32),
)
def test_every_valid_route_is_ranked_once_and_the_first_is_nearly_the_best(
    made: list[tuple[int, bool, bool]], seed: int
) -> None:
    routes = [
        route(
            f"r{number}", metric, link=LOCAL_LINK if is_local else NETWORK_LINK, expires_at=0.0 if is_expired else None
        )
        for number, (metric, is_local, is_expired) in enumerate(made)
    ]
    source = random.Random(seed)
    ranked = rank(routes, now=1.0, outstanding=lambda key: hash(key) % 3, waiting_us=idle, random=source)
    alive = [one for one in routes if one.expires_at is None]
    assert sorted(one.key for one in ranked) == sorted(one.key for one in alive)
    if ranked:
        leader = ranked[0]
        has_local = any(one.link == LOCAL_LINK for one in alive)
        assert (leader.link == LOCAL_LINK) is has_local
        best = min(one.metric for one in alive if one.link == leader.link)
        assert leader.metric <= best * LOAD_SHARING_FACTOR
    rest = [(one.link != LOCAL_LINK, one.metric) for one in ranked[1:]]
    assert rest == sorted(rest)
