"""The decision of one hop: which routes may carry this call, and the header it leaves with.

Pure. The proxy asks once a call; everything after follows the pair it made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from micro_core.contract.errors import DeadlineExceeded, LoopDetected, MicroError, RouteNotFound
from micro_core.contract.table import LOCAL_LINK, Route
from micro_core.wire.header import (
    CACHED_HEADER_BYTES,
    CACHED_HEADERS,
    CallHeader,
    decode_call_header,
    encode_header,
)

ROUTER_KEY = "micro-router"
"""Metadata that restricts a call to routes of this origin (a node id)."""

SITE_KEY = "micro-site"
"""Metadata that restricts a call to routes of this site."""

GATEWAY_KEY = "micro-gateway"
"""Metadata that restricts a call to routes through this next hop (a node id)."""


CACHED_ELAPSED_MS = 16
"""Time spent at this hop for which headers are remembered: a busy node takes a millisecond or two."""


def check_may_pass(header: CallHeader, node_id: str, *, at: str) -> MicroError | None:
    """Why this node must not forward the call at all, or None.

    Two independent guards against loops: the list of routers passed, and the count of hops left.
    """
    if node_id in header.via:
        return LoopDetected(
            f"the call to {header.service} has been at this node before", at=at, hint="micro network routes"
        )
    if header.hops_left <= 0:
        return LoopDetected(f"the call to {header.service} has used up its hops", at=at, hint="micro network graph")
    if header.timeout_ms <= 0:
        return DeadlineExceeded(f"no time was left for the call to {header.service}", at=at)
    return None


def usable_routes(header: CallHeader, routes: Sequence[Route], *, came_from: str) -> list[Route]:
    """The routes that may carry this call, in the given order.

    Left out: next hops that the call has passed or comes from, and what the caller's metadata excludes.
    """
    via = header.via
    if len(routes) == 1 and not header.metadata:  # nearly always
        only = routes[0]
        if only.link == LOCAL_LINK or (only.gateway not in via and only.gateway != came_from):
            return [only]
        return []
    found = [
        route
        for route in routes
        if route.link == LOCAL_LINK or (route.gateway not in via and route.gateway != came_from)
    ]
    metadata = header.metadata
    if not metadata or not found:
        return found
    router, site, gateway = metadata.get(ROUTER_KEY), metadata.get(SITE_KEY), metadata.get(GATEWAY_KEY)
    return [
        route
        for route in found
        if (not router or route.router == router)
        and (not site or route.site == site)
        and (not gateway or route.gateway == gateway)
    ]


def no_route(header: CallHeader, known: int, *, at: str) -> RouteNotFound:
    """The refusal when no route is left; `known` is how many there were before the call's own restrictions."""
    if known:
        return RouteNotFound(
            f"none of the {known} routes to {header.service} may carry this call",
            at=at,
            hint="micro network routes --service " + header.service,
        )
    return RouteNotFound(f"no route to {header.service}", at=at, hint="micro network services")


def onward_header(request: bytes, node_id: str, elapsed_ms: int) -> bytes:
    """The header for the next hop, made of the REQUEST's that came: one hop less, this router added to the path, the
    time that remains."""
    if len(request) <= CACHED_HEADER_BYTES and elapsed_ms <= CACHED_ELAPSED_MS:
        return _known_onward(request, node_id, elapsed_ms)
    return _onward(request, node_id, elapsed_ms)


def _onward(request: bytes, node_id: str, elapsed_ms: int) -> bytes:
    header = decode_call_header(request)
    return encode_header(
        header._replace(
            hops_left=header.hops_left - 1,
            via=(*header.via, node_id),
            timeout_ms=max(0, header.timeout_ms - elapsed_ms),
        )
    )


_known_onward = functools.lru_cache(CACHED_HEADERS)(_onward)
