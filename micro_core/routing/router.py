"""The router: the engine's shell. Watches the registry, keeps the table, carries messages, wakes in time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from micro_core.contract.errors import MicroError
from micro_core.contract.names import INTEREST_PREFIX, NETWORK_SERVICE, NODE_KEY, interest_name
from micro_core.contract.registry import EndpointKind, Instance, Registry, RegistryEventKind
from micro_core.contract.table import ANY_SERVICE, Route, RouteEvent, RouteKey, RouteQuery, Table
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.routing import messages
from micro_core.routing.damping import DampingPolicy, Flapping
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Count,
    DeleteRoute,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutRoute,
    Release,
    SendMessage,
    Solicit,
    ToldEverything,
    WithdrawAll,
)
from micro_core.routing.explain import Way, stale_ways
from micro_core.routing.journal import Journal
from micro_core.routing.options import EngineOptions
from micro_core.routing.restart import StaleRoutes

LOAD_KEY = "micro-load"
"""Metadata by which an instance tells how long calls wait there, in microseconds."""

MAX_LOAD_US = 10_000_000

SCOPE_KEY = "micro-scope"
SITE_SCOPE = "site"
"""Metadata of an instance that no route leads to: it serves its own site alone, as the parts of a node do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """Times of the shell; those of the engine are in `engine`."""

    reconcile_s: float = 30.0
    """Seconds between two full comparisons with the registry: repairs whatever a watch has missed."""

    is_gateway: bool = False
    """Offer a way to everything: what neighbours know no other way to, they send here."""

    retry_s: float = 1.0
    """Pause before a registry that failed is watched again."""

    restart_lease_s: float = 60.0
    """How long routes that the table has kept from an earlier life of the node are used at most; 0 for not at all."""

    engine: EngineOptions = field(default_factory=EngineOptions)


class Router:
    """Routes of one node. `incarnation` must be larger at every start (wall-clock milliseconds do)."""

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
        self._has_recalled = False
        self._node_id = node_id
        self._clock = environment.clock
        self._log = environment.logger
        self._counters = environment.counters
        self._send: Callable[[str, bytes], None] | None = None
        self._instances: dict[str, Instance] = {}
        self._changed_ids: set[str] = set()
        """What the registry's watch has told of since the last comparison began."""
        self._site_nodes: dict[str, str] = {}
        self._registry: Registry | None = None
        self._tasks = BackgroundTasks(
            component="router",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="router_tasks_failed",
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.journal = Journal()
        table.watch(lambda event: self.journal.record(event, environment.clock.wall()))

    # ------------------------------------------------------------------- life

    def recall(self) -> None:
        """Take up what the started table holds from an earlier life. To be called before links stand, else by `start`."""
        if not self._has_recalled:
            self._has_recalled = True
            self._carry_out(self._stale.found(self.table.list(), self._clock.now()))

    async def start(self, registry: Registry) -> None:
        """Load the registry, then follow it. A registry that is away is tried again; this does not wait for it."""
        self.recall()
        self._registry = registry
        try:
            await self._reconcile(registry)
        except MicroError as error:
            self._log.warning("registry cannot be read yet", extra={"reason": str(error)})
        self._tasks.start(self._watch(registry))
        self._tasks.start(self._keep_reconciled(registry))

    async def close(self) -> None:
        """Stop. The table is left as it is: one that keeps its routes has them in the node's next life."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.cancel()

    # ----------------------------------------------------------------- lookups

    def lookup(self, service: str) -> Sequence[Route]:
        """The routes of a service, best metric first; those of the default route where there is none."""
        if self._stale:
            return self._stale.usable(self.table.lookup(service)) or self._stale.usable(self.table.lookup(ANY_SERVICE))
        return self.table.lookup(service) or self.table.lookup(ANY_SERVICE)

    def interest_routes(self, topic: str) -> Sequence[Route]:
        """Who wants a topic."""
        return self._stale.usable(self.table.lookup(interest_name(topic)))

    def services(self) -> list[str]:
        """Every service that can be reached, without interests."""
        return sorted({r.service for r in self.table.list() if not r.service.startswith(INTEREST_PREFIX)})

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        return self.table.list(query)

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change of the table; returns what ends it."""
        return self.table.watch(callback)

    def explain(self, service: str, waiting_us: Callable[[RouteKey], int] = lambda _: 0) -> list[Way]:
        """Every way to a service, the best first, and why each is used or is not; `waiting_us` as the proxy sees it."""
        now = self._clock.now()
        stale = stale_ways(self.table.lookup(service), self._stale.serves, now)
        return self._engine.explain(service, now, waiting_us, stale)

    def configured_us(self, peer: str) -> int:
        """What policy adds to the cost of the link to a neighbour."""
        return self._engine.configured_us(peer)

    def leases(self) -> dict[str, float]:
        """When what was learned of each neighbour dies, in clock seconds; only those of whom something was learned."""
        return self._engine.leases()

    @property
    def damping(self) -> DampingPolicy:
        """When announcements of this site are held back."""
        return self._engine.damper.policy

    def flaps(self) -> list[Flapping]:
        """The services of this site that have been flapping, the worst first."""
        return self._engine.damper.view(self._clock.now())

    def flaps_elsewhere(self) -> list[tuple[str, Flapping]]:
        """(origin, what flaps there) as it is seen from here, the worst first: only their origins can hold it."""
        seen = self._engine.observed.view(self._clock.now())
        return [
            (flap.service.partition(" ")[0], replace(flap, service=flap.service.partition(" ")[2])) for flap in seen
        ]

    def release(self, service: str) -> bool:
        """Let out a service that is held back; False where there is nothing to let out."""
        was_known = any(flap.service == service for flap in self.flaps())
        self._carry_out(self._engine.handle(Release(service), self._clock.now()))
        return was_known

    def story(self, service: str) -> list[tuple[float, str]]:
        """What happened to a service, oldest first."""
        return self._engine.story(service)

    # --------------------------------------------------------------- neighbours

    def set_sender(self, send: Callable[[str, bytes], None]) -> None:
        """Send messages to neighbours with `send(peer, payload)`. Without a sender, messages are dropped."""
        self._send = send

    def neighbour_up(self, peer: str, cost_us: int, *, name: str = "", site: str = "") -> None:
        self._stale.link_up(peer)
        self._carry_out(self._engine.handle(NeighbourUp(peer, cost_us, name, site), self._clock.now()))

    def neighbour_cost(self, peer: str, cost_us: int) -> None:
        self._carry_out(self._engine.handle(NeighbourCost(peer, cost_us), self._clock.now()))

    def neighbour_down(self, peer: str) -> None:
        self._carry_out(self._stale.link_down(peer))
        self._carry_out(self._engine.handle(NeighbourDown(peer), self._clock.now()))

    def receive(self, peer: str, payload: bytes) -> None:
        """A neighbour's message; raises Malformed or TooLarge, upon which its link should be closed."""
        message = messages.decode(payload)
        self._carry_out(self._engine.handle(MessageReceived(peer, message), self._clock.now()))

    def tell_everything(self, peer: str) -> None:
        """Send a neighbour the full table anew: its router has begun again, or may have missed something."""
        self._carry_out(self._engine.handle(MessageReceived(peer, Solicit()), self._clock.now()))

    def withdraw_all(self) -> None:
        """Advertise nothing any more, neither of this site nor beyond: the node drains."""
        self._carry_out(self._engine.handle(WithdrawAll(), self._clock.now()))

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
                            self._instance_gone(event.instance.id)
                        else:
                            self._instance_seen(event.instance)
                finally:
                    await watch.close()
            except MicroError as error:
                self._counters.add("router_registry_failures")
                self._log.warning("registry watch failed", extra={"reason": str(error)})
            await asyncio.sleep(self._options.retry_s)

    async def _keep_reconciled(self, registry: Registry) -> None:
        while True:
            await asyncio.sleep(self._options.reconcile_s)
            try:
                await self._reconcile(registry)
            except MicroError as error:
                # What is known stands: a registry that is away has not lost its services.
                self._counters.add("router_registry_failures")
                self._log.warning("registry cannot be compared", extra={"reason": str(error)})

    async def _reconcile(self, registry: Registry) -> None:
        self._changed_ids.clear()
        found = {instance.id: instance for instance in await registry.instances()}
        # What the watch has told meanwhile is newer than this answer may be.
        for instance_id in self._changed_ids:
            found.pop(instance_id, None)
            if instance_id in self._instances:
                found[instance_id] = self._instances[instance_id]
        self._instances = found
        self._site_nodes = {i.id: i.metadata[NODE_KEY] for i in found.values() if _is_node(i)}
        self._carry_out(self._engine.handle(LocalServices(self._view()), self._clock.now()))

    def _instance_seen(self, instance: Instance) -> None:
        before = self._instances.get(instance.id)
        self._instances[instance.id] = instance
        self._changed_ids.add(instance.id)
        if _is_node(instance):
            self._site_nodes[instance.id] = instance.metadata[NODE_KEY]
            self._lead_changed()
        now = self._clock.now()
        provided = dict(self._provided(instance))
        if before is not None:
            for name, _ in self._provided(before):
                if name not in provided:
                    self._carry_out(self._engine.handle(InstanceDown(name, instance.id), now))
        for name, local in provided.items():
            self._carry_out(self._engine.handle(InstanceUp(name, instance.id, local), now))

    def _instance_gone(self, instance_id: str) -> None:
        instance = self._instances.pop(instance_id, None)
        self._changed_ids.add(instance_id)
        if instance is None:
            return
        if self._site_nodes.pop(instance_id, None) is not None:
            self._lead_changed()
        for name, _ in self._provided(instance, even_not_leading=True):
            self._carry_out(self._engine.handle(InstanceDown(name, instance_id), self._clock.now()))

    def _leads(self) -> bool:
        """Of several nodes on a site one alone advertises interest, so that the site gets one copy of a message."""
        return self._node_id <= min(self._site_nodes.values(), default=self._node_id)

    def _lead_changed(self) -> None:
        self._carry_out(self._engine.handle(LocalServices(self._view()), self._clock.now()))

    def _provided(self, instance: Instance, *, even_not_leading: bool = False) -> Iterable[tuple[str, LocalInstance]]:
        if instance.metadata.get(SCOPE_KEY) == SITE_SCOPE:
            return
        local = LocalInstance(
            address=instance.address, version=instance.version, load_us=_load_of(instance.metadata.get(LOAD_KEY, ""))
        )
        yield instance.service, local
        # Messages are not spread by load: interest is told without it.
        wanting = LocalInstance(address=instance.address, version=instance.version)
        if even_not_leading or self._leads():
            for endpoint in instance.endpoints:
                if endpoint.kind is EndpointKind.SUBSCRIBER:
                    yield interest_name(endpoint.name), wanting

    def _view(self) -> dict[str, dict[str, LocalInstance]]:
        view: dict[str, dict[str, LocalInstance]] = defaultdict(dict)
        for instance in self._instances.values():
            for name, local in self._provided(instance):
                view[name][instance.id] = local
        if self._options.is_gateway:
            view[ANY_SERVICE][self._node_id] = LocalInstance(address="")
        return view

    # ------------------------------------------------------------------ effects

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        if self._is_closed:
            return
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table.put(route)
                    if self._stale and route.expires_at is None:
                        self._carry_out(self._stale.told(route))
                case DeleteRoute(key):
                    self.table.delete(key)
                case SendMessage(peer, message):
                    if self._send is not None:
                        payload = messages.encode(message)
                        self._counters.add("routing_messages_sent")
                        self._counters.add("routing_bytes_sent", len(payload))
                        self._send(peer, payload)
                case ToldEverything(peer):
                    self._carry_out(self._stale.told_everything(peer))
                case Count(name, amount):
                    self._counters.add(name, amount)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [moment for moment in (self._engine.wake_at, self._stale.wake_at) if moment is not None]
        when = min(times, default=None)
        if when is not None and not self._is_closed:
            delay = max(0.0, when - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._clock.now()
        self._carry_out([*self._stale.expire(now), *self._engine.wake(now)])


def _load_of(text: str) -> int:
    """What an instance says of its load; 0 for what makes no sense."""
    return min(int(text), MAX_LOAD_US) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


def _is_node(instance: Instance) -> bool:
    return instance.service == NETWORK_SERVICE and NODE_KEY in instance.metadata
