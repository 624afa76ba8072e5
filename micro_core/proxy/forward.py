"""The forwarding decision of one hop: which routes may carry a call, and the header that is sent to the next hop. Pure."""

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

REQUIRED_ROUTER_KEY = "micro-router"
"""Metadata key that restricts a call to routes of one origin (a node id)."""

REQUIRED_SITE_KEY = "micro-site"
"""Metadata key that restricts a call to routes of one site."""

REQUIRED_GATEWAY_KEY = "micro-gateway"
"""Metadata key that restricts a call to routes through one next hop (a node id)."""

_RESTRICTING_KEYS = (REQUIRED_ROUTER_KEY, REQUIRED_SITE_KEY, REQUIRED_GATEWAY_KEY)

CACHED_ELAPSED_MS = 16
"""Headers are cached only for calls that spent at most this time at this hop; a busy node takes 1 or 2 ms."""


def check_may_pass(header: CallHeader, node_id: str, *, at: str) -> MicroError | None:
    """Return the error for a call that this node must not forward, or None.

    Two independent checks prevent loops: the list of the routers that the call has passed, and the hop limit. `at`
    describes this node in the error.
    """
    if node_id in header.via:
        return LoopDetected(
            f"the call to {header.service} has passed this node before", at=at, hint="micro network routes"
        )
    if header.hops_left <= 0:
        return LoopDetected(
            f"the call to {header.service} has reached its hop limit", at=at, hint="micro network graph"
        )
    if header.timeout_ms <= 0:
        return DeadlineExceeded(f"the deadline of the call to {header.service} has passed", at=at)
    return None


def is_restricted(header: CallHeader) -> bool:
    """Return whether the caller has restricted the routes of a call. Other metadata, e.g. a trace id, does not."""
    metadata = header.metadata
    return any(key in metadata for key in _RESTRICTING_KEYS)


def usable_routes(header: CallHeader, routes: Sequence[Route], *, came_from: str) -> list[Route]:
    """Return the routes that may carry this call, in the given order.

    Excluded are routes whose next hop the call has passed or comes from, and those that the caller's metadata excludes.
    """
    via = header.via
    if len(routes) == 1 and not header.metadata:  # the common case, without a list comprehension
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
    router, site, gateway = (
        metadata.get(REQUIRED_ROUTER_KEY),
        metadata.get(REQUIRED_SITE_KEY),
        metadata.get(REQUIRED_GATEWAY_KEY),
    )
    return [
        route
        for route in found
        if (not router or route.router == router)
        and (not site or route.site == site)
        and (not gateway or route.gateway == gateway)
    ]


def no_route(header: CallHeader, found: int, *, at: str) -> RouteNotFound:
    """Return the error for a call without usable routes. `found` is the number of routes to its service."""
    if found:
        return RouteNotFound(
            f"none of the {found} routes to {header.service} may carry this call",
            at=at,
            hint="micro network routes --service " + header.service,
        )
    return RouteNotFound(f"no route to {header.service}", at=at, hint="micro network services")


def next_hop_header(request: bytes, node_id: str, elapsed_ms: int) -> bytes:
    """Return the header for the next hop: one hop less, this router added to the path, and the remaining time.

    `request` is the encoded header that was received, `elapsed_ms` the time that the call has spent at this hop.
    """
    if len(request) <= CACHED_HEADER_BYTES and elapsed_ms <= CACHED_ELAPSED_MS:
        return _cached_onward(request, node_id, elapsed_ms)
    return _encode_next_hop_header(request, node_id, elapsed_ms)


def _encode_next_hop_header(request: bytes, node_id: str, elapsed_ms: int) -> bytes:
    header = decode_call_header(request)
    return encode_header(
        header._replace(
            hops_left=header.hops_left - 1,
            via=(*header.via, node_id),
            timeout_ms=max(0, header.timeout_ms - elapsed_ms),
        )
    )


_cached_onward = functools.lru_cache(CACHED_HEADERS)(_encode_next_hop_header)
