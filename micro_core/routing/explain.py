"""Why calls to a service go where they go: every way that is known, what it costs, and why it is used or is not. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route, RouteKey
from micro_core.routing.events import UNREACHABLE_US
from micro_core.routing.lookup import NEARLY_EQUAL, SHARED_UNDER_LOAD, counts_as_near
from micro_core.routing.rib_entry import Learned


class Standing(enum.Enum):
    """What has become of a way."""

    BEST = "best"
    """Calls go this way."""
    SHARES = "shares"
    """Nearly as good as the best: it gets its share of calls."""
    SPARE = "spare"
    """Usable, and worse: tried when the better ones refuse."""
    INFEASIBLE = "infeasible"
    """Its neighbour was not nearer to the origin than we were: it might lead back here (RFC 8966 section 3.5.1)."""
    UNREACHABLE = "unreachable"
    """Its cost has no number any more."""
    HELD = "held"
    """This site offers it and does not tell: it has been flapping."""
    DRAINING = "draining"
    """This site withdraws everything: the node is stopping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to a service. Costs in microseconds."""

    standing: Standing
    why: str
    origin: str
    """Node id."""
    site: str
    via: str
    """Node id of the next hop, empty for an instance of this site."""
    address: str
    path: tuple[str, ...]
    announced_us: int
    """What the neighbour says it costs from there, the load included."""
    load_us: int = 0
    """How long calls wait at the instances, as their origin tells it."""
    link_us: int
    """What the link to the neighbour costs."""
    total_us: int
    key: RouteKey
    """Of the route it makes in the table."""
    versions: tuple[str, ...] = ()
    waiting_us: int = 0
    """What this router's own calls have just been waiting there; part of the total."""
    stale_for_s: float | None = None
    """How long a way that was kept from before the node began again is used at most; None for all others, which somebody
    has told. Of a stale one only the total is known."""


def ways_of(learned: Mapping[str, Learned], link_us: Mapping[str, int]) -> list[Way]:
    """Every learned way to one service, by origin; the cheapest first, not compared with each other yet."""
    found = []
    for origin, known in learned.items():
        for peer, candidate in known.candidates.items():
            announce = candidate.announce
            standing, why = Standing.SPARE, ""
            if candidate.metric_us >= UNREACHABLE_US:
                standing, why = Standing.UNREACHABLE, "its cost has no number any more"
            elif not known.is_feasible(candidate):
                version, least_us = known.distance
                standing = Standing.INFEASIBLE
                why = (
                    "the neighbour tells an older state than one we used already"
                    if announce.at < version
                    else f"the neighbour is {announce.metric_us} µs from the origin, and we were {least_us} µs: "
                    "its way might lead back here"
                )
            found.append(
                Way(
                    standing=standing,
                    why=why,
                    origin=origin,
                    site=announce.site,
                    via=peer,
                    address="",
                    path=announce.path,
                    announced_us=announce.metric_us,
                    load_us=announce.load_us,
                    link_us=link_us.get(peer, 0),
                    total_us=candidate.metric_us,
                    versions=announce.versions,
                    key=candidate.route(peer).key,
                )
            )
    return sorted(found, key=lambda way: (way.total_us, way.origin, way.via))


def stale_ways(routes: Iterable[Route], serves: Callable[[Route], bool], now: float) -> list[Way]:
    """The ways of the stale ones among `routes`: spare ones where calls may take them (restart.py)."""
    return [
        Way(
            standing=Standing.SPARE if serves(route) else Standing.UNREACHABLE,
            why="" if serves(route) else "no link to its gateway stands since the node began again",
            origin=route.router,
            site=route.site,
            via=route.gateway,
            address="",
            path=(),
            announced_us=route.metric,
            link_us=0,
            total_us=route.metric,
            versions=tuple(filter(None, route.version.split(","))),
            key=route.key,
            stale_for_s=max(0.0, route.expires_at - now),
        )
        for route in routes
        if route.expires_at is not None
    ]


def compared(ways: list[Way], waiting_us: Callable[[RouteKey], int]) -> list[Way]:
    """The same, each usable way compared with the best: local ones count before all others, unless calls wait there.

    `waiting_us` is what the proxy sees calls wait along a route: the comparison is the one that calls meet (lookup.py).
    """
    usable = []
    for way in ways:
        if way.standing is Standing.SPARE:
            seen_us = waiting_us(way.key)
            usable.append(replace(way, waiting_us=seen_us, total_us=way.total_us + seen_us))
    usable.sort(key=lambda way: (not _is_near(way), way.total_us, way.origin, way.via))
    others = [way for way in ways if way.standing is not Standing.SPARE]
    if not usable:
        return others
    best = usable[0]
    told = []
    factor = SHARED_UNDER_LOAD if any(way.waiting_us for way in usable) else NEARLY_EQUAL
    for way in usable:
        if way is best:
            told.append(replace(way, standing=Standing.BEST, why="on this site" if not way.via else "the least cost"))
        elif _is_near(way) is _is_near(best) and way.total_us <= best.total_us * factor:
            why = f"{way.total_us - best.total_us} µs more than the best: nearly as good, so it shares"
            told.append(replace(way, standing=Standing.SHARES, why=why))
        elif not _is_near(way) and _is_near(best):
            told.append(replace(way, why="this site has an instance of its own"))
        else:
            told.append(replace(way, why=f"{way.total_us - best.total_us} µs worse than the best"))
    return told + others


def _is_near(way: Way) -> bool:
    return counts_as_near(NETWORK_LINK if way.via else LOCAL_LINK, way.total_us)
