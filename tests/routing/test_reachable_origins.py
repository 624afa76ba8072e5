"""Which origins have a route, and for how long another route to a lost one is expected."""

from __future__ import annotations

import logging

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract import CountersInMemory
from micro_core.contract.table import ANY_SERVICE, Offer, OriginRoute
from micro_core.routing.reachable_origins import EXPECTED_S, ReachableOrigins


class Following:
    """A table and its reachable origins, with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.table = MemoryTable(logger=logging.getLogger("test"), counters=CountersInMemory())
        self.origins = ReachableOrigins(self.table)
        self.table.watch(lambda event: self.origins.observe(event, self.now))

    def put(self, origin: str, gateway: str = "g", *, expires_at: float | None = None) -> OriginRoute:
        route = OriginRoute(origin=origin, gateway=gateway, metric=1, network="net", expires_at=expires_at)
        self.table.put_origin_route(route)
        return route


def test_origin_is_lost_with_its_last_route_and_expected_for_a_limited_time() -> None:
    following = Following()
    first, second = following.put("a", "g"), following.put("a", "h")
    following.table.delete_origin_route(first.key)
    assert "a" in following.origins
    assert not following.origins.is_lost_recently("a", following.now)
    following.table.delete_origin_route(second.key)
    assert "a" not in following.origins
    assert following.origins.all() == frozenset()
    assert following.origins.is_lost_recently("a", following.now + EXPECTED_S - 0.01)
    assert not following.origins.is_lost_recently("a", following.now + EXPECTED_S)


def test_origin_that_returns_is_not_lost() -> None:
    following = Following()
    following.table.delete_origin_route(following.put("a").key)
    following.put("a")
    assert following.origins.all() == {"a"}
    assert not following.origins.is_lost_recently("a", following.now)


def test_old_losses_are_forgotten() -> None:
    following = Following()
    for number in range(1_000):
        following.table.delete_origin_route(following.put(f"o{number}").key)
        following.now += 0.1
    assert len(following.origins._lost_at) <= EXPECTED_S / 0.1 + 1


def test_stale_routes_do_not_count() -> None:
    following = Following()
    stale = following.put("a", expires_at=200.0)
    assert "a" not in following.origins
    following.put("a")
    assert "a" in following.origins
    following.table.delete_origin_route(stale.key)
    assert "a" not in following.origins


def test_stored_route_that_becomes_stale_is_not_lost() -> None:
    following = Following()
    following.put("a")
    origins = following.origins = ReachableOrigins(following.table)
    following.put("a", expires_at=200.0)
    assert "a" not in origins
    assert not origins.is_lost_recently("a", following.now)


def test_offers_without_route_include_the_default_route_of_unknown_services() -> None:
    following = Following()
    following.put("a")
    for origin in ("a", "b", "c"):
        following.table.change_offers(origin, [Offer("s"), Offer(ANY_SERVICE)][: 1 + (origin == "c")])
    assert following.origins.without_route("s") == ["b", "c"]
    assert following.origins.without_route("unknown") == ["c"]
    assert following.origins.without_route("~topic") == []
