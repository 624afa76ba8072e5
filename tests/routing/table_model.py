"""A table that applies the effects of an engine strictly: it fails if an engine deletes what is not there."""

from __future__ import annotations

from micro_core.contract.route_index import join
from micro_core.contract.table import Offer, OriginRoute, OriginRouteKey, Route, RouteKey
from micro_core.routing.events import (
    ChangeOffers,
    DeleteOriginRoute,
    DeleteRoute,
    Effect,
    PutOriginRoute,
    PutRoute,
)


class TableModel:
    """Local routes, origin routes and offers."""

    def __init__(self) -> None:
        self.local: dict[RouteKey, Route] = {}
        self.origins: dict[OriginRouteKey, OriginRoute] = {}
        self.offers: dict[str, dict[str, Offer]] = {}

    def apply(self, effect: Effect) -> bool:
        """Apply an effect. Returns False if it does not concern the table."""
        match effect:
            case PutRoute(route):
                self.local[route.key] = route
            case DeleteRoute(key):
                del self.local[key]
            case PutOriginRoute(origin_route):
                self.origins[origin_route.key] = origin_route
            case DeleteOriginRoute(origin_key):
                del self.origins[origin_key]
            case ChangeOffers(origin, changed, removed, is_complete):
                offers = {} if is_complete else self.offers.get(origin, {})
                for service in removed:
                    offers.pop(service, None)
                offers.update((offer.service, offer) for offer in changed)
                self.offers[origin] = offers
            case _:
                return False
        return True

    def routes(self) -> list[Route]:
        found = [*self.local.values()]
        for origin_route in self.origins.values():
            for offer in self.offers.get(origin_route.origin, {}).values():
                route = join(origin_route, offer)
                if route is not None:
                    found.append(route)
        return sorted(found, key=lambda route: route.metric)

    def routes_to(self, service: str, origin: str = "") -> list[Route]:
        return [route for route in self.routes() if route.service == service and origin in ("", route.router)]

    def services(self) -> set[str]:
        return {route.service for route in self.routes()}
