"""The table role: local routes, routes to origins, and the offers of origins, joined to routes by service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class OriginRouteKey(NamedTuple):
    """The identity of an origin route."""

    origin: str
    gateway: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginRoute:
    """How to reach an origin, i.e. a node that offers services, through one neighbour."""

    origin: str
    """Node id."""
    gateway: str
    """Node id of the next hop."""
    metric: int
    """Cost in microseconds, added up over all hops, without the load of a service."""
    network: str
    """Name of the network of the origin."""
    site: str = ""
    """Site of the origin."""
    hops: int = 0
    """Number of nodes on the route."""
    services: frozenset[str] | None = None
    """The services of the origin that can be reached through this neighbour; None means all."""
    expires_at: float | None = None
    """As in `Route.expires_at`: set for stale routes only."""

    @property
    def key(self) -> OriginRouteKey:
        """The identity of the route."""
        return OriginRouteKey(self.origin, self.gateway)

    @property
    def is_stale(self) -> bool:
        """As `Route.is_stale`."""
        return self.expires_at is not None


@dataclass(frozen=True, slots=True)
class Offer:
    """A service that an origin offers. Interests in topics and the default route are offers, too."""

    service: str
    versions: tuple[str, ...] = ()
    capacity: int = 0
    """Approximate number of instances."""
    load_us: int = 0
    """Waiting time of calls at the instances in microseconds."""


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


@dataclass(frozen=True, slots=True)
class LocalRouteChanged:
    """A route to an instance of this site was added (`before` is None), replaced, or removed (`after` is None)."""

    before: Route | None
    after: Route | None


@dataclass(frozen=True, slots=True)
class OriginRouteChanged:
    """An origin route was added (`before` is None), replaced, or removed (`after` is None)."""

    before: OriginRoute | None
    after: OriginRoute | None


@dataclass(frozen=True, slots=True)
class OffersChanged:
    """Offers of an origin changed: pairs of the offer before and after. None stands for a missing one."""

    origin: str
    changes: tuple[tuple[Offer | None, Offer | None], ...]


TableEvent = LocalRouteChanged | OriginRouteChanged | OffersChanged
"""A change of the table, reported after it took effect."""


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
        """Create or replace a route to an instance of this site. An equal route is not a change. Does not block."""
        ...

    def delete(self, key: RouteKey) -> bool:
        """Remove a route to an instance of this site. Return False if there is none with this key. Does not block."""
        ...

    def put_origin_route(self, route: OriginRoute) -> None:
        """Create or replace the origin route with the key of `route`. An equal one is not a change. Does not block."""
        ...

    def delete_origin_route(self, key: OriginRouteKey) -> bool:
        """Remove an origin route. Return False if there is none with this key. The offers are kept. Does not block."""
        ...

    def change_offers(
        self, origin: str, changed: Sequence[Offer] = (), removed: Sequence[str] = (), *, is_complete: bool = False
    ) -> None:
        """Remove the services `removed` of an origin, then add or replace the offers `changed`. Does not block.

        With `is_complete`, `changed` contains all offers of the origin, and all others are removed.
        """
        ...

    def lookup(self, service: str) -> tuple[Route, ...]:
        """Return the routes of exactly this service, ordered by metric and key. Does not include default routes.

        Called for every call that the node forwards, so it takes constant time once the result is cached.
        """
        ...

    def origin_routes(self) -> list[OriginRoute]:
        """Return all origin routes, ordered by origin, metric and gateway."""
        ...

    def origins(self) -> list[str]:
        """Return the node ids of all origins that have an origin route or offers, in alphabetical order."""
        ...

    def interests(self) -> list[str]:
        """Return the services with a route or an offer that are interests in topics (`~topic`), in alphabetical order."""
        ...

    def origins_of(self, service: str) -> tuple[str, ...]:
        """Return the node ids of the origins that offer a service, in alphabetical order. They may have no route now.

        Takes constant time for a service that few origins offer. Instances of this site are not included.
        """
        ...

    def offers(self, origin: str) -> list[Offer]:
        """Return the offers of an origin, ordered by service. Empty for an unknown origin."""
        ...

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match `query`, or all routes, ordered by service, metric and key."""
        ...

    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change, in the order of the changes. Return a function that ends the watch.

        The callback is called in the event loop and must not block. It may change the table; its change is reported after
        the current one. An exception of a callback is logged and counted, and does not affect other watchers. The returned
        function may be called twice.
        """
        ...
