"""The router: the asyncio shell of the routing engine.

It watches the registry, applies the effects of the engine to the table, exchanges messages with neighbours, and calls
the engine when a timer is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from micro_core.contract.errors import MicroError
from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.registry import Registry, RegistryEventKind
from micro_core.contract.table import (
    ANY_SERVICE,
    LOCAL_LINK,
    Route,
    RouteKey,
    RouteQuery,
    Table,
    TableEvent,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.routing import messages
from micro_core.routing.damping import DampingPolicy, FlapStatus
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    ChangeOffers,
    Count,
    DeleteOriginRoute,
    DeleteRoute,
    Effect,
    FullTableReceived,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourSuspect,
    NeighbourUp,
    PutOriginRoute,
    PutRoute,
    Resumed,
    ReuseService,
    RoutingEvent,
    SendMessage,
    Solicit,
    WithdrawAll,
)
from micro_core.routing.explain import RouteCandidate, stale_candidates
from micro_core.routing.graceful_restart import StaleRoutes
from micro_core.routing.journal import Journal
from micro_core.routing.link_damping import LinkDampingStatus
from micro_core.routing.options import EngineOptions
from micro_core.routing.reachable_origins import ReachableOrigins
from micro_core.routing.site_instances import SiteInstances


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """Options of the router, in seconds. Those of the engine are in `engine`."""

    reconcile_s: float = 30.0
    """Interval of complete comparisons with the registry. They repair changes that the watch has missed."""

    is_gateway: bool = False
    """Advertise a default route: neighbours send calls here if they have no other route to the service."""

    retry_s: float = 1.0
    """Delay before the registry is watched again after a failure."""

    restart_lease_s: float = 60.0
    """Maximum number of seconds for which routes from before a restart are used. 0 means that they are not used."""

    engine: EngineOptions = field(default_factory=EngineOptions)


class Router:
    """The router of one node.

    `incarnation` must increase with every start of the node. Wall-clock milliseconds are suitable.
    """

    def __init__(
        self,
        *,
        network: str,
        site: str,
        table: Table,
        environment: Environment,
        incarnation: int,
        options: RouterOptions | None = None,
    ) -> None:
        node_id = environment.node_id
        self.table = table
        self._options = options or RouterOptions()
        self._engine = Engine(
            router=node_id,
            network=network,
            site=site,
            incarnation=incarnation,
            random=environment.random,
            options=self._options.engine,
        )
        self._stale = StaleRoutes(router=node_id, lease_s=self._options.restart_lease_s)
        self._has_restored = False
        self._clock = environment.clock
        self._log = environment.logger
        self._counters = environment.counters
        self._send: Callable[[str, bytes], None] | None = None
        self._site = SiteInstances(node_id=node_id, is_gateway=self._options.is_gateway)
        self._tasks = BackgroundTasks(
            component="router",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="router_tasks_failed",
        )
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._is_closed = False
        self._reachable = ReachableOrigins(table)
        self.journal = Journal(table)
        table.watch(self._table_changed)

    # --------------------------------------------------------------- lifecycle

    def restore(self) -> None:
        """Restore the routes that the table has kept from before a restart, as stale routes.

        The table must be started. Call this before links are opened. Otherwise `start` does it.
        """
        if not self._has_restored:
            self._has_restored = True
            # Routes to instances of this site are read from the registry again.
            for route in self.table.list(RouteQuery(link=LOCAL_LINK)):
                self.table.delete(route.key)
            routes = self.table.origin_routes()
            for origin in {*self.table.origins()}.difference(route.origin for route in routes):
                self.table.change_offers(origin, is_complete=True)
            self._apply(self._stale.restore(routes, self._clock.now()))

    async def start(self, registry: Registry) -> None:
        """Read the registry, and follow its changes in the background.

        If the registry is unavailable, a warning is logged and the router tries again later.
        """
        self.restore()
        try:
            await self._reconcile(registry)
        except MicroError as error:
            self._log.warning("registry cannot be read, retrying", extra={"reason": str(error)})
        self._tasks.start(self._watch(registry))
        self._tasks.start(self._reconcile_periodically(registry))

    async def close(self) -> None:
        """Stop the router. The table keeps its content, so that a persistent table has it after a restart."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.cancel()

    # ----------------------------------------------------------------- queries

    def lookup(self, service: str) -> Sequence[Route]:
        """Return the routes of a service, lowest metric first. A service without routes gets the default routes.

        An interest in a topic (`~topic`) never gets the default routes.
        """
        found: Sequence[Route] = self.table.lookup(service)
        if self._stale:
            found = self._stale.usable(found)
        if found or service.startswith(INTEREST_PREFIX):
            return found
        return self._stale.usable(self.table.lookup(ANY_SERVICE))

    def has_route_to(self, node_id: str) -> bool:
        """Return whether a neighbour has advertised a usable route to a node. The own node has none."""
        return node_id in self._reachable

    def origins(self) -> frozenset[str]:
        """Return the ids of the nodes to which neighbours have advertised a usable route, without the own node."""
        return self._reachable.all()

    def is_expected(self, service: str) -> bool:
        """Return whether an origin offers a service and can probably be used soon, though no route to it is usable now.

        That is the case while the router waits for the answer to a request for a newer sequence number, and for
        `EXPECTED_S` after the last route was lost, since a neighbour may have to request one first.
        """
        now = self._clock.now()
        return any(
            self._reachable.is_lost_recently(origin, now) or self._engine.is_starved(origin)
            for origin in self._reachable.without_route(service)
        )

    def services(self) -> list[str]:
        """Return the names of all services that have a route, without interests in topics."""
        return sorted({r.service for r in self.table.list() if not r.service.startswith(INTEREST_PREFIX)})

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        """Return the routes of the table that match `query`, ordered by service, metric and key."""
        return self.table.list(query)

    def interests(self) -> list[str]:
        """Return the services that are interests in topics (`~topic`). They may have no route now."""
        return self.table.interests()

    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change of the table. Returns a function that ends this."""
        return self.table.watch(callback)

    def explain(self, service: str, waiting_us: Callable[[RouteKey], int] = lambda _: 0) -> list[RouteCandidate]:
        """Return all routes to a service, best first, and why each is used or not.

        `waiting_us` returns the waiting time that the proxy measured on a route, in microseconds.
        """
        now = self._clock.now()
        stale = stale_candidates(self.table.lookup(service), self._stale.is_usable, now)
        return self._engine.explain(service, now, waiting_us, stale)

    def configured_us(self, peer: str) -> int:
        """Return the cost that the policy adds to the link to a neighbour, in microseconds. 0 for an unknown peer."""
        return self._engine.configured_us(peer)

    def leases(self) -> dict[str, float]:
        """Return when the routes of each neighbour expire, in clock seconds. Neighbours without routes are left out."""
        return self._engine.leases()

    @property
    def damping(self) -> DampingPolicy:
        """The damping policy for the services of this site."""
        return self._engine.damper.policy

    def flaps(self) -> list[FlapStatus]:
        """Return the services of this site that have been flapping, in descending order of the penalty."""
        return self._engine.damper.statuses(self._clock.now())

    def link_flaps(self) -> list[LinkDampingStatus]:
        """Return the links that have been lost lately, in descending order of the penalty."""
        return self._engine.link_damper.statuses(self._clock.now())

    def remote_flaps(self) -> list[tuple[str, FlapStatus]]:
        """Return the flapping services of other origins as (origin, status), in descending order of the penalty.

        Only their origins can suppress them.
        """
        observed = self._engine.observed.statuses(self._clock.now())
        return [
            (flap.service.partition(" ")[0], replace(flap, service=flap.service.partition(" ")[2])) for flap in observed
        ]

    def reuse(self, service: str) -> bool:
        """End the suppression of a flapping service of this site. Returns False if it has not been flapping."""
        was_known = any(flap.service == service for flap in self.flaps())
        self._handle(ReuseService(service))
        return was_known

    def history(self, service: str) -> list[tuple[float, str]]:
        """Return the recorded events of a service, oldest first: (clock seconds, description)."""
        return self._engine.history(service)

    # --------------------------------------------------------------- neighbours

    def set_sender(self, send: Callable[[str, bytes], None]) -> None:
        """Send messages to neighbours with `send(peer, payload)`. Without a sender, messages are dropped."""
        self._send = send

    def link_opened(self, peer: str) -> None:
        """Use the routes through a neighbour that were stored before a restart: its link is open, and not measured yet."""
        self._stale.link_up(peer)

    def neighbour_up(self, peer: str, cost_us: int, *, name: str = "", site: str = "") -> None:
        """Process a new or replaced link to a neighbour. `cost_us` is the cost of the link."""
        self._stale.link_up(peer)
        self._handle(NeighbourUp(peer, cost_us, name, site))

    def neighbour_cost(self, peer: str, cost_us: int) -> None:
        """Process a measurement of the cost of the link to a neighbour."""
        self._handle(NeighbourCost(peer, cost_us))

    def neighbour_costs(self, costs_us: Mapping[str, int]) -> None:
        """Process measurements of the costs of the links to several neighbours at once."""
        now = self._clock.now()
        events = [NeighbourCost(peer, cost_us) for peer, cost_us in costs_us.items()]
        self._apply([effect for event in events for effect in self._engine.handle(event, now)])

    def neighbour_suspect(self, peer: str, *, is_suspect: bool, is_closing: bool = False) -> None:
        """Prepare other routes than those through a neighbour that does not answer. It is reset when anything arrives.

        If one of the two nodes gives up the link (`is_closing`), let all routers change to other routes.
        """
        self._handle(NeighbourSuspect(peer, is_suspect, is_closing))

    def neighbour_down(self, peer: str, *, is_graceful: bool = False) -> None:
        """Remove all routes through a neighbour: the link to it is closed.

        `is_graceful` is True if it was closed on purpose. Other losses damp the link.
        """
        self._apply(self._stale.link_down(peer))
        self._handle(NeighbourDown(peer, is_graceful))

    def receive(self, peer: str, payload: bytes) -> None:
        """Process a message of a neighbour.

        Raises Malformed or TooLarge if the message is invalid. The caller should then close the link.
        """
        self._handle(MessageReceived(peer, messages.decode(payload)))

    def send_full_table(self, peer: str) -> None:
        """Send the full table to a neighbour whose router has restarted or may have missed adverts."""
        self._handle(MessageReceived(peer, Solicit()))

    def resumed(self, incarnation: int) -> None:
        """Continue as a later incarnation: this process was suspended. `neighbour_down` follows for every link."""
        self._handle(Resumed(incarnation))

    def withdraw_all(self) -> None:
        """Withdraw all advertised routes, and advertise nothing from now on: the node is draining."""
        self._handle(WithdrawAll())

    # ----------------------------------------------------------------- registry

    async def _watch(self, registry: Registry) -> None:
        while True:
            try:
                watch = await registry.watch()
                try:
                    async for event in watch:
                        if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                            await self._reconcile(registry)
                        elif event.kind is RegistryEventKind.DELETED:
                            self._handle_all(self._site.remove(event.instance.id))
                        else:
                            self._handle_all(self._site.put(event.instance))
                finally:
                    await watch.close()
            except MicroError as error:
                self._counters.add("router_registry_failures")
                self._log.warning("registry watch failed", extra={"reason": str(error)})
            await asyncio.sleep(self._options.retry_s)

    async def _reconcile_periodically(self, registry: Registry) -> None:
        while True:
            await asyncio.sleep(self._options.reconcile_s)
            try:
                await self._reconcile(registry)
            except MicroError as error:
                # The known instances are kept: while the registry is unavailable, its services still run.
                self._counters.add("router_registry_failures")
                self._log.warning("registry comparison failed", extra={"reason": str(error)})

    async def _reconcile(self, registry: Registry) -> None:
        self._site.begin_comparison()
        self._handle_all(self._site.replace_all(await registry.instances()))

    # ------------------------------------------------------------------ effects

    def _handle_all(self, events: Iterable[RoutingEvent]) -> None:
        for event in events:
            self._handle(event)

    def _handle(self, event: RoutingEvent) -> None:
        self._apply(self._engine.handle(event, self._clock.now()))

    def _apply(self, effects: Sequence[Effect]) -> None:
        if self._is_closed:
            return
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table.put(route)
                case DeleteRoute(key):
                    self.table.delete(key)
                case PutOriginRoute(origin_route):
                    self.table.put_origin_route(origin_route)
                    if self._stale and origin_route.expires_at is None:
                        self._apply(self._stale.route_learned(origin_route))
                case DeleteOriginRoute(origin_route_key):
                    self.table.delete_origin_route(origin_route_key)
                case ChangeOffers(origin, changed, removed, is_complete):
                    self.table.change_offers(origin, changed, removed, is_complete=is_complete)
                    if self._stale.is_pending:
                        self._stale.offers_learned(origin)
                case SendMessage(peer, message):
                    if self._send is not None:
                        payload = messages.encode(message)
                        self._counters.add("routing_messages_sent")
                        self._counters.add("routing_bytes_sent", len(payload))
                        self._send(peer, payload)
                case FullTableReceived(peer):
                    self._apply(self._stale.full_table_received(peer))
                case Count(name, amount):
                    self._counters.add(name, amount)
        self._set_timer()

    def _table_changed(self, event: TableEvent) -> None:
        self.journal.record(event, self._clock.wall())
        self._reachable.observe(event, self._clock.now())

    def _set_timer(self) -> None:
        times = [moment for moment in (self._engine.wake_at, self._stale.wake_at) if moment is not None]
        when = min(times, default=None)
        if self._timer is not None:
            if when == self._wake_at:
                return
            self._timer.cancel()
            self._timer = None
        if when is not None and not self._is_closed:
            self._wake_at = when
            delay = max(0.0, when - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._clock.now()
        self._apply([*self._stale.expire(now), *self._engine.wake(now)])
