"""From drivers to a node: tunnel, router, proxy and network, made and wired. The only place where everything meets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from micro_core.builtin.broker.host import BrokerHost
from micro_core.contract.broker import Broker
from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.contract.registry import Registry
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import Table
from micro_core.contract.transport import Socket, Transport
from micro_core.contract.tunnel import LinkDriver, LinkEvent, LinkMoved, Priority, Session
from micro_core.lifecycle.environment import Environment
from micro_core.network.adverts import Adverts
from micro_core.network.messages import NodeRecord
from micro_core.network.network import Network
from micro_core.network.peers import PeerOptions
from micro_core.node.control import Control
from micro_core.node.node import Node
from micro_core.node.node_lock import NodeLock
from micro_core.plugins import CORE_DISTRIBUTION, Hooks
from micro_core.proxy.proxy import CHANNEL, Proxy
from micro_core.proxy.topics import Topics
from micro_core.routing.router import Router, RouterOptions
from micro_core.rpc.debug import Debug
from micro_core.rpc.pool import Pool
from micro_core.rpc.server import Server
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost, TunnelOptions

DIAL_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that a node is made of: who it is, the drivers it stands on (built, not started), and its options."""

    identity: NodeIdentity
    name: str
    site: str
    network: str
    token: str
    incarnation: int
    clock: Clock
    random: Random
    logger: logging.Logger
    counters: CountersInMemory
    transport: Transport
    registry: Registry
    table: Table
    broker: Broker
    broker_host: BrokerHost | None
    """Where the node hosts its site's broker, the host; `broker` is then its local end."""
    resolvers: Sequence[Resolver]
    links: Sequence[tuple[LinkDriver, str | None]]
    """Drivers of links, each with the address to listen at; None for one that only dials."""
    seeds: Sequence[str] = ()
    address: str = ""
    lease_s: float = 90.0
    peers: PeerOptions = field(default_factory=PeerOptions)
    tunnel: TunnelOptions = field(default_factory=TunnelOptions)
    router: RouterOptions = field(default_factory=RouterOptions)
    hooks: Hooks = field(default_factory=Hooks)
    claim: NodeLock | None = None
    """What keeps a second process from running the same node."""
    drivers: tuple[str, ...] = ()


def compose(parts: Parts) -> Node:
    """Make a node, everything wired and nothing started."""
    node_id = parts.identity.node_id
    at = f"node {parts.name} ({short_id(node_id)})"
    clock, source, counters = parts.clock, parts.random, parts.counters
    environment = Environment(node_id=node_id, clock=clock, random=source, logger=parts.logger, counters=counters)
    transport, broker = parts.transport, parts.broker

    tunnel = TunnelHost(
        identity=parts.identity,
        name=parts.name,
        site=parts.site,
        network=parts.network,
        token=parts.token,
        listeners=parts.links,
        environment=environment,
        incarnation=parts.incarnation,
        options=parts.tunnel,
    )
    router = Router(
        network=parts.network,
        site=parts.site,
        table=parts.table,
        environment=environment,
        incarnation=parts.incarnation,
        options=parts.router,
    )
    server = Server(NETWORK_SERVICE, at=at, counters=counters)

    async def dial(address: str) -> Socket:
        return await transport.dial(address, timeout_s=DIAL_TIMEOUT_S)

    def dial_session(peer: str, priority: Priority) -> Session:
        return tunnel.dial(CHANNEL, peer=peer, priority=priority)

    proxy = Proxy(
        at=at,
        router=router,
        server=server,
        own_services={NETWORK_SERVICE},
        pool=Pool(dial, clock=clock, random=source, node_id=node_id, counters=counters),
        dial_session=dial_session,
        environment=environment,
    )
    network = Network(
        name=parts.network,
        record=NodeRecord(
            id=node_id, name=parts.name, site=parts.site, addresses=(), incarnation=parts.incarnation, sequence=1
        ),
        tunnel=tunnel,
        resolvers=parts.resolvers,
        seeds=parts.seeds,
        environment=environment,
        options=parts.peers,
    )
    adverts = Adverts(tunnel=tunnel, router=router, environment=environment)
    topics = Topics(
        router=router,
        proxy=proxy,
        broker=broker,
        environment=environment,
    )
    router.set_sender(adverts.send)
    proxy.set_message_handler(topics.message_received)

    def dispatch(event: LinkEvent) -> None:
        """Pass an event of the tunnel on: to the proxy first, so that new calls use the new link at once."""
        if isinstance(event, LinkMoved):
            proxy.peer_moved(event.link.peer)
        adverts.handle_link_event(event)
        network.handle_link_event(event)

    tunnel.set_event_handler(dispatch)

    def metadata() -> dict[str, str]:
        return {"node": node_id, "name": parts.name, "site": parts.site, "tunnel": ",".join(tunnel.address())}

    node = Node(
        node_id=node_id,
        name=parts.name,
        site=parts.site,
        network_name=parts.network,
        transport=transport,
        registry=parts.registry,
        broker=broker,
        broker_host=parts.broker_host,
        table=parts.table,
        resolvers=parts.resolvers,
        tunnel=tunnel,
        router=router,
        network=network,
        adverts=adverts,
        proxy=proxy,
        topics=topics,
        server=server,
        listen_address=parts.address,
        lease_s=parts.lease_s,
        metadata=metadata,
        counters=counters,
        log=parts.logger,
        hooks=parts.hooks,
        claim=parts.claim,
        drivers=parts.drivers,
    )
    Debug(server, version=version(CORE_DISTRIBUTION), instance_id=f"{NETWORK_SERVICE}-{node_id}").start(clock)
    Control(
        network=network,
        router=router,
        topics=topics,
        broker=broker,
        clock=clock,
        facts=node.facts,
        waiting_us=proxy.waiting_us,
    ).add_to(server)
    return node
