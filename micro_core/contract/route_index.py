"""Local routes, origin routes and offers, joined to routes by service, for table drivers.

A route to a service of another site is the join of an origin route and an offer. It is created when it is looked up, so the
index stores each offer once, however many neighbours lead to its origin. The answers of `lookup` are cached. A change of an
origin route marks the cached answers of this origin as outdated with one flag, so its cost does not depend on the number
of services.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from micro_core.contract.driver import Counters
from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import (
    LOCAL_LINK,
    NETWORK_LINK,
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    OriginRouteKey,
    Route,
    RouteKey,
    RouteQuery,
)
from micro_core.contract.table_watchers import TableWatchers, Watcher


class RouteIndex:
    """Implements all methods of `Table` except `start` and `close`. A driver of a table inherits from it.

    Args:
        logger: The logger of the context, for exceptions of watchers.
        counters: The counters of the context. Exceptions of watchers are counted as `table_watcher_failed`.
    """

    def __init__(self, *, logger: logging.Logger, counters: Counters) -> None:
        self._logger = logger
        self._counters = counters
        # Invariant: no inner dict is empty.
        self._local: dict[str, dict[RouteKey, Route]] = {}
        self._origin_routes: dict[str, dict[str, OriginRoute]] = {}
        self._offers: dict[str, dict[str, Offer]] = {}
        self._origins: dict[str, str | tuple[str, ...]] = {}
        """The origins that offer a service, by service. Most services have one, which then needs no tuple."""
        self._interests: dict[str, int] = {}
        """Number of local routes and offers of each interest in a topic. There are few of them among many services."""
        self._answers: dict[str, _Answer] = {}
        """Cached lookups of services that have routes or offers."""
        self._versions: dict[str, _OriginVersion] = {}
        """The current version of the origins that are part of a cached answer."""
        self._watchers = TableWatchers(logger=logger, counters=counters)

    # ----------------------------------------------------------------- changes

    def put(self, route: Route) -> None:
        """Create or replace the route of this site with the key of `route`. An equal route is not a change."""
        key = route.key
        routes = self._local.setdefault(route.service, {})
        before = routes.get(key)
        if before == route:
            return
        routes[key] = route
        if before is None:
            self._count_interest(route.service, 1)
        self._service_changed(route.service)
        self._watchers.notify(LocalRouteChanged(before, route))

    def delete(self, key: RouteKey) -> bool:
        """Remove a route of this site. Return False if there is none with this key."""
        routes = self._local.get(key.service)
        route = routes.pop(key, None) if routes is not None else None
        if routes is None or route is None:
            return False
        if not routes:
            del self._local[key.service]
        self._count_interest(key.service, -1)
        self._service_changed(key.service)
        self._watchers.notify(LocalRouteChanged(route, None))
        return True

    def put_origin_route(self, route: OriginRoute) -> None:
        """Create or replace the origin route with the key of `route`. An equal one is not a change."""
        routes = self._origin_routes.setdefault(route.origin, {})
        before = routes.get(route.gateway)
        # The metrics first: they differ most of the time, and comparing them is cheap.
        if before is not None and before.metric == route.metric and before == route:
            return
        routes[route.gateway] = route
        self._origin_changed(route.origin)
        if self._watchers:
            self._watchers.notify(OriginRouteChanged(before, route))

    def delete_origin_route(self, key: OriginRouteKey) -> bool:
        """Remove an origin route. Return False if there is none with this key. The offers are kept."""
        routes = self._origin_routes.get(key.origin)
        route = routes.pop(key.gateway, None) if routes is not None else None
        if routes is None or route is None:
            return False
        if not routes:
            del self._origin_routes[key.origin]
        self._origin_changed(key.origin)
        self._watchers.notify(OriginRouteChanged(route, None))
        return True

    def change_offers(
        self, origin: str, changed: Sequence[Offer] = (), removed: Sequence[str] = (), *, is_complete: bool = False
    ) -> None:
        """Remove the services `removed` of an origin, then add or replace the offers `changed`.

        With `is_complete`, `changed` contains all offers of the origin, and all others are removed.
        """
        offers = self._offers.get(origin, {})
        if is_complete:
            kept = {offer.service for offer in changed}
            removed = [service for service in offers if service not in kept]
        changes: list[tuple[Offer | None, Offer | None]] = []
        for service in removed:
            before = offers.pop(service, None)
            if before is not None:
                self._remove_origin(service, origin)
                changes.append((before, None))
        for offer in changed:
            before = offers.get(offer.service)
            # An equal offer is replaced, too, since the caller keeps the new object.
            offers[offer.service] = offer
            if before is None:
                self._add_origin(offer.service, origin)
            elif before == offer:
                continue
            self._service_changed(offer.service)
            changes.append((before, offer))
        if offers:
            self._offers[origin] = offers
        elif self._offers.pop(origin, None) is not None:
            self._origin_changed(origin)
        if changes:
            self._watchers.notify(OffersChanged(origin, tuple(changes)))

    # ----------------------------------------------------------------- queries

    def lookup(self, service: str) -> tuple[Route, ...]:
        """Return the routes of exactly this service, ordered by metric and key."""
        answer = self._answers.get(service)
        if answer is not None and answer.is_current:
            for part in answer.parts:
                if not part.version.is_current:
                    break
            else:
                return answer.routes
        return self._join(service, answer)

    def origin_routes(self) -> list[OriginRoute]:
        """Return all origin routes, ordered by origin, metric and gateway."""
        return [
            route
            for origin in sorted(self._origin_routes)
            for route in sorted(self._origin_routes[origin].values(), key=lambda one: (one.metric, one.gateway))
        ]

    def origins(self) -> list[str]:
        """Return the node ids of all origins that have an origin route or offers, in alphabetical order."""
        return sorted({*self._origin_routes, *self._offers})

    def interests(self) -> list[str]:
        """Return the services with a route or an offer that are interests in topics (`~topic`), in alphabetical order."""
        return sorted(self._interests)

    def origins_of(self, service: str) -> tuple[str, ...]:
        """Return the node ids of the origins that offer a service, in alphabetical order. They may have no route now."""
        return tuple(sorted(self._offering(service)))

    def offers(self, origin: str) -> list[Offer]:
        """Return the offers of an origin, ordered by service. Empty for an unknown origin."""
        offers = self._offers.get(origin, {})
        return [offers[service] for service in sorted(offers)]

    def list(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes that match, ordered by service, metric and key."""
        services = self._services() if query is None else self._services_of(query)
        # Joined without the cache, which would otherwise keep the routes of all services from now on.
        found = (route for service in services for route in sorted(self._routes_of(service), key=_by_metric))
        return list(found) if query is None else [route for route in found if query.matches(route)]

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Call `callback` after each change, in the order of the changes. Return a function that ends the watch."""
        return self._watchers.add(callback)

    def forget_watchers(self) -> None:
        """Remove all watchers. The routes stay readable."""
        self._watchers.clear()

    # ---------------------------------------------------------------- internals

    def _services(self) -> Sequence[str]:
        return sorted({*self._local, *self._origins})

    def _services_of(self, query: RouteQuery) -> Sequence[str]:
        """Return the services that can have routes which match `query`, in order."""
        if query.service:
            return (query.service,)
        if query.link == LOCAL_LINK or query.address:
            return sorted(self._local)
        if query.router:
            return sorted({*self._local, *self._offers.get(query.router, ())})
        return self._services()

    def _offering(self, service: str) -> tuple[str, ...]:
        origins = self._origins.get(service, ())
        return (origins,) if isinstance(origins, str) else origins

    def _add_origin(self, service: str, origin: str) -> None:
        others = self._offering(service)
        self._origins[service] = (*others, origin) if others else origin
        self._count_interest(service, 1)

    def _remove_origin(self, service: str, origin: str) -> None:
        others = tuple(other for other in self._offering(service) if other != origin)
        if others:
            self._origins[service] = others if len(others) > 1 else others[0]
        else:
            del self._origins[service]
        self._count_interest(service, -1)
        self._service_changed(service)

    def _count_interest(self, service: str, amount: int) -> None:
        if service.startswith(INTEREST_PREFIX):
            count = self._interests.get(service, 0) + amount
            if count:
                self._interests[service] = count
            else:
                del self._interests[service]

    def _service_changed(self, service: str) -> None:
        if service not in self._origins:
            self._answers.pop(service, None)
        elif (answer := self._answers.get(service)) is not None:
            # Kept, because the parts of unchanged origins are used again.
            answer.is_current = False

    def _origin_changed(self, origin: str) -> None:
        version = self._versions.pop(origin, None)
        if version is not None:
            version.is_current = False

    def _join(self, service: str, outdated: _Answer | None) -> tuple[Route, ...]:
        origins = self._offering(service)
        local = self._local.get(service)
        if not origins and local is None:
            # Not cached: callers can ask for any number of names without routes, which would fill the memory.
            return ()
        known = {part.origin: part for part in outdated.parts} if outdated is not None else {}
        parts = []
        for origin in origins:
            part, offer = known.get(origin), self._offers[origin][service]
            if part is None or part.offer is not offer or not part.version.is_current:
                version = self._versions.get(origin) or self._versions.setdefault(origin, _OriginVersion())
                part = _Part(origin, offer, version, tuple(self._routes_to(origin, offer)))
            parts.append(part)
        routes = [route for part in parts for route in part.routes]
        if local is not None:
            routes.extend(local.values())
        routes.sort(key=_by_metric)
        answer = self._answers[service] = _Answer(tuple(routes), tuple(parts))
        return answer.routes

    def _routes_of(self, service: str) -> Iterator[Route]:
        yield from self._local.get(service, {}).values()
        for origin in self._offering(service):
            yield from self._routes_to(origin, self._offers[origin][service])

    def _routes_to(self, origin: str, offer: Offer) -> Iterator[Route]:
        for origin_route in self._origin_routes.get(origin, {}).values():
            route = join(origin_route, offer)
            if route is not None:
                yield route


def join(origin_route: OriginRoute, offer: Offer) -> Route | None:
    """Return the route to the service of `offer` along `origin_route`. None if that is not a route to this service."""
    service = offer.service
    if origin_route.services is not None and service not in origin_route.services:
        return None
    return Route(
        service=service,
        address="",
        gateway=origin_route.gateway,
        network=origin_route.network,
        router=origin_route.origin,
        link=NETWORK_LINK,
        metric=origin_route.metric + offer.load_us,
        site=origin_route.site,
        version=",".join(offer.versions),
        hops=origin_route.hops,
        load_us=offer.load_us,
        expires_at=origin_route.expires_at,
    )


class _OriginVersion:
    """Whether the routes to an origin are the same as when this object was created."""

    __slots__ = ("is_current",)

    def __init__(self) -> None:
        self.is_current = True


class _Part(NamedTuple):
    """The routes of one service at one origin in a cached answer."""

    origin: str
    offer: Offer
    version: _OriginVersion
    routes: tuple[Route, ...]


class _Answer:
    """A cached answer. It is valid while it and the versions of all its parts are current."""

    __slots__ = ("is_current", "parts", "routes")

    def __init__(self, routes: tuple[Route, ...], parts: tuple[_Part, ...]) -> None:
        self.routes = routes
        self.parts = parts
        self.is_current = True


def _by_metric(route: Route) -> tuple[int, RouteKey]:
    return route.metric, route.key
