"""Graceful restart: the use of origin routes that the table has kept from before a restart of the node. Pure.

Such a route is *stale*: no neighbour has advertised it since the restart. It carries calls only while a link to its
gateway is open, it is never advertised, and it is removed as soon as one of these happens:

- its gateway or another neighbour advertises a route to the same origin,
- the full table of its gateway does not contain it,
- the link to its gateway closes,
- its lease ends.

The stored offers of an origin are used until a neighbour sends its list, at most until the end of the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from micro_core.contract.table import OriginRoute, OriginRouteKey, Route
from micro_core.routing.events import ChangeOffers, Count, DeleteOriginRoute, Effect, PutOriginRoute


class StaleRoutes:
    """The stale routes of one router. With a `lease_s` of 0, no route from before a restart is used."""

    def __init__(self, *, router: str, lease_s: float) -> None:
        self._router = router
        self._lease_s = lease_s
        # Invariant: these three contain the same keys, and no set is empty.
        self._expires: dict[OriginRouteKey, float] = {}
        self._by_gateway: dict[str, set[OriginRouteKey]] = {}
        self._by_origin: dict[str, set[OriginRouteKey]] = {}
        self._with_stale_offers: set[str] = set()
        """The origins whose offers no neighbour has sent since the restart."""
        self._offers_expire_at = 0.0
        self._linked: set[str] = set()
        self._wake_at: float | None = None

    def __len__(self) -> int:
        return len(self._expires)

    @property
    def is_pending(self) -> bool:
        """Whether routes or offers from before the restart are in use."""
        return bool(self._expires or self._with_stale_offers)

    @property
    def wake_at(self) -> float | None:
        """When `expire` must be called next, in clock seconds. It may be too early."""
        return self._wake_at

    # ------------------------------------------------------------------ events

    def restore(self, routes: Iterable[OriginRoute], now: float) -> list[Effect]:
        """Process the origin routes that the table contains at the start. They become stale; invalid ones are deleted.

        The lease of a route that was stale already is not extended, so that a node that restarts repeatedly does not
        keep it for ever.
        """
        effects: list[Effect] = []
        found: set[str] = set()
        lease_end = now + self._lease_s
        for route in routes:
            found.add(route.origin)
            expires_at = lease_end if route.expires_at is None else min(route.expires_at, lease_end)
            # Only neighbours are gateways.
            if self._router in (route.origin, route.gateway) or not route.gateway or expires_at <= now:
                effects.append(DeleteOriginRoute(route.key))
                continue
            self._add(route.key, expires_at)
            effects.append(PutOriginRoute(replace(route, expires_at=expires_at)))
        self._with_stale_offers = set(self._by_origin)
        self._offers_expire_at = lease_end
        effects += [ChangeOffers(origin, is_complete=True) for origin in sorted(found - self._with_stale_offers)]
        return [*effects, Count("routing_stale_routes_found", len(self._expires))] if self._expires else effects

    def route_learned(self, route: OriginRoute) -> list[Effect]:
        """Process a route that the engine has put into the table: it replaces all stale routes to the same origin.

        This prevents loops: a neighbour that uses the new route may be the gateway of a stale one.
        """
        replaced = [*self._by_origin.get(route.origin, ())]
        for key in replaced:
            self._discard(key)
        return [DeleteOriginRoute(key) for key in sorted(replaced) if key != route.key]

    def offers_learned(self, origin: str) -> None:
        """Record that the engine has put the offers of an origin into the table."""
        self._with_stale_offers.discard(origin)
        self._clear_timer()

    def full_table_received(self, peer: str) -> list[Effect]:
        """Drop the routes through a neighbour that are still stale: its full table did not contain them."""
        return self._drop(self._by_gateway.get(peer, ()))

    def link_up(self, peer: str) -> None:
        """Record that a link to a neighbour was opened."""
        self._linked.add(peer)

    def link_down(self, peer: str) -> list[Effect]:
        """Drop the stale routes through a neighbour whose link was closed."""
        self._linked.discard(peer)
        return self._drop(self._by_gateway.get(peer, ()))

    def expire(self, now: float) -> list[Effect]:
        """Drop the routes and offers whose lease has ended. To be called at `wake_at`."""
        if self._wake_at is None or now < self._wake_at:
            return []
        effects = self._drop([key for key, expires_at in self._expires.items() if expires_at <= now])
        if now >= self._offers_expire_at:
            effects += [ChangeOffers(origin, is_complete=True) for origin in sorted(self._with_stale_offers)]
            self._with_stale_offers.clear()
        times = [*self._expires.values(), *([self._offers_expire_at] if self._with_stale_offers else [])]
        self._wake_at = min(times, default=None)
        return effects

    # ----------------------------------------------------------------- queries

    def is_usable(self, route: Route) -> bool:
        """Return whether calls may use a route. A stale route needs an open link to its gateway."""
        return route.gateway in self._linked or (route.router, route.gateway) not in self._expires

    def usable(self, routes: Sequence[Route]) -> Sequence[Route]:
        """Return the routes that calls may use."""
        return routes if not self._expires else [route for route in routes if self.is_usable(route)]

    # --------------------------------------------------------------------- internals

    def _add(self, key: OriginRouteKey, expires_at: float) -> None:
        self._expires[key] = expires_at
        self._by_gateway.setdefault(key.gateway, set()).add(key)
        self._by_origin.setdefault(key.origin, set()).add(key)
        if self._wake_at is None or expires_at < self._wake_at:
            self._wake_at = expires_at

    def _drop(self, keys: Iterable[OriginRouteKey]) -> list[Effect]:
        dropped = sorted(keys)
        for key in dropped:
            self._discard(key)
        counted = [Count("routing_stale_routes_dropped", len(dropped))] if dropped else []
        return [*map(DeleteOriginRoute, dropped), *counted]

    def _discard(self, key: OriginRouteKey) -> None:
        del self._expires[key]
        _discard_from_index(self._by_gateway, key.gateway, key)
        _discard_from_index(self._by_origin, key.origin, key)
        self._clear_timer()

    def _clear_timer(self) -> None:
        if not self.is_pending:
            self._wake_at = None


def _discard_from_index(index: dict[str, set[OriginRouteKey]], name: str, key: OriginRouteKey) -> None:
    index[name].discard(key)
    if not index[name]:
        del index[name]
