"""The endpoints for services and routes: current ones, why they were chosen, and earlier ones.

Nodes and router processes serve them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import NotFound
from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import Route, RouteKey, RouteQuery
from micro_core.contract.tunnel import LinkInfo
from micro_core.node.views import (
    candidate_view,
    change_view,
    damping_view,
    flap_view,
    observed_view,
    route_view,
    services_view,
)
from micro_core.routing.router import Router
from micro_core.rpc.server import Server

ROUTER_ENDPOINTS = (
    "Network.Services",
    "Network.Routes",
    "Network.Explain",
    "Network.Flaps",
    "Network.Events",
    "Network.Past",
    "Network.Release",
)

MAX_EVENTS = 1_000
"""Maximum number of changes in one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesRequest:
    """A filter; empty fields match all routes. With `topics`, the routes of interest in topics are included."""

    service: str = ""
    address: str = ""
    gateway: str = ""
    router: str = ""
    network: str = ""
    link: str = ""
    topics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequest:
    """The name of one service."""

    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """A range of changes by number; see `RouterEndpoints.events`."""

    after: int = -1
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRequest:
    """A time in the past, and a service, or all services if it is empty."""

    ago_s: float
    service: str = ""


class RouterEndpoints:
    """The endpoints of one router.

    `names()` returns the names of known nodes by id, `links()` the links of this node, and `waiting_us(key)` how much longer
    than usual recent calls along a route have waited, in microseconds.
    """

    def __init__(
        self,
        *,
        router: Router,
        node_name: str,
        links: Callable[[], Sequence[LinkInfo]],
        names: Callable[[], Awaitable[dict[str, str]]],
        clock: Clock,
        waiting_us: Callable[[RouteKey], int] = lambda _: 0,
    ) -> None:
        self._router = router
        self._node_name = node_name
        self._links = links
        self._names = names
        self._clock = clock
        self._waiting_us = waiting_us

    def add_to(self, server: Server) -> None:
        """Add ROUTER_ENDPOINTS to `server`."""
        handlers: tuple[Callable[..., Any], ...] = (
            self.services,
            self.routes,
            self.explain,
            self.flaps,
            self.events,
            self.past,
            self.release,
        )
        for name, handler in zip(ROUTER_ENDPOINTS, handlers, strict=True):
            server.add(name, handler, idempotent=handler != self.release)

    async def services(self) -> dict[str, Any]:
        """Return all services that can be called through this node."""
        return {"services": services_view(self._router.table.list())}

    async def routes(self, request: RoutesRequest) -> dict[str, Any]:
        """Return the routes that match the filter, best first within a service."""
        query = RouteQuery(
            service=request.service,
            address=request.address,
            gateway=request.gateway,
            router=request.router,
            network=request.network,
            link=request.link,
        )
        now, names = self._clock.now(), await self._names()
        wanted = [
            route
            for route in self._router.table.list(query)
            if request.topics or not route.service.startswith(INTEREST_PREFIX)
        ]
        return {"routes": [route_view(route, names, now) for route in wanted]}

    async def explain(self, request: ServiceRequest) -> dict[str, Any]:
        """Return every route candidate of a service, best first, with the cost of its link term by term."""
        links, names = {link.peer: link for link in self._links()}, await self._names()
        found = self._router.explain(request.service, self._waiting_us)
        candidates = [
            candidate_view(one, names, links.get(one.via), self._router.configured_us(one.via)) for one in found
        ]
        return {"service": request.service, "node": self._node_name, "candidates": candidates}

    async def flaps(self) -> dict[str, Any]:
        """Return the services that have been flapping: those of this site, which are damped here, and those of other origins."""
        now, names, policy = self._clock.now(), await self._names(), self._router.damping
        elsewhere = self._router.remote_flaps()
        penalties: dict[str, float] = {}
        for origin, flap in elsewhere:
            penalties[origin] = penalties.get(origin, 0.0) + flap.penalty
        return {
            "origin": self._node_name,
            "policy": damping_view(policy),
            "flaps": [flap_view(flap, policy, now) for flap in self._router.flaps()],
            "elsewhere": [
                {"router": origin, "router_name": names.get(origin, ""), **observed_view(flap)}
                for origin, flap in elsewhere
            ],
            "origins": [
                {"router": origin, "router_name": names.get(origin, ""), "penalty": round(penalty)}
                for origin, penalty in sorted(penalties.items(), key=lambda pair: (-pair[1], pair[0]))
            ],
        }

    async def release(self, request: ServiceRequest) -> dict[str, Any]:
        """End the suppression of a service of this site. Raises NotFound if it is not suppressed."""
        if not self._router.reuse(request.service):
            raise NotFound(f"{request.service} is not suppressed by this node", hint="micro network flaps")
        return {"released": request.service}

    async def events(self, request: EventsRequest) -> dict[str, Any]:
        """Return at most `limit` changes of the table after number `after`, or the last ones if `after` is negative."""
        journal, names = self._router.journal, await self._names()
        limit = max(0, min(request.limit, MAX_EVENTS))
        found = journal.last(limit) if request.after < 0 else journal.since(request.after, limit)
        return {"events": [change_view(change, names) for change in found], "now": self._clock.wall()}

    async def past(self, request: PastRequest) -> dict[str, Any]:
        """Return the table as it was `ago_s` seconds ago, and the differences to the current one.

        Raises:
            NotFound: the journal does not reach back that far.
        """
        journal, now, names = self._router.journal, self._clock.wall(), await self._names()
        at = now - request.ago_s
        if at < journal.reaches_back_to:
            reach_s = now - journal.reaches_back_to
            raise NotFound(f"the journal of this node reaches back {reach_s:.0f} s, not {request.ago_s:.0f} s")

        def shown(routes: Iterable[Route]) -> list[dict[str, Any]]:
            return [route_view(route, names, self._clock.now()) for route in routes]

        added, removed, changed = journal.difference(at, request.service)
        table = sorted(
            journal.table_at(at, request.service), key=lambda route: (route.service, route.metric, route.key)
        )
        pairs = [
            {"before": before, "after": after}
            for before, after in zip(
                shown(before for before, _ in changed), shown(after for _, after in changed), strict=True
            )
        ]
        return {"at": at, "routes": shown(table), "added": shown(added), "removed": shown(removed), "changed": pairs}
