"""Routes as rows, and back. Pure. What comes from a file is believed only where it could have been written so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from micro_core.contract import BadRequest, Route
from micro_core.contract.names import INTEREST_PREFIX, check_network_name, check_node_id, check_service_name
from micro_core.contract.table import ANY_SERVICE, NETWORK_LINK

MAX_METRIC_US = 2**31 - 1
"""Half an hour of microseconds: where sums of costs stop."""

MAX_HOPS = 255
MAX_SITE_CHARS = 253
MAX_VERSION_CHARS = 4_200
"""Sixteen versions of 253 characters, and the commas between."""

Row = tuple[object, ...]
"""Of the columns in `COLUMNS`."""

COLUMNS = ("service", "gateway", "network", "router", "metric", "site", "version", "hops", "expires_at")
KEY_COLUMNS = COLUMNS[:4]
"""Address and link are the same for all learned routes."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both clocks at one moment. The file has times of the wall clock: the other one means nothing to a later process."""

    now: float
    wall: float

    def to_wall(self, at: float) -> float:
        return at - self.now + self.wall

    def from_wall(self, at: float) -> float:
        return at - self.wall + self.now


def row_of(route: Route, clocks: Clocks) -> Row | None:
    """`route` as a row; None for one that would not be believed when it is read."""
    if route.link != NETWORK_LINK or route.address:
        return None
    expires_at = None if route.expires_at is None else clocks.to_wall(route.expires_at)
    names = (route.service, route.gateway, route.network, route.router)
    row: Row = (*names, route.metric, route.site, route.version, route.hops, expires_at)
    return row if route_of(row, 0.0, clocks) is not None else None


def route_of(row: Row, lease_end: float, clocks: Clocks) -> Route | None:
    """The route of a row, good until `lease_end` (wall clock) at most; None for a row that nobody here has written."""
    match row:
        case (
            str() as service,
            str() as gateway,
            str() as network,
            str() as router,
            int() as metric,
            str() as site,
            str() as version,
            int() as hops,
            (None | float()) as expires_at,
        ) if (
            _are_names(service, gateway, network, router)
            and 0 <= metric <= MAX_METRIC_US
            and _is_text(site, MAX_SITE_CHARS)
            and _is_text(version, MAX_VERSION_CHARS)
            and 0 <= hops <= MAX_HOPS
            and (expires_at is None or math.isfinite(expires_at))
        ):
            return Route(
                service=service,
                address="",
                gateway=gateway,
                network=network,
                router=router,
                link=NETWORK_LINK,
                metric=metric,
                site=site,
                version=version,
                hops=hops,
                expires_at=clocks.from_wall(lease_end if expires_at is None else min(lease_end, expires_at)),
            )
    return None


def _are_names(service: str, gateway: str, network: str, router: str) -> bool:
    try:
        if service != ANY_SERVICE:
            check_service_name(service.removeprefix(INTEREST_PREFIX))
        check_node_id(gateway)
        check_network_name(network)
        check_node_id(router)
    except BadRequest:
        return False
    return True


def _is_text(text: str, most: int) -> bool:
    # People see it on their terminals.
    return len(text) <= most and text.isprintable()
