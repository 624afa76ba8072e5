"""Rank the routes of a service for one call. Pure: the caller provides random numbers and call statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from micro_core.contract.clock import Random
from micro_core.contract.table import LOCAL_LINK, Route, RouteKey

OVERLOADED_US = 50_000
"""Instances of this site are not preferred any more if calls wait there for longer than this."""

LOAD_SHARING_FACTOR = 1.25
"""Routes whose cost is up to a quarter above the best one share its calls, since measurements are not more precise."""

SHARED_UNDER_LOAD = 2.5
"""If calls wait on a route, routes up to this multiple of the best cost share the calls.

The share of each route then follows from its outstanding calls. Otherwise all calls would switch from one route to the
other at once (docs/design/003-load.md).
"""


def rank(
    routes: Sequence[Route],
    *,
    now: float,
    outstanding: Callable[[RouteKey], int],
    waiting_us: Callable[[RouteKey], int],
    random: Random,
) -> list[Route]:
    """Return the routes to try, best first, without expired ones.

    The cost of a route is its metric plus the waiting time that this router measured on it. The advertised load alone is
    seconds old, so that all routers would react to it at once. Routes of this site come first, unless calls wait there.
    Of the routes that are nearly as good as the best one, two are drawn at random, and the one with fewer outstanding
    calls comes first (power of two choices). The others follow in the order of their cost.

    Args:
        routes: The routes of one service.
        now: Clock seconds, for the leases of stale routes.
        outstanding: Number of calls in progress on a route.
        waiting_us: Measured waiting time on a route in microseconds.
        random: Source of random numbers.
    """
    alive = [route for route in routes if route.expires_at is None or route.expires_at > now]
    if len(alive) < 2:
        return alive
    cost_us = {route.key: route.metric + waiting_us(route.key) for route in alive}

    def is_preferred(route: Route) -> bool:
        return is_preferred_local(route.link, cost_us[route.key])

    alive.sort(key=lambda route: (not is_preferred(route), cost_us[route.key]))
    best = alive[0]
    is_idle = all(cost_us[route.key] == route.metric for route in alive)
    limit = cost_us[best.key] * (LOAD_SHARING_FACTOR if is_idle else SHARED_UNDER_LOAD)
    equal = [route for route in alive if is_preferred(route) is is_preferred(best) and cost_us[route.key] <= limit]
    if len(equal) < 2:
        return alive
    first, second = _two_random(equal, random)
    leader = second if outstanding(second.key) < outstanding(first.key) else first
    alive.remove(leader)
    return [leader, *alive]


def is_preferred_local(link: str, cost_us: int) -> bool:
    """Return whether a route leads to an instance of this site at which calls do not wait too long."""
    return link == LOCAL_LINK and cost_us < OVERLOADED_US


def _two_random(routes: Sequence[Route], random: Random) -> tuple[Route, Route]:
    one = random.randrange(0, len(routes))
    other = random.randrange(0, len(routes) - 1)
    return routes[one], routes[other if other < one else other + 1]
