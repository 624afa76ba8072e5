"""Which of several routes a call takes. Pure: the random source and the outstanding calls are handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from micro_core.spec.clock import Random
from micro_core.spec.table import LOCAL_LINK, Route, RouteKey

NEARLY_EQUAL = 1.25
"""Routes up to a quarter worse than the best share its calls: measurements are no better than that."""


def rank(routes: Sequence[Route], *, now: float, outstanding: Callable[[RouteKey], int], random: Random) -> list[Route]:
    """The routes to try, best first.

    Local routes come first. Among the routes nearly as good as the best, two are drawn and the one with fewer calls
    outstanding leads (power of two choices: nobody herds); the rest follow by metric.
    """
    alive = [route for route in routes if route.expires_at is None or route.expires_at > now]
    if len(alive) < 2:
        return alive
    alive.sort(key=lambda route: (route.link != LOCAL_LINK, route.metric))
    best = alive[0]
    bound = best.metric * NEARLY_EQUAL
    equal = [route for route in alive if route.link == best.link and route.metric <= bound]
    if len(equal) < 2:
        return alive
    first, second = _two_of(equal, random)
    leader = second if outstanding(second.key) < outstanding(first.key) else first
    alive.remove(leader)
    return [leader, *alive]


def _two_of(routes: Sequence[Route], random: Random) -> tuple[Route, Route]:
    one = random.randrange(0, len(routes))
    other = random.randrange(0, len(routes) - 1)
    return routes[one], routes[other if other < one else other + 1]
