"""Graceful restart: what becomes of the routes that a table has kept from an earlier life of its node. Pure.

Such a route is *stale*: it was true once, and nobody has said it since. It carries calls while a link to its gateway
stands, is told to nobody, and goes as soon as anything better is known: when its gateway or any other neighbour tells a
way to the same service of the same origin, when the gateway has told all it has without it, when the link to the
gateway breaks, and in any case when its lease ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from micro_core.contract.table import NETWORK_LINK, Route, RouteKey
from micro_core.routing.events import Count, DeleteRoute, Effect, PutRoute

T = TypeVar("T")


class StaleRoutes:
    """The stale routes of one router. `lease_s` 0 means that nothing of an earlier life is used."""

    def __init__(self, *, router: str, lease_s: float) -> None:
        self._router = router
        self._lease_s = lease_s
        # Invariant: the three hold the same keys, and no set is empty.
        self._expires: dict[RouteKey, float] = {}
        self._by_gateway: dict[str, set[RouteKey]] = {}
        self._by_origin: dict[tuple[str, str], set[RouteKey]] = {}
        self._linked: set[str] = set()
        self._wake_at: float | None = None

    def __len__(self) -> int:
        return len(self._expires)

    @property
    def wake_at(self) -> float | None:
        """When `expire` is next needed; at times a little early."""
        return self._wake_at

    # ------------------------------------------------------------------ what comes

    def found(self, routes: Iterable[Route], now: float) -> list[Effect]:
        """These stood in the table at the start: those of other nodes become stale, all others go.

        A lease that a route brings along is not made longer: a node that begins again and again keeps nothing for ever.
        """
        effects: list[Effect] = []
        for route in routes:
            lease_end = now + self._lease_s
            expires_at = lease_end if route.expires_at is None else min(route.expires_at, lease_end)
            # Instances of this site follow the registry, and only neighbours are gateways.
            is_learned = route.link == NETWORK_LINK and self._router not in (route.router, route.gateway)
            if not is_learned or not route.gateway or expires_at <= now:
                effects.append(DeleteRoute(route.key))
                continue
            self._add(route.key, expires_at)
            effects.append(PutRoute(replace(route, expires_at=expires_at)))
        return [*effects, Count("routing_stale_routes_found", len(self._expires))] if self._expires else effects

    def told(self, route: Route) -> list[Effect]:
        """The engine has put a route: it is no longer stale, and the stale ones beside it are not needed any more.

        That they go keeps calls out of circles: a neighbour that uses our new way may be the gateway of an old one.
        """
        beside = [*self._by_origin.get((route.service, route.router), ())]
        for key in beside:
            self._discard(key)
        return [DeleteRoute(key) for key in sorted(beside) if key != route.key]

    def told_everything(self, peer: str) -> list[Effect]:
        """A neighbour's full table came: what is still stale through it was not in there."""
        return self._drop(self._by_gateway.get(peer, ()))

    def link_up(self, peer: str) -> None:
        """A link to a neighbour stands."""
        self._linked.add(peer)

    def link_down(self, peer: str) -> list[Effect]:
        """The link to a neighbour, which stood in this life, is gone."""
        self._linked.discard(peer)
        return self._drop(self._by_gateway.get(peer, ()))

    def expire(self, now: float) -> list[Effect]:
        """Called at `wake_at`: what has outlived its lease goes."""
        if self._wake_at is None or now < self._wake_at:
            return []
        effects = self._drop([key for key, expires_at in self._expires.items() if expires_at <= now])
        self._wake_at = min(self._expires.values(), default=None)
        return effects

    # ----------------------------------------------------------------- what serves

    def serves(self, route: Route) -> bool:
        """Whether calls may take a route: a stale one only while a link to its gateway stands."""
        return route.key not in self._expires or route.gateway in self._linked

    def usable(self, routes: Sequence[Route]) -> Sequence[Route]:
        """Those of `routes` that calls may take."""
        return routes if not self._expires else [route for route in routes if self.serves(route)]

    # --------------------------------------------------------------------- inside

    def _add(self, key: RouteKey, expires_at: float) -> None:
        self._expires[key] = expires_at
        self._by_gateway.setdefault(key.gateway, set()).add(key)
        self._by_origin.setdefault((key.service, key.router), set()).add(key)
        if self._wake_at is None or expires_at < self._wake_at:
            self._wake_at = expires_at

    def _drop(self, keys: Iterable[RouteKey]) -> list[Effect]:
        gone = sorted(keys)
        for key in gone:
            self._discard(key)
        counted = [Count("routing_stale_routes_dropped", len(gone))] if gone else []
        return [*map(DeleteRoute, gone), *counted]

    def _discard(self, key: RouteKey) -> None:
        del self._expires[key]
        _take_out(self._by_gateway, key.gateway, key)
        _take_out(self._by_origin, (key.service, key.router), key)
        if not self._expires:
            self._wake_at = None


def _take_out(index: dict[T, set[RouteKey]], name: T, key: RouteKey) -> None:
    index[name].discard(key)
    if not index[name]:
        del index[name]
