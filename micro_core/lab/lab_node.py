"""A node in the lab, with what runs on its site: services, clients, and the faults that may befall it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.transport.memory import MemoryTransport
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, DriverContext
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.registry import Instance
from micro_core.contract.table import Route, RouteQuery, Table
from micro_core.contract.transport import Transport
from micro_core.lab.loop import LabClock
from micro_core.network.peers import PeerOptions
from micro_core.node.composition import Parts, compose
from micro_core.node.node import Node
from micro_core.routing.router import RouterOptions
from micro_core.rpc.client import Client
from micro_core.rpc.client_call import ClientStream
from micro_core.rpc.service import Service
from micro_core.tunnel.identity import NodeIdentity

if TYPE_CHECKING:
    from micro_core.lab.net import Lab

TableMaker = Callable[[DriverContext], Table]
"""Makes the table of a node, at the beginning of each of its lives."""

NETWORK = "lab"
TOKEN = "a token that is no secret"  # noqa: S105


def memory_table(context: DriverContext) -> Table:
    """A new table in every life, which forgets."""
    return MemoryTable(logger=context.logger, counters=context.counters)


class LabRegistry(MemoryRegistry):
    """The site's records; can be left as a killed process leaves them."""

    async def abandon(self) -> None:
        """Be gone without a word: the records stay until their leases run out."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.detach(self._watches)
            await self._watches.close()

    async def deregister(self, instance: Instance) -> None:
        """Who is gone without a word says none any more."""
        if self._hub is not None:
            await super().deregister(instance)


@dataclass
class LabNode:
    """One node and its site. Made by `Lab.add`."""

    lab: Lab
    name: str
    site: str
    identity: NodeIdentity
    clock: LabClock
    router: RouterOptions
    table: TableMaker = memory_table
    seeds: list[str] = field(default_factory=list)
    is_alive: bool = False
    gone_at: float = 0.0
    """When it was stopped or killed, in virtual seconds."""
    lives: int = 0
    counted_before: dict[str, int] = field(default_factory=dict)
    """Counters of earlier lives."""
    _transports: int = 0
    _node: Node | None = None
    _registry: LabRegistry | None = None
    _services: dict[str, tuple[Service, LabRegistry]] = field(default_factory=dict)
    _clients: list[Client] = field(default_factory=list)

    # ---------------------------------------------------------------------- life

    @property
    def node(self) -> Node:
        """The node itself, as it runs everywhere else."""
        assert self._node is not None, f"{self.name} was never started"
        return self._node

    @property
    def id(self) -> str:
        return self.identity.node_id

    async def start(self) -> LabNode:
        """Start, or start again after `stop` or `kill`, with the same key and a later incarnation."""
        self.lives += 1
        options = self.lab.options
        counters = CountersInMemory()
        source = self.random("node")
        context = self._context(counters, source)
        registry = self._registry = LabRegistry(context)
        host = BrokerHost(node_id=self.id, counters=counters, logger=context.logger)
        node = self._node = compose(
            Parts(
                identity=self.identity,
                name=self.name,
                site=self.site,
                network=NETWORK,
                token=TOKEN,
                incarnation=int(self.clock.wall() * 1000) + self.lives,
                clock=self.clock,
                random=source,
                logger=context.logger,
                counters=counters,
                transport=self._transport(),
                registry=registry,
                table=self.table(context),
                broker=host.local_broker(),
                broker_host=host,
                resolvers=(),
                links=[(self.lab.wires.driver(self.name, scheme), self.name) for scheme in options.schemes],
                seeds=tuple(self.seeds),
                lease_s=options.registry_lease_s,
                peers=PeerOptions(target_links=0, resolve_s=3_600.0, resolve_when_short_s=3_600.0),
                tunnel=options.tunnel,
                router=self.router,
            )
        )
        await node.start()
        self.is_alive = True
        node.router.watch(lambda event: self.lab.note(self.name, f"route {event.kind.value} {_said(event.route)}"))
        node.network.set_report_handler(lambda sentence: self.lab.note(self.name, sentence))
        self.lab.note(self.name, "started")
        return self

    async def stop(self) -> None:
        """An orderly end: everything is withdrawn first."""
        self.lab.note(self.name, "stops")
        await self.node.stop()
        await self._gone()

    async def kill(self) -> None:
        """The end of `kill -9`: nobody is told anything, and records stay until their leases run out."""
        self.lab.note(self.name, "killed")
        self.lab.wires.silence(self.name)
        assert self._registry is not None
        await self._registry.abandon()
        for service_id in [*self._services]:
            await self.kill_service(service_id)
        await self.node.stop(drain=False)
        await self._gone()

    async def _gone(self) -> None:
        self.is_alive, self.gone_at = False, self.clock.now()
        for name, count in self.node.counted().items():
            self.counted_before[name] = self.counted_before.get(name, 0) + count
        for client in self._clients:
            await client.close()
        self._clients.clear()

    # ------------------------------------------------------------------- services

    async def serve(self, service: Service, *, instance_id: str = "") -> Service:
        """Run a service on this site; `instance_id` by default its name and a number."""
        chosen = instance_id or f"{service.name}-{self.name}-{self.lab.next_number()}"
        registry = LabRegistry(self._context(service.counters, self.random(chosen)))
        await registry.start()
        service.attach(
            registry=registry,
            transport=self._transport(),
            broker=self._broker(),
            clock=self.clock,
            random=self.random(chosen),
            instance_id=chosen,
        )
        await service.start()
        self._services[chosen] = (service, registry)
        self.lab.note(self.name, f"serves {service.name} as {chosen}")
        return service

    async def stop_service(self, service: Service | str) -> None:
        """An orderly end of one service of this site."""
        found, registry = self._services.pop(service if isinstance(service, str) else service.id)
        self.lab.note(self.name, f"stops {found.id}")
        await found.stop()
        await registry.close()

    async def kill_service(self, service: Service | str) -> None:
        """Its process is gone; its record stays until its lease runs out."""
        found, registry = self._services.pop(service if isinstance(service, str) else service.id)
        self.lab.note(self.name, f"kills {found.id}")
        await registry.abandon()
        await found.stop(drain_s=0.0)

    @property
    def services(self) -> list[Service]:
        """What runs on this site."""
        return [service for service, _ in self._services.values()]

    # ---------------------------------------------------------------------- using

    async def call(self, service: str, endpoint: str, request: Any = None, **options: Any) -> Any:
        """Call through this site's node, as a client with MICRO_PROXY does."""
        return await (await self.client()).call(service, endpoint, request, **options)

    async def stream(self, service: str, endpoint: str, *request: Any, **options: Any) -> ClientStream:
        """A streaming call through this site's node, to be opened by `async with`."""
        return (await self.client()).stream(service, endpoint, *request, **options)

    async def publish(self, topic: str, payload: Any, **options: Any) -> str:
        """Publish on this site."""
        return await (await self.client()).publish(topic, payload, **options)

    async def client(self) -> Client:
        """A client of this site, closed with its node."""
        if not self._clients:
            name = f"client-{self.name}"
            registry = LabRegistry(self._context(CountersInMemory(), self.random(name)))
            await registry.start()
            self._clients.append(
                Client(
                    registry=registry,
                    transport=self._transport(),
                    broker=self._broker(),
                    proxy=NETWORK_SERVICE,
                    name=name,
                    clock=self.clock,
                    random=self.random(name),
                )
            )
        return self._clients[0]

    # -------------------------------------------------------------------- looking

    def routes(self, service: str = "") -> list[Route]:
        """The node's table, or its routes to one service."""
        return self.node.router.routes(RouteQuery(service=service) if service else None)

    def counted(self, name: str) -> int:
        """A counter, over all lives."""
        now = self.node.counters.values.get(name, 0) if self.is_alive else 0
        return self.counted_before.get(name, 0) + now

    # --------------------------------------------------------------------- inside

    def random(self, what: str) -> Random:
        """A source of its own for each part, so that one that draws more disturbs no other."""
        return Random(f"{self.lab.seed}/{self.name}/{what}/{self.lives}")  # noqa: S311

    def _transport(self) -> Transport:
        self._transports += 1
        source = self.random(f"transport {self._transports}")
        return MemoryTransport(network=NETWORK, site=self.site, random=source)

    def _broker(self) -> Broker:
        host = self.node.broker_host
        assert host is not None
        return host.local_broker()

    def _context(self, counters: Any, source: Random) -> DriverContext:
        return DriverContext(
            node_id=self.id,
            network=NETWORK,
            site=self.site,
            state_dir="",
            clock=self.clock,
            random=source,
            logger=logging.getLogger("micro.lab"),
            counters=counters,
        )


def _said(route: Route) -> str:
    via = route.gateway[:8] or route.address
    return f"{route.service} at {route.router[:8]} via {via} for {route.metric} µs"
