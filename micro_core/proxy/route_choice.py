"""The choice of a route for a call: the nearest destination whose window has space, and the best route to it. Pure.

Routes are grouped by destination: the instances of this site, and each other origin (or site, if it has a name). What is needed for a choice is computed
for each service when its routes change and a few times per second, so that a call costs a few comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from micro_core.contract.clock import Random
from micro_core.contract.table import LOCAL_LINK, Route, RouteKey
from micro_core.proxy.destination import Destination
from micro_core.proxy.route_usage import RouteUsage
from micro_core.routing.lookup import DEFAULT_SITE, LOAD_SHARING_FACTOR, destination_name

ADJUST_S = 0.1
"""Interval at which the windows of the destinations of a service are adjusted, while it is called."""

ORDER_S = 1.0
"""Interval at which the order of the destinations is computed, while routes do not change and the service is called."""

MAX_ADJUSTED = 16
"""Number of destinations with windows, in the order in which they are filled. Calls do not exceed the capacity of so many."""

MAX_SERVICES = 4_096
"""Maximum number of services with a state. The one that was used first is forgotten; its calls in progress end as usual."""


@dataclass(slots=True)
class _Group:
    """The routes to one destination, best first."""

    destination: Destination
    name: str = ""
    routes: list[RouteUsage] = field(default_factory=list)
    leading: list[RouteUsage] = field(default_factory=list)
    """The routes that are nearly as good as the first one and share its calls."""
    is_local: bool = False
    cost_s: float = 0.0
    """Cost of the way to the destination, and its advertised load if this proxy has not measured it lately."""
    is_avoided: bool = False
    """All its routes have refused calls, or their next hops do not answer."""


class _ServiceState:
    __slots__ = ("destinations", "groups", "order_at", "refresh_at", "routes", "sharing", "usage")

    def __init__(self) -> None:
        self.routes: Sequence[Route] = ()
        self.order_at = 0.0
        self.refresh_at = 0.0
        """When the order must be computed or the windows adjusted, whichever is first."""
        self.groups: list[_Group] = []
        """In the order in which they are filled."""
        self.sharing = 1
        """Number of groups at the beginning of `groups` that are equally near and share the calls."""
        self.destinations: dict[str, Destination] = {}
        self.usage: dict[RouteKey, RouteUsage] = {}


class RouteChooser:
    """Chooses routes for the calls of one proxy. `now` is in clock seconds."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._states: dict[str, _ServiceState] = {}
        self._suspects: set[str] = set()

    # -------------------------------------------------------------------- choice

    def choose(
        self,
        routes: Sequence[Route],
        now: float,
        *,
        via: Collection[str] = (),
        came_from: str = "",
        permitted: Collection[RouteKey] | None = None,
    ) -> RouteUsage | None:
        """Return the route for a new call, or None if there is none.

        Args:
            routes: All routes of the service, at least one. Should be the same object until they change.
            now: The current time.
            via: Node ids that the call has passed. It is not sent there again.
            came_from: Node id from which the call came.
            permitted: The only routes that may be chosen, for calls that are restricted or were refused elsewhere. `via` and
                `came_from` are ignored then.
        """
        state = self._states.get(routes[0].service)
        if state is None or state.routes is not routes or now >= state.refresh_at:
            state = self._refreshed(routes, now)
        groups, sharing = state.groups, state.sharing
        if permitted is None and len(groups) == 1 and len(leading := groups[0].leading) == 1:
            # The usual case: one destination, whose window is of no use then, and one best route to it.
            only = leading[0]
            if groups[0].is_local or (only.gateway not in via and only.gateway != came_from):
                return only
        if permitted is not None:
            is_permitted = [any(one.route.key in permitted for one in group.routes) for group in groups]
            sharing = sum(is_permitted[:sharing])
            groups = list(itertools.compress(groups, is_permitted))
        if sharing > 1:
            groups = self._shuffled(groups, sharing)
        is_full = False
        for group in groups:
            if is_full and group.is_avoided:
                break
            destination = group.destination
            if destination.outstanding < destination.window:
                usage = self._pick(group, via, came_from, permitted)
                if usage is not None:
                    return usage
            else:
                destination.filled(now)
                is_full = True
        return self._least_full(groups, via, came_from, permitted) if is_full else None

    def _pick(
        self, group: _Group, via: Collection[str], came_from: str, permitted: Collection[RouteKey] | None
    ) -> RouteUsage | None:
        leading = group.leading
        if permitted is not None:
            leading = [one for one in leading if one.route.key in permitted]
            if not leading:
                return next((one for one in group.routes if one.route.key in permitted), None)
        elif not group.is_local:
            if len(leading) == 1 and (gateway := leading[0].gateway) not in via and gateway != came_from:
                return leading[0]
            leading = [one for one in leading if one.gateway not in via and one.gateway != came_from]
            if not leading:
                others = (one for one in group.routes if one.gateway not in via and one.gateway != came_from)
                return next(others, None)
        return leading[0] if len(leading) == 1 else self._less_busy_of_two(leading)

    def _less_busy_of_two(self, usages: list[RouteUsage]) -> RouteUsage:
        first, second = self._two_of(len(usages))
        one, other = usages[first], usages[second]
        return one if one.outstanding <= other.outstanding else other

    def _two_of(self, count: int) -> tuple[int, int]:
        """Return two different random numbers below `count`, which is at least 2."""
        number = self._random.random() * count
        first = int(number)
        return first, (first + 1 + int((number - first) * (count - 1))) % count

    def _shuffled(self, groups: list[_Group], sharing: int) -> list[_Group]:
        """Return the groups with the less busy of two random equally near ones first."""
        first, second = self._two_of(sharing)
        if groups[second].destination.outstanding < groups[first].destination.outstanding:
            first = second
        return groups if not first else [groups[first], *groups[:first], *groups[first + 1 :]]

    def _least_full(
        self, groups: list[_Group], via: Collection[str], came_from: str, permitted: Collection[RouteKey] | None
    ) -> RouteUsage | None:
        for group in sorted(groups, key=_fullness):
            usage = self._pick(group, via, came_from, permitted)
            if usage is not None:
                return usage
        return None

    # -------------------------------------------------------------------- results

    def answered(self, usage: RouteUsage) -> None:
        """Record that a call was answered."""
        if usage.refusals and usage.answered():
            self._refresh_soon(usage)

    def refused(self, usage: RouteUsage, now: float) -> None:
        """Record that a call was refused and may be sent along another route."""
        if usage.refused(now):
            self._refresh_soon(usage)

    def peer_suspect(self, peer: str, is_suspect: bool) -> None:
        """Prefer routes through other next hops while `peer` (a node id) does not answer pings."""
        if is_suspect is (peer in self._suspects):
            return
        if is_suspect:
            self._suspects.add(peer)
        else:
            self._suspects.remove(peer)
        for state in self._states.values():
            state.order_at = state.refresh_at = 0.0

    def waiting_us(self, key: RouteKey, now: float) -> int:
        """Return how much longer than usual recent calls along a route have waited, in microseconds."""
        state = self._states.get(key.service)
        usage = state.usage.get(key) if state is not None else None
        return round(usage.destination.queueing_delay.delay_s(now) * 1e6) if usage is not None else 0

    def _refresh_soon(self, usage: RouteUsage) -> None:
        state = self._states.get(usage.route.service)
        if state is not None:
            state.order_at = state.refresh_at = 0.0

    # --------------------------------------------------------------------- state

    def _refreshed(self, routes: Sequence[Route], now: float) -> _ServiceState:
        service = routes[0].service
        state = self._states.get(service)
        if state is None:
            if len(self._states) >= MAX_SERVICES:
                del self._states[next(iter(self._states))]
            state = self._states[service] = _ServiceState()
        if state.routes is not routes or now >= state.refresh_at:
            if state.routes is not routes or now >= state.order_at:
                self._order(state, routes, now)
            state.refresh_at = state.order_at
            if len(state.groups) > 1:
                _adjust_windows(state.groups[:MAX_ADJUSTED], now)
                state.refresh_at = min(state.order_at, now + ADJUST_S)
        return state

    def _order(self, state: _ServiceState, routes: Sequence[Route], now: float) -> None:
        order_at = float("inf")
        groups: dict[str, _Group] = {}
        own_sites = {route.site for route in routes if route.link == LOCAL_LINK}
        for route in routes:
            if route.expires_at is not None:
                if route.expires_at <= now:
                    continue
                order_at = min(order_at, route.expires_at)
            name = _destination_of(route, own_sites)
            group = groups.get(name)
            if group is None:
                destination = state.destinations.get(name)
                if destination is None:
                    destination = state.destinations[name] = Destination(now)
                group = groups[name] = _Group(destination, name)
            usage = state.usage.get(route.key)
            if usage is None or usage.destination is not group.destination:
                usage = state.usage[route.key] = RouteUsage(route, group.destination)
            if usage.avoided_until > now:
                order_at = min(order_at, usage.avoided_until)
            usage.route = route
            group.routes.append(usage)
        for group in groups.values():
            self._order_routes(group, now)
        state.groups = sorted(groups.values(), key=_preference)
        state.sharing = _count_sharing(state.groups)
        if len(state.groups) > 1:
            order_at = min(order_at, now + ORDER_S)
        for group in state.groups[MAX_ADJUSTED:] if len(state.groups) > 1 else state.groups:
            group.destination.window = float("inf")
        state.order_at = order_at
        if state.routes is not routes:
            state.routes = routes
            keys = {route.key for route in routes}
            state.usage = {key: one for key, one in state.usage.items() if key in keys or one.outstanding}
            state.destinations = {
                name: one for name, one in state.destinations.items() if name in groups or one.outstanding
            }

    def _order_routes(self, group: _Group, now: float) -> None:
        suspects = self._suspects

        def is_avoided(usage: RouteUsage) -> bool:
            return usage.avoided_until > now or usage.route.gateway in suspects

        group.routes.sort(key=lambda one: (is_avoided(one), one.route.link != LOCAL_LINK, one.route.metric))
        best = group.routes[0].route
        group.is_local = best.link == LOCAL_LINK
        group.is_avoided = is_avoided(group.routes[0])
        limit = float("inf") if group.is_local else best.metric * LOAD_SHARING_FACTOR
        group.leading = [
            one
            for one in group.routes
            if one.route.link == best.link and one.route.metric <= limit and is_avoided(one) is group.is_avoided
        ]
        destination = group.destination
        destination.base_s = (best.metric - best.load_us) / 1e6
        destination.advertised_s = best.load_us / 1e6
        # The window takes care of measured waiting time. It would make the order alternate.
        group.cost_s = destination.base_s + destination.unmeasured_s(now)


def _destination_of(route: Route, own_sites: Collection[str]) -> str:
    """Return the name of the destination of a route: empty for this site."""
    is_local = route.link == LOCAL_LINK or (route.site in own_sites and route.site not in {"", DEFAULT_SITE})
    return "" if is_local else destination_name(route.site, route.router)


def _preference(group: _Group) -> tuple[bool, bool, float]:
    return group.is_avoided, not group.is_local, group.cost_s


def _count_sharing(groups: Sequence[_Group]) -> int:
    if not groups or groups[0].is_local:
        return 1
    first = groups[0]
    limit_s = first.cost_s * LOAD_SHARING_FACTOR
    return sum(one.is_avoided is first.is_avoided and not one.is_local and one.cost_s <= limit_s for one in groups)


def _adjust_windows(groups: Sequence[_Group], now: float) -> None:
    """Adjust the window of each destination to the cost of the cheapest other one."""
    costs_s = [float("inf") if one.is_avoided else one.destination.total_s(now) for one in groups]
    cheapest = min(range(len(groups)), key=costs_s.__getitem__)
    second_s = min(cost_s for number, cost_s in enumerate(costs_s) if number != cheapest)
    for number, group in enumerate(groups):
        next_s = second_s if number == cheapest else costs_s[cheapest]
        group.destination.adjust(next_s - group.destination.base_s, now)


def _fullness(group: _Group) -> tuple[bool, float]:
    return group.is_avoided, group.destination.outstanding / group.destination.window
