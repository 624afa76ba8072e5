"""Convert routes to rows and back. Pure. A row that this module could not have written is rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass

from micro_core.contract import BadRequest, Route
from micro_core.contract.names import INTEREST_PREFIX, check_network_name, check_node_id, check_service_name
from micro_core.contract.table import ANY_SERVICE, NETWORK_LINK

MAX_METRIC_US = 2**31 - 1
"""Maximum metric in microseconds (36 minutes), at which sums of costs saturate."""

MAX_HOPS = 255
"""Maximum hop count of a route."""

MAX_SITE_CHARS = 253
"""Maximum length of the name of a site."""

MAX_VERSION_CHARS = 4_200
"""Maximum length of the version list: 16 versions of 253 characters, separated by commas."""

Row = tuple[object, ...]
"""The values of one row, in the order of `COLUMNS`."""

COLUMNS = ("service", "gateway", "network", "router", "metric", "site", "version", "hops", "expires_at")
KEY_COLUMNS = COLUMNS[:4]
"""The columns of the primary key. Address and link are the same for all learned routes."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both clocks at the same moment, in seconds. The file stores wall-clock times, which are valid in later processes."""

    now: float
    wall: float

    def to_wall(self, at: float) -> float:
        """Convert a time of the monotonic clock to the wall clock."""
        return at - self.now + self.wall

    def from_wall(self, at: float) -> float:
        """Convert a wall-clock time to the monotonic clock."""
        return at - self.wall + self.now


def route_to_row(route: Route, clocks: Clocks) -> Row | None:
    """Convert a route to a row; return None if `row_to_route` would reject it."""
    if route.link != NETWORK_LINK or route.address:
        return None
    expires_at = None if route.expires_at is None else clocks.to_wall(route.expires_at)
    names = (route.service, route.gateway, route.network, route.router)
    row: Row = (*names, route.metric, route.site, route.version, route.hops, expires_at)
    return row if row_to_route(row, 0.0, clocks) is not None else None


def row_to_route(row: Row, lease_end: float, clocks: Clocks) -> Route | None:
    """Convert a row to a route that is valid until `lease_end` (wall clock) at most; return None if the row is invalid."""
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


def _is_text(text: str, max_chars: int) -> bool:
    # The text is shown on terminals, so control characters are not allowed.
    return len(text) <= max_chars and text.isprintable()
