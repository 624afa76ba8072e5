"""A node of the lab and its site: the services and clients that run there, start, shutdown and crash."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.hub import HubBroker
from micro_core.builtin.broker.node import NodeBroker, NodeBrokerOptions
from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, DriverContext
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import (
    LocalRouteChanged,
    OffersChanged,
    OriginRouteChanged,
    Route,
    RouteQuery,
    Table,
    TableEvent,
)
from micro_core.lab.directory import Directory
from micro_core.lab.faults import FaultLog
from micro_core.lab.lab_registry import LabRegistry
from micro_core.lab.lab_transport import LabTransport
from micro_core.lab.loop import LabClock
from micro_core.lab.options import LabOptions
from micro_core.lab.process import SimulatedProcess
from micro_core.lab.simulated_links import SimulatedLinks
from micro_core.lifecycle.environment import Environment
from micro_core.network.link_targets import PeerOptions
from micro_core.node.composition import NodeComponents, compose
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingSettings
from micro_core.node.link_plane import LinkSettings
from micro_core.node.node import Node
from micro_core.node.routing_plane import RoutingSettings
from micro_core.routing.router import RouterOptions
from micro_core.rpc.client import Client
from micro_core.rpc.client_call import ClientStream
from micro_core.rpc.service import Service
from micro_core.tunnel.identity import NodeIdentity

TableMaker = Callable[[DriverContext], Table]
"""Creates the table of a node. It is called at each start of the node."""


class SiteBroker(enum.Enum):
    """The broker of a site."""

    OWN = "own"
    """The one that the node provides, used directly. For sites with one node."""
    NODES = "nodes"
    """Each node provides one, and clients choose between them: `broker:node`."""
    SHARED = "shared"
    """One for the whole site beside the nodes, as with NATS."""


NETWORK = "lab"
TOKEN = "test-token"  # noqa: S105

PEERS_OF_SEEDS = PeerOptions(links_site=0, links_remote=0, resolve_s=3_600.0, resolve_when_short_s=3_600.0)
"""For nodes without resolvers: they keep the links to their seeds and no others."""


def memory_table(context: DriverContext) -> Table:
    """Create a table in memory, which is empty after each start."""
    return MemoryTable(logger=context.logger, counters=context.counters)


class LabContext(Protocol):
    """The part of a lab that its nodes use."""

    seed: int
    options: LabOptions
    links: SimulatedLinks
    directory: Directory
    faults: FaultLog

    def note(self, source: str, text: str) -> None:
        """Add a line to the event log."""
        ...

    def next_number(self) -> int:
        """Return a number that is unique in the lab."""
        ...

    def shared_broker(self, site: str) -> Subscribers:
        """Return the subscribers of the broker of a site with `SiteBroker.SHARED`."""
        ...


ResolverMaker = Callable[["LabNode"], Resolver]
"""Creates a resolver of a node. It is called at each start of the node."""


@dataclass
class LabNode:
    """One node and its site, created by `Lab.add`."""

    lab: LabContext
    name: str
    site: str
    identity: NodeIdentity
    clock: LabClock
    router: RouterOptions
    table: TableMaker = memory_table
    seeds: list[str] = field(default_factory=list)
    resolvers: Sequence[ResolverMaker] = ()
    """With resolvers, the node chooses its links as in production. Without, it keeps those to its seeds."""
    address: str = ""
    """Where the node listens: `host:port`, or its name."""
    broker: SiteBroker = SiteBroker.OWN
    is_alive: bool = False
    stopped_at: float = 0.0
    """Virtual seconds at which the node was stopped or killed the last time."""
    table_version: int = 0
    """Number of changes of the table so far, over all starts."""
    starts: int = 0
    """Number of starts so far."""
    counted_before: dict[str, int] = field(default_factory=dict)
    """The counters of the runs before the last start."""
    process: SimulatedProcess | None = None
    """The process of the last start."""
    _transports: int = 0
    _node: Node | None = None
    _registry: LabRegistry | None = None
    _services: dict[str, tuple[Service, LabRegistry]] = field(default_factory=dict)
    _clients: list[Client] = field(default_factory=list)

    # ----------------------------------------------------------------- lifecycle

    @property
    def node(self) -> Node:
        """The node itself, the same object as in `micro run`."""
        assert self._node is not None, f"node {self.name} was never started"
        return self._node

    @property
    def registry(self) -> LabRegistry:
        """The connection of the node to the registry of its site."""
        assert self._registry is not None, f"node {self.name} was never started"
        return self._registry

    @property
    def id(self) -> str:
        """The node id."""
        return self.identity.node_id

    async def start(self) -> LabNode:
        """Start the node. After `stop` or `kill`, it starts again with the same key and a later incarnation."""
        self.starts += 1
        process = self.process = SimulatedProcess(asyncio.get_running_loop(), self.lab.options.cpu)
        self.lab.links.run_in(self.name, process.context)
        self.lab.directory.addresses.setdefault(self.name, self.address)
        node = self._node = self._compose(process.context)
        await self._in_process(node.start())
        self.is_alive = True
        self.table_version += 1
        node.router.watch(lambda event: self.lab.note(self.name, _describe(event)))
        node.router.watch(self._table_changed)
        node.network.set_report_handler(lambda text: self.lab.note(self.name, text))
        self.lab.note(self.name, "started")
        self.lab.faults.end("down", self.name)
        return self

    def _compose(self, process_context: contextvars.Context) -> Node:
        options, counters = self.lab.options, CountersInMemory()
        context = self._context(counters, self.random("node"))
        registry = self._registry = LabRegistry(context)
        transport = self._transport(process_context)
        host = None
        if self.broker is SiteBroker.SHARED:
            broker: Broker = HubBroker(lambda: self.lab.shared_broker(self.site), counters)
        else:
            host = BrokerHost(node_id=self.id, counters=counters, logger=context.logger)
            broker = host.local_broker()
            if self.broker is SiteBroker.NODES:
                client = NodeBroker(NodeBrokerOptions(), replace(context, registry=registry, transport=transport))
                client.set_local_host(host)
                broker = client
        incarnation = int(self.clock.wall() * 1000) + self.starts
        listeners = [(self.lab.links.driver(self.name, scheme), self.address) for scheme in options.schemes]
        return compose(
            NodeComponents(
                node=NodeDescription(node_id=self.id, name=self.name, site=self.site, network=NETWORK),
                environment=Environment.from_context(context),
                links=LinkSettings(
                    identity=self.identity,
                    token=TOKEN,
                    incarnation=incarnation,
                    listeners=listeners,
                    resolvers=[make(self) for make in self.resolvers],
                    seeds=tuple(self.seeds),
                    peers=options.peers if self.resolvers else PEERS_OF_SEEDS,
                    tunnel=options.tunnel,
                ),
                routing=RoutingSettings(table=self.table(context), incarnation=incarnation, router=self.router),
                forwarding=ForwardingSettings(transport=transport, broker=broker),
                registry=registry,
                broker_host=host,
                lease_s=options.registry_lease_s,
            )
        )

    def _table_changed(self, event: object) -> None:  # noqa: ARG002 - which change it was makes no difference
        self.table_version += 1

    async def _in_process(self, work: Coroutine[None, None, None]) -> None:
        assert self.process is not None
        await asyncio.get_running_loop().create_task(work, context=self.process.context.copy())

    async def stop(self) -> None:
        """Shut the node down gracefully: all routes are withdrawn first."""
        self.lab.note(self.name, "stopped")
        self.lab.faults.begin("down", self.name)
        await self._in_process(self.node.stop())
        await self._after_stop()

    async def kill(self, *, with_services: bool = True) -> None:
        """Crash the node, and the services that were started on it: no message is sent, and records remain until their leases expire.

        Without `with_services`, the services of the site continue to run. Other nodes of the site serve them.
        """
        self.lab.note(self.name, "killed")
        self.lab.faults.begin("down", self.name)
        self.lab.links.disconnect_silently(self.name)
        assert self._registry is not None
        assert self.process is not None
        self.process.end()
        await self._registry.abandon()
        for instance_id in [*self._services] if with_services else []:
            await self.kill_service(instance_id)
        await self.node.stop(drain=False)
        await self._after_stop()

    def sleep(self, seconds: float) -> None:
        """Stop the process of the node for `seconds`, as a SIGSTOP or a suspended machine does. Its services continue.

        Its timers and received data wait meanwhile. Afterwards, all of them are processed at once.
        """
        self.lab.note(self.name, f"sleeps for {seconds:.6g} s")
        self.lab.faults.at_once("sleep", self.name, lasts_s=seconds)
        assert self.process is not None
        self.process.stop(seconds)

    async def _after_stop(self) -> None:
        self.is_alive, self.stopped_at = False, self.clock.now()
        for name, count in self.node.counted().items():
            self.counted_before[name] = self.counted_before.get(name, 0) + count
        for client in self._clients:
            await client.close()
        self._clients.clear()

    # ------------------------------------------------------------------- services

    async def serve(self, service: Service, *, instance_id: str = "") -> Service:
        """Start a service on this site. `instance_id` defaults to the names of the service and the node and a number."""
        chosen_id = instance_id or f"{service.name}-{self.name}-{self.lab.next_number()}"
        registry = LabRegistry(self._context(service.counters, self.random(chosen_id)))
        await registry.start()
        transport = self._transport()
        service.attach(
            registry=registry,
            transport=transport,
            broker=self._broker(chosen_id, registry, transport),
            clock=self.clock,
            random=self.random(chosen_id),
            instance_id=chosen_id,
        )
        await service.start()
        self._services[chosen_id] = (service, registry)
        self.lab.note(self.name, f"serves {service.name} as {chosen_id}")
        return service

    async def stop_service(self, service: Service | str) -> None:
        """Shut down one service of this site gracefully. Raises KeyError if it does not run."""
        found, registry = self._services.pop(service if isinstance(service, str) else service.id)
        self.lab.note(self.name, f"service {found.id} stopped")
        await found.stop()
        await registry.close()

    async def kill_service(self, service: Service | str) -> None:
        """Crash one service of this site: its record remains until its lease expires.

        Raises KeyError if it does not run.
        """
        found, registry = self._services.pop(service if isinstance(service, str) else service.id)
        self.lab.note(self.name, f"service {found.id} killed")
        await registry.abandon()
        await found.stop(drain_s=0.0)

    @property
    def services(self) -> list[Service]:
        """The services that run on this site."""
        return [service for service, _ in self._services.values()]

    # ------------------------------------------------------------------- clients

    async def call(self, service: str, endpoint: str, request: Any = None, **options: Any) -> Any:
        """Call an endpoint through the node of this site and return the result.

        Arguments and errors are those of `Client.call`.
        """
        return await (await self.client()).call(service, endpoint, request, **options)

    async def stream(self, service: str, endpoint: str, *request: Any, **options: Any) -> ClientStream:
        """Return a streaming call through the node of this site, to be opened with `async with`."""
        return (await self.client()).stream(service, endpoint, *request, **options)

    async def publish(self, topic: str, payload: Any, **options: Any) -> str:
        """Publish a message on this site and return its id."""
        return await (await self.client()).publish(topic, payload, **options)

    async def client(self) -> Client:
        """Return the client of this site. It is closed when the node stops."""
        if not self._clients:
            name = f"client-{self.name}"
            registry = LabRegistry(self._context(CountersInMemory(), self.random(name)))
            await registry.start()
            transport = self._transport()
            self._clients.append(
                Client(
                    registry=registry,
                    transport=transport,
                    broker=self._broker(name, registry, transport),
                    proxy=NETWORK_SERVICE,
                    name=name,
                    clock=self.clock,
                    random=self.random(name),
                )
            )
        return self._clients[0]

    # ------------------------------------------------------------------- queries

    def routes(self, service: str = "") -> list[Route]:
        """Return the routes of the table of the node, to one service or to all."""
        return self.node.router.routes(RouteQuery(service=service) if service else None)

    def counted(self, name: str) -> int:
        """Return the value of a counter, summed over all starts of the node."""
        current = self.node.counted().get(name, 0) if self.is_alive else 0
        return self.counted_before.get(name, 0) + current

    # ------------------------------------------------------------------ internals

    def random(self, purpose: str) -> Random:
        """Return a random generator for one purpose. Generators for other purposes are independent of it."""
        return Random(f"{self.lab.seed}/{self.name}/{purpose}/{self.starts}")  # noqa: S311

    def _transport(self, context: contextvars.Context | None = None) -> LabTransport:
        self._transports += 1
        source = self.random(f"transport {self._transports}")
        return LabTransport(NETWORK, self.site, source, context)

    def _broker(self, name: str, registry: LabRegistry, transport: LabTransport) -> Broker:
        """Return the client of the broker of this site for a service or a client."""
        if self.broker is SiteBroker.OWN:
            host = self.node.broker_host
            assert host is not None
            return host.local_broker()
        counters = CountersInMemory()
        if self.broker is SiteBroker.SHARED:
            return HubBroker(lambda: self.lab.shared_broker(self.site), counters)
        context = replace(self._context(counters, self.random(f"broker of {name}")), registry=registry)
        return NodeBroker(NodeBrokerOptions(), replace(context, transport=transport))

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


def _describe(event: TableEvent) -> str:
    match event:
        case LocalRouteChanged(before, after):
            route = after or before
            return "" if route is None else f"route {_kind(before, after)} {route.service} at {route.address}"
        case OriginRouteChanged(route_before, route_after):
            origin_route = route_after or route_before
            assert origin_route is not None
            return (
                f"origin route {_kind(route_before, route_after)} to {origin_route.origin[:8]} "
                f"via {origin_route.gateway[:8]} at {origin_route.metric} µs"
            )
        case OffersChanged(origin, changes):
            shown = ", ".join(
                f"{offer.service} {_kind(before, after)}d" for before, after in changes if (offer := after or before)
            )
            return f"offers of {origin[:8]}: {shown}"


def _kind(before: object, after: object) -> str:
    return "create" if before is None else "delete" if after is None else "update"
