"""The table role: the routes a node knows, indexed by service."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

LOCAL_LINK = "local"
"""`Route.link` of a service on this node's own network."""

NETWORK_LINK = "network"
"""`Route.link` of a service that is reached through the tunnel."""

ANY_SERVICE = "*"
"""`Route.service` of a default route."""


class RouteKey(NamedTuple):
    """What makes two routes the same route (the metric does not)."""

    service: str
    address: str
    gateway: str
    network: str
    router: str
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to reach a service.

    `address` is the instance's address for a local route, empty for a remote one. `gateway` is the node id
    of the next hop, empty for a local route. `router` is the node id of the origin. `metric` is the cost in
    microseconds, added up along the way: lower is better. `site`, `version` and `hops` inform people and
    filters.
    """

    service: str
    address: str
    gateway: str
    network: str
    router: str
    link: str
    metric: int
    site: str = ""
    version: str = ""
    hops: int = 0
    expires_at: float | None = None
    """Clock seconds at which a *stale* route goes: one kept from an earlier life of the node, which no neighbour has told
    since. None for all others: local routes follow the registry, learned ones the lease of their neighbour."""
    key: RouteKey = field(init=False, compare=False, repr=False)
    """Made once: it is asked for with every call."""

    def __post_init__(self) -> None:
        key = RouteKey(self.service, self.address, self.gateway, self.network, self.router, self.link)
        object.__setattr__(self, "key", key)

    @property
    def is_stale(self) -> bool:
        """Whether it was kept from an earlier life of the node, and nobody has told it since."""
        return self.expires_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteQuery:
    """A filter; an empty field matches all."""

    service: str = ""
    address: str = ""
    gateway: str = ""
    network: str = ""
    router: str = ""
    link: str = ""

    def matches(self, route: Route) -> bool:
        return (
            (not self.service or self.service == route.service)
            and (not self.address or self.address == route.address)
            and (not self.gateway or self.gateway == route.gateway)
            and (not self.network or self.network == route.network)
            and (not self.router or self.router == route.router)
            and (not self.link or self.link == route.link)
        )


class RouteEventKind(enum.Enum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEvent:
    """A change of the table, told to its watchers after it stands."""

    kind: RouteEventKind
    route: Route


class Table(Protocol):
    """Synchronous and in memory to the caller: it is read once a call.

    A driver that persists does so behind this face: after `start` it holds what it has kept. What it gives back of an
    earlier life may have a lease (`expires_at`) that it had not; the router makes it no longer. Every change, of the
    metric too, is told to watchers.
    """

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def put(self, route: Route) -> None:
        """Create or replace the route with this key."""
        ...

    def delete(self, key: RouteKey) -> bool:
        """Remove a route; False when there was none."""
        ...

    def lookup(self, service: str) -> tuple[Route, ...]:
        """The routes of exactly this service, best metric first; empty when there are none."""
        ...

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Routes that match, ordered by service, then metric, then key: a stable listing."""
        ...

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change; returns the function that ends it."""
        ...
