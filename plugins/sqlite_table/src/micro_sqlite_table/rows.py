"""Convert origin routes and offers to rows and back. Pure. A row that this module could not have written is rejected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from micro_core.contract import BadRequest, Offer, OriginRoute
from micro_core.contract.names import INTEREST_PREFIX, check_network_name, check_node_id, check_service_name
from micro_core.contract.table import ANY_SERVICE

MAX_METRIC_US = 2**31 - 1
"""Maximum metric and load in microseconds (36 minutes), at which sums of costs saturate."""

MAX_HOPS = 255
"""Maximum hop count of a route."""

MAX_SITE_CHARS = 253
"""Maximum length of the name of a site."""

MAX_VERSIONS = 16
MAX_VERSION_CHARS = 253
"""Maximum number of versions of an offer, and maximum length of each."""

MAX_CAPACITY = 2**31 - 1
"""Maximum number of instances of an offer. Routers accept no more from each other, either."""

MAX_LIST_CHARS = 32_000
"""Maximum length of a list of services or versions. A route with a longer list is not stored."""

Row = tuple[object, ...]
"""The values of one row, in the order of the columns."""

OfferKey = tuple[str, str]
"""The identity of an offer: origin and service."""

ROUTE_COLUMNS = ("origin", "gateway", "network", "metric", "site", "hops", "services", "expires_at")
OFFER_COLUMNS = ("origin", "service", "versions", "capacity", "load_us")
"""The columns of the two tables. The first two are the primary key. Lists are texts with one element per line."""


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


def route_to_row(route: OriginRoute, clocks: Clocks) -> Row | None:
    """Convert a route to a row; return None if `row_to_route` would reject it."""
    expires_at = None if route.expires_at is None else clocks.to_wall(route.expires_at)
    services = None if route.services is None else "\n".join(sorted(route.services))
    row: Row = (
        *(route.origin, route.gateway, route.network, route.metric, route.site, route.hops),
        services,
        expires_at,
    )
    return row if row_to_route(row, 0.0, clocks) is not None else None


def row_to_route(row: Row, lease_end: float, clocks: Clocks) -> OriginRoute | None:
    """Convert a row to a route that is valid until `lease_end` (wall clock) at most; return None if the row is invalid."""
    match row:
        case (
            str() as origin,
            str() as gateway,
            str() as network,
            int() as metric,
            str() as site,
            int() as hops,
            (None | str()) as services,
            (None | float()) as expires_at,
        ) if (
            _are_nodes(origin, gateway)
            and _is_network(network)
            and 0 <= metric <= MAX_METRIC_US
            and _is_text(site, MAX_SITE_CHARS)
            and 0 <= hops <= MAX_HOPS
            and (services is None or (len(services) <= MAX_LIST_CHARS and _are_services(_lines(services))))
            and (expires_at is None or math.isfinite(expires_at))
        ):
            return OriginRoute(
                origin=origin,
                gateway=gateway,
                network=network,
                metric=metric,
                site=site,
                hops=hops,
                services=None if services is None else frozenset(_lines(services)),
                expires_at=clocks.from_wall(lease_end if expires_at is None else min(lease_end, expires_at)),
            )
    return None


def offer_to_row(origin: str, offer: Offer) -> Row | None:
    """Convert an offer to a row; return None if `row_to_offer` would reject it."""
    row: Row = (origin, offer.service, "\n".join(offer.versions), offer.capacity, offer.load_us)
    found = row_to_offer(row)
    return row if found is not None and found[1] == offer else None


def row_to_offer(row: Row) -> tuple[str, Offer] | None:
    """Convert a row to an origin and its offer; return None if the row is invalid."""
    match row:
        case (
            str() as origin,
            str() as service,
            str() as versions,
            int() as capacity,
            int() as load_us,
        ) if (
            _are_nodes(origin)
            and _are_services([service])
            and len(versions) <= MAX_LIST_CHARS
            and len(_lines(versions)) <= MAX_VERSIONS
            and all(version and _is_text(version, MAX_VERSION_CHARS) for version in _lines(versions))
            and 0 <= capacity <= MAX_CAPACITY
            and 0 <= load_us <= MAX_METRIC_US
        ):
            return origin, Offer(service, _lines(versions), capacity, load_us)
    return None


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n")) if text else ()


def _are_nodes(*names: str) -> bool:
    try:
        for name in names:
            check_node_id(name)
    except BadRequest:
        return False
    return True


def _is_network(name: str) -> bool:
    try:
        check_network_name(name)
    except BadRequest:
        return False
    return True


def _are_services(names: Iterable[str]) -> bool:
    try:
        for name in names:
            if name != ANY_SERVICE:
                check_service_name(name.removeprefix(INTEREST_PREFIX))
    except BadRequest:
        return False
    return True


def _is_text(text: str, max_chars: int) -> bool:
    # The text is shown on terminals, so control characters are not allowed.
    return len(text) <= max_chars and text.isprintable()
