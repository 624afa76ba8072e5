"""The router: the engine's shell. Watches the registry, keeps the table, carries messages, wakes in time."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from micro_core.routing import messages
from micro_core.routing.engine import Engine, EngineOptions
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
    SendMessage,
    WithdrawAll,
)
from micro_core.spec.clock import Clock, Random
from micro_core.spec.driver import Counters
from micro_core.spec.errors import MicroError
from micro_core.spec.names import INTEREST_PREFIX, interest_name
from micro_core.spec.registry import EndpointKind, Instance, Registry, RegistryEventKind
from micro_core.spec.table import ANY_SERVICE, Route, RouteEvent, RouteQuery, Table

NODE_KEY = "node"
"""Metadata by which a node's own record names its node id."""

NODE_SERVICE = "go.micro.network"
"""The service as which nodes register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """Times of the shell; those of the engine are in `engine`."""

    reconcile_s: float = 30.0
    """Seconds between two full comparisons with the registry: repairs whatever a watch has missed."""

    retry_s: float = 1.0
    """Pause before a registry that failed is watched again."""

    engine: EngineOptions = field(default_factory=EngineOptions)


class Router:
    """Routes of one node. `incarnation` must be larger at every start (wall-clock milliseconds do)."""

    def __init__(
        self,
        *,
        node_id: str,
        network: str,
        site: str,
        table: Table,
        clock: Clock,
        random: Random,
        logger: logging.Logger,
        counters: Counters,
        incarnation: int,
        options: RouterOptions | None = None,
    ) -> None:
        self.table = table
        self._options = options or RouterOptions()
        self._engine = Engine(
            router=node_id,
            network=network,
            site=site,
            incarnation=incarnation,
            random=random,
            options=self._options.engine,
        )
        self._node_id = node_id
        self._clock = clock
        self._log = logger
        self._counters = counters
        self._send: Callable[[str, bytes], None] | None = None
        self._instances: dict[str, Instance] = {}
        self._site_nodes: dict[str, str] = {}
        self._registry: Registry | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    # ------------------------------------------------------------------- life

    async def start(self, registry: Registry) -> None:
        """Load the registry, then follow it. A registry that is away is tried again; this does not wait for it."""
        self._registry = registry
        try:
            await self._reconcile(registry)
        except MicroError as error:
            self._log.warning("registry cannot be read yet", extra={"reason": str(error)})
        loop = asyncio.get_running_loop()
        for work in (self._watch(registry), self._keep_reconciled(registry)):
            task = loop.create_task(work)
            task.add_done_callback(self._done)
            self._tasks.append(task)

    async def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ----------------------------------------------------------------- lookups

    def lookup(self, service: str) -> Sequence[Route]:
        """The routes of a service, best metric first; those of the default route where there is none."""
        return self.table.lookup(service) or self.table.lookup(ANY_SERVICE)

    def interest_routes(self, topic: str) -> Sequence[Route]:
        """Who wants a topic."""
        return self.table.lookup(interest_name(topic))

    def services(self) -> list[str]:
        """Every service that can be reached, without interests."""
        return sorted({r.service for r in self.table.list() if not r.service.startswith(INTEREST_PREFIX)})

    def routes(self, query: RouteQuery | None = None) -> list[Route]:
        return self.table.list(query)

    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        """Call `callback` after each change of the table; returns what ends it."""
        return self.table.watch(callback)

    def story(self, service: str) -> list[tuple[float, str]]:
        """What happened to a service, oldest first."""
        return self._engine.story(service)

    # --------------------------------------------------------------- neighbours

    def on_send(self, callback: Callable[[str, bytes], None]) -> None:
        """Who carries messages: `callback(peer, payload)`."""
        self._send = callback

    def neighbour_up(self, peer: str, cost_us: int) -> None:
        self._carry_out(self._engine.handle(NeighbourUp(peer, cost_us), self._clock.now()))

    def neighbour_cost(self, peer: str, cost_us: int) -> None:
        self._carry_out(self._engine.handle(NeighbourCost(peer, cost_us), self._clock.now()))

    def neighbour_down(self, peer: str) -> None:
        self._carry_out(self._engine.handle(NeighbourDown(peer), self._clock.now()))

    def receive(self, peer: str, payload: bytes) -> None:
        """A neighbour's message; raises Malformed or TooLarge, upon which its link should be closed."""
        message = messages.decode(payload)
        self._carry_out(self._engine.handle(MessageReceived(peer, message), self._clock.now()))

    def withdraw_all(self) -> None:
        """Advertise nothing of this site any more: the node drains."""
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
        found = {instance.id: instance for instance in await registry.instances()}
        self._instances = found
        self._site_nodes = {i.id: i.metadata[NODE_KEY] for i in found.values() if _is_node(i)}
        self._carry_out(self._engine.handle(LocalServices(self._view()), self._clock.now()))

    def _instance_seen(self, instance: Instance) -> None:
        before = self._instances.get(instance.id)
        self._instances[instance.id] = instance
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
        local = LocalInstance(address=instance.address, version=instance.version)
        yield instance.service, local
        if even_not_leading or self._leads():
            for endpoint in instance.endpoints:
                if endpoint.kind is EndpointKind.SUBSCRIBER:
                    yield interest_name(endpoint.name), local

    def _view(self) -> dict[str, dict[str, LocalInstance]]:
        view: dict[str, dict[str, LocalInstance]] = defaultdict(dict)
        for instance in self._instances.values():
            for name, local in self._provided(instance):
                view[name][instance.id] = local
        return view

    # ------------------------------------------------------------------ effects

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table.put(route)
                case DeleteRoute(key):
                    self.table.delete(key)
                case SendMessage(peer, message):
                    if self._send is not None:
                        self._send(peer, messages.encode(message))
                case Count(name, amount):
                    self._counters.add(name, amount)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._engine.wake_at
        if when is not None and not self._is_closed:
            delay = max(0.0, when - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._carry_out(self._engine.wake(self._clock.now()))

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counters.add("router_tasks_failed")
            self._log.error("router task failed", exc_info=error)


def _is_node(instance: Instance) -> bool:
    return instance.service == NODE_SERVICE and NODE_KEY in instance.metadata
