"""The table role: the routes of a node, indexed by service."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

LOCAL_LINK = "local"
"""`Route.link` of a service on the site of this node."""

NETWORK_LINK = "network"
"""`Route.link` of a service that is reached over the tunnel."""

ANY_SERVICE = "*"
"""`Route.service` of a default route."""


class RouteKey(NamedTuple):
    """The identity of a route: all fields but the metric and the informational ones."""

    service: str
    address: str
    gateway: str
    network: str
    router: str
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to reach a service."""

    service: str
    """Name of the service; ANY_SERVICE for a default route."""
    address: str
    """Address of the instance for a local route; empty for a remote route."""
    gateway: str
    """Node id of the next hop for a remote route; empty for a local route."""
    network: str
    """Name of the network to which the route belongs."""
    router: str
    """Node id of the origin."""
    link: str
    """LOCAL_LINK or NETWORK_LINK."""
    metric: int
    """Cost in microseconds, added up over all hops. Lower is better."""
    site: str = ""
    """Site of the origin, for display and filters."""
    version: str = ""
    """Version of the service, for display and filters."""
    hops: int = 0
    """Number of nodes on the route, for display and filters."""
    load_us: int = 0
    """The part of the metric that is load: how long calls wait at the instances, in microseconds."""
    expires_at: float | None = None
    """For a *stale* route, the time (`Clock.now`) at which it is removed; None for other routes.

    A stale route was kept from before a restart of the node, and no neighbour has advertised it since. Other routes have no
    expiry of their own: local routes follow the registry, and learned routes the lease of the neighbour."""
    key: RouteKey = field(init=False, compare=False, repr=False)
    """The identity of the route, computed once because every call uses it."""

    def __post_init__(self) -> None:
        key = RouteKey(self.service, self.address, self.gateway, self.network, self.router, self.link)
        object.__setattr__(self, "key", key)

    @property
    def is_stale(self) -> bool:
        """Whether the route was kept from before a restart and has not been advertised since."""
        return self.expires_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteQuery:
    """A filter of routes. An empty field matches every route."""

    service: str = ""
    address: str = ""
    gateway: str = ""
    network: str = ""
    router: str = ""
    link: str = ""

    def matches(self, route: Route) -> bool:
        """Return whether all fields that are not empty are equal to those of `route`."""
        return (
            (not self.service or self.service == route.service)
            and (not self.address or self.address == route.address)
            and (not self.gateway or self.gateway == route.gateway)
            and (not self.network or self.network == route.network)
            and (not self.router or self.router == route.router)
            and (not self.link or self.link == route.link)
        )


class RouteEventKind(enum.Enum):
    """The kind of change of a table."""

    CREATE = "create"
    """A route with a new key was added."""
    UPDATE = "update"
    """A route was replaced by a different one with the same key, e.g. with another metric."""
    DELETE = "delete"
    """A route was removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEvent:
    """A change of the table, reported after it took effect."""

    kind: RouteEventKind
    """The kind of change."""
    route: Route
    """The route after the change; for DELETE, the removed route."""


class Table(Protocol):
    """The routes of a node, in memory. All methods except `start` and `close` are synchronous, because every call looks up a route.

    A driver that persists routes writes them in the background, and contains the stored routes after `start`. It may set
    `expires_at` on stored routes; the router does not extend that time. Watchers receive every change, including changes
    of the metric.
    """

    async def start(self) -> None:
        """Load stored routes, if the driver persists them. Called once, before all other methods.

        Raises:
            ConfigError: The storage cannot be used, e.g. because its file cannot be opened.
        """
        ...

    async def close(self) -> None:
        """Write pending changes, if the driver persists routes, and release all resources. Safe to call twice."""
        ...

    def put(self, route: Route) -> None:
        """Create or replace the route with the key of `route`. An equal route is not a change.

        Does not block: a driver that persists routes writes them later.
        """
        ...

    def delete(self, key: RouteKey) -> bool:
        """Remove a route. Return False if there is no route with this key. Does not block."""
        ...

    def lookup(self, service: str) -> tuple[Route, ...]:
        """Return the routes of exactly this service, ordered by metric and key. Does not include default routes.

        Called for every call that the node forwards, so it takes constant time once the result is cached.
        """
        ...

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`, or all routes, ordered by service, metric and key."""
        ...

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change, in the order of the changes. Return a function that ends the watch.

        The callback is called in the event loop and must not block. It may change the table; its change is reported after
        the current one. An exception of a callback is logged and counted, and does not affect other watchers. The returned
        function may be called twice.
        """
        ...
