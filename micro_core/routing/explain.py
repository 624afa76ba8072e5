"""Explain which routes calls to a service use: all candidates, their costs, and why each is used or not. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route, RouteKey
from micro_core.routing.events import UNREACHABLE_US
from micro_core.routing.lookup import LOAD_SHARING_FACTOR, destination_name, is_preferred_local
from micro_core.routing.rib_entry import RibEntry


class CandidateStatus(enum.Enum):
    """Whether and how a route candidate is used."""

    BEST = "best"
    """The best route."""
    SHARES = "shares"
    """It gets a share of the calls: nearly as good as the best route, or calls wait on all better routes."""
    SPARE = "spare"
    """Usable, but worse: it is tried when better routes refuse a call."""
    INFEASIBLE = "infeasible"
    """Possibly part of a loop: the neighbour was not nearer to the origin than this router (RFC 8966 section 3.5.1)."""
    UNREACHABLE = "unreachable"
    """Its metric is infinite, or it is stale and there is no link to its gateway."""
    SUPPRESSED = "suppressed"
    """A service of this site that is not advertised because it has been flapping."""
    DAMPED = "damped"
    """The link to the next hop has been flapping: it is used only if there is no other way."""
    DRAINING = "draining"
    """A service of this site that is withdrawn because the node is stopping."""


_USABLE = (CandidateStatus.SPARE, CandidateStatus.DAMPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCandidate:
    """One route to a service, and whether it is used. Costs are microseconds."""

    status: CandidateStatus
    why: str
    """The reason for the status, for people."""
    origin: str
    """Node id."""
    site: str
    via: str
    """Node id of the next hop. Empty for an instance of this site."""
    address: str
    path: tuple[str, ...]
    """Node ids from the origin to the next hop."""
    announced_us: int
    """Metric that the neighbour advertised for the origin, plus the load."""
    load_us: int = 0
    """Waiting time at the instances, as advertised by the origin."""
    link_us: int
    """Cost of the link to the neighbour."""
    total_us: int
    key: RouteKey
    """Key of the route in the table."""
    versions: tuple[str, ...] = ()
    waiting_us: int = 0
    """Waiting time that the calls of this router measured on the route. It is part of the total."""
    stale_for_s: float | None = None
    """For a stale route: the seconds until its lease expires. Only its total cost is known. None for other routes."""


def candidates_of(
    entries: Iterable[RibEntry], service: str, link_us: Mapping[str, int], damped: Collection[str] = ()
) -> list[RouteCandidate]:
    """Return all learned routes to one service in the order of their cost. `compare` determines their final status.

    Args:
        entries: The routing information base. Origins that do not offer the service are skipped.
        service: Name of the service.
        link_us: Cost of the link to each neighbour.
        damped: The neighbours whose links have been flapping.
    """
    found = []
    for entry in entries:
        offered = entry.offers.entries.get(service) if entry.offers is not None else None
        if offered is None:
            continue
        offer = offered.offer
        for peer, adjacency in entry.adjacencies.items():
            if not adjacency.path or (adjacency.view is not None and service not in adjacency.view):
                continue
            total_us = adjacency.metric_us + link_us.get(peer, 0)
            status, why = CandidateStatus.SPARE, ""
            if total_us >= UNREACHABLE_US:
                status, why = CandidateStatus.UNREACHABLE, "its metric is infinite"
            elif not entry.is_feasible(adjacency):
                status = CandidateStatus.INFEASIBLE
                why = (
                    "the neighbour advertises an older state than this router has already used"
                    if adjacency.seqno < entry.fd_seqno
                    else f"possible loop: the neighbour is at least {adjacency.min_metric_us} µs from the origin, "
                    f"and this router was only {entry.fd_metric_us} µs from it"
                )
            elif peer in damped:
                status = CandidateStatus.DAMPED
                why = "the link to the next hop has been flapping: it is used only if there is no other way"
            found.append(
                RouteCandidate(
                    status=status,
                    why=why,
                    origin=entry.origin,
                    site=entry.site,
                    via=peer,
                    address="",
                    path=adjacency.path,
                    announced_us=adjacency.metric_us + offer.load_us,
                    load_us=offer.load_us,
                    link_us=link_us.get(peer, 0),
                    total_us=min(total_us + offer.load_us, UNREACHABLE_US),
                    versions=offer.versions,
                    key=RouteKey(service, "", peer, entry.network, entry.origin, NETWORK_LINK),
                )
            )
    return sorted(found, key=lambda candidate: (candidate.total_us, candidate.origin, candidate.via))


def stale_candidates(routes: Iterable[Route], is_usable: Callable[[Route], bool], now: float) -> list[RouteCandidate]:
    """Return the stale routes among `routes` as candidates, with status SPARE if `is_usable` (graceful_restart.py)."""
    return [
        RouteCandidate(
            status=CandidateStatus.SPARE if is_usable(route) else CandidateStatus.UNREACHABLE,
            why="" if is_usable(route) else "no link to its gateway since the node restarted",
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


def compare(candidates: list[RouteCandidate], waiting_us: Callable[[RouteKey], int]) -> list[RouteCandidate]:
    """Return the candidates, best first, with their final status: usable ones are compared with the best one.

    `waiting_us` returns the waiting time that the proxy measured on a route. It does not change the order, but the calls for
    which a destination has no space go to the next one (proxy/route_choice.py).
    """
    usable = []
    for candidate in candidates:
        if candidate.status in _USABLE:
            measured_us = waiting_us(candidate.key)
            usable.append(replace(candidate, waiting_us=measured_us, total_us=candidate.total_us + measured_us))
    usable.sort(key=lambda one: (not _is_preferred(one), _cost_us(one), one.origin, one.via))
    others = [candidate for candidate in candidates if candidate.status not in _USABLE]
    if not usable:
        return others
    best = usable[0]
    compared = []
    better: set[str] = set()
    is_waiting = True
    for candidate in usable:
        extra_us = _cost_us(candidate) - _cost_us(best)
        destination = destination_name(candidate.site, candidate.origin)
        is_next = is_waiting and destination not in better
        is_waiting = is_waiting and candidate.waiting_us > 0
        better.add(destination)
        if candidate is best:
            why = "lowest cost" if candidate.via else "on this site"
            if candidate.status is CandidateStatus.DAMPED:
                why = "the only way, although the link to the next hop has been flapping"
            compared.append(replace(candidate, status=CandidateStatus.BEST, why=why))
        elif (
            _is_preferred(candidate) is _is_preferred(best)
            and _cost_us(candidate) <= _cost_us(best) * LOAD_SHARING_FACTOR
        ):
            why = f"{extra_us} µs more than the best route: nearly as good, so it shares the calls"
            compared.append(replace(candidate, status=CandidateStatus.SHARES, why=why))
        elif is_next and candidate.status is not CandidateStatus.DAMPED:
            why = f"{extra_us} µs more than the best route: it gets calls that would wait for too long on better routes"
            compared.append(replace(candidate, status=CandidateStatus.SHARES, why=why))
        elif candidate.status is CandidateStatus.DAMPED:
            compared.append(candidate)
        elif not _is_preferred(candidate) and _is_preferred(best):
            compared.append(replace(candidate, why="this site has an instance of its own"))
        else:
            compared.append(replace(candidate, why=f"{extra_us} µs worse than the best route"))
    return compared + others


def _cost_us(candidate: RouteCandidate) -> int:
    """Return the cost by which routes are ordered: the waiting time that the proxy measured limits the calls instead."""
    return candidate.total_us - candidate.waiting_us


def _is_preferred(candidate: RouteCandidate) -> bool:
    return is_preferred_local(NETWORK_LINK if candidate.via else LOCAL_LINK, candidate.total_us)
