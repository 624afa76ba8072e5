"""Which of several routes a call takes. Pure: the random source and the outstanding calls are handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from micro_core.contract.clock import Random
from micro_core.contract.table import LOCAL_LINK, Route, RouteKey

OVERLOADED_US = 50_000
"""An instance of this site at which calls wait longer than this is no better for being near."""

NEARLY_EQUAL = 1.25
"""Routes up to a quarter worse than the best share its calls: measurements are no better than that."""


SHARED_UNDER_LOAD = 2.5
"""And where calls are seen to wait, routes up to so many times the best do: the share of each then follows from the calls
outstanding, instead of all calls jumping from one to the other (docs/design/003-load.md)."""


def rank(
    routes: Sequence[Route],
    *,
    now: float,
    outstanding: Callable[[RouteKey], int],
    waiting_us: Callable[[RouteKey], int],
    random: Random,
) -> list[Route]:
    """The routes to try, best first.

    A route costs its metric, and what this router has just seen calls wait there (`waiting_us`): the load that routers tell each
    other is seconds old, and all who heard of it would turn round at once. Routes of this site come first, unless
    calls wait there. Among the routes nearly as good as the best, two are drawn and the one with fewer calls outstanding leads
    (power of two choices: nobody herds); the rest follow by cost.
    """
    alive = [route for route in routes if route.expires_at is None or route.expires_at > now]
    if len(alive) < 2:
        return alive
    cost_us = {route.key: route.metric + waiting_us(route.key) for route in alive}

    def is_near(route: Route) -> bool:
        return counts_as_near(route.link, cost_us[route.key])

    alive.sort(key=lambda route: (not is_near(route), cost_us[route.key]))
    best = alive[0]
    is_calm = all(cost_us[route.key] == route.metric for route in alive)
    bound = cost_us[best.key] * (NEARLY_EQUAL if is_calm else SHARED_UNDER_LOAD)
    equal = [route for route in alive if is_near(route) is is_near(best) and cost_us[route.key] <= bound]
    if len(equal) < 2:
        return alive
    first, second = _two_of(equal, random)
    leader = second if outstanding(second.key) < outstanding(first.key) else first
    alive.remove(leader)
    return [leader, *alive]


def counts_as_near(link: str, cost_us: int) -> bool:
    """Whether a route is better than all others for being of this site."""
    return link == LOCAL_LINK and cost_us < OVERLOADED_US


def _two_of(routes: Sequence[Route], random: Random) -> tuple[Route, Route]:
    one = random.randrange(0, len(routes))
    other = random.randrange(0, len(routes) - 1)
    return routes[one], routes[other if other < one else other + 1]
