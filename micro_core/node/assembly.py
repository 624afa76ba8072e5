"""From settings to a node: drivers, objects, wiring, top to bottom. The only place where everything meets."""

from __future__ import annotations

import logging
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from micro_core.builtin.joined_registry import JoinedRegistry
from micro_core.builtin.joined_transport import JoinedTransport
from micro_core.builtin.node_broker_host import BrokerHost
from micro_core.builtin.system_clock import SystemClock
from micro_core.config import Settings
from micro_core.network.messages import NodeRecord
from micro_core.network.network import Network
from micro_core.network.peers import PeerOptions
from micro_core.node.control import SERVICE, Control
from micro_core.node.node import Node
from micro_core.plugins import Catalog
from micro_core.proxy.proxy import CHANNEL, Proxy
from micro_core.proxy.topics import Topics
from micro_core.routing.router import Router
from micro_core.rpc.defaults import build, check_tables, drivers_of
from micro_core.rpc.pool import Pool
from micro_core.rpc.server import Server
from micro_core.spec.broker import Broker
from micro_core.spec.driver import CountersInMemory, DriverContext, Role
from micro_core.spec.errors import ConfigError
from micro_core.spec.names import check_network_name, check_site, short_id
from micro_core.spec.registry import Registry
from micro_core.spec.resolver import Resolver
from micro_core.spec.table import Table
from micro_core.spec.transport import Socket, Transport
from micro_core.spec.tunnel import LinkDriver, Priority, Session
from micro_core.tunnel.identity import NodeIdentity, load_or_create_token, load_token
from micro_core.tunnel.tunnel import TunnelHost

NO_LISTEN = "none"
"""`node.listen` of a node that only dials out."""

NODE_BROKER = "broker:node"


def assemble(settings: Settings, catalog: Catalog | None = None) -> Node:
    """Build a node, everything wired and nothing started. Raises ConfigError and its kind."""
    catalog = catalog if catalog is not None else Catalog.discover()
    check_tables(catalog, settings)
    chosen = settings.node
    network_name, site = check_network_name(chosen.network), check_site(chosen.site)
    name = chosen.name or f"{socket.gethostname().partition('.')[0]}-{site}"

    # Who it is.
    identity = NodeIdentity.load_or_create(settings.state_dir() / "nodes" / f"{_file_name(name)}.key")
    node_id = identity.node_id
    at = f"node {name} ({short_id(node_id)})"
    clock, counters = SystemClock(), CountersInMemory()
    logger = logging.getLogger("micro.node")
    # One source for all: handshakes draw nonces from it, so it must not be guessable.
    source = random.SystemRandom()
    incarnation = int(clock.wall() * 1000)

    # Drivers, those that others are built on first.
    context = DriverContext(
        node_id=node_id,
        network=network_name,
        site=site,
        state_dir=str(settings.state_dir()),
        clock=clock,
        random=source,
        logger=logger,
        counters=counters,
    )

    def built(role: Role, context: DriverContext) -> list[Any]:
        return [build(catalog, settings, entry, context) for entry in drivers_of(catalog, settings, role)]

    transport: Transport = JoinedTransport(built(Role.TRANSPORT, context))
    registries: list[Registry] = built(Role.REGISTRY, context)
    registry = registries[0] if len(registries) == 1 else JoinedRegistry(registries, counters)
    context = replace(context, registry=registry, transport=transport)
    table: Table = built(Role.TABLE, context)[0]
    resolvers: list[Resolver] = built(Role.RESOLVER, context)
    link_drivers: list[LinkDriver] = built(Role.TUNNEL, context)
    broker_host: BrokerHost | None = None
    broker: Broker
    (broker_entry,) = drivers_of(catalog, settings, Role.BROKER)
    if broker_entry.qualified == NODE_BROKER:
        broker_host = BrokerHost(node_id=node_id, counters=counters, logger=logger)
        broker = broker_host.local_broker()
    else:
        broker = build(catalog, settings, broker_entry, context)

    # The four parts.
    listen = None if chosen.listen == NO_LISTEN else chosen.listen
    tunnel = TunnelHost(
        identity=identity,
        name=name,
        site=site,
        network=network_name,
        token=network_token(settings),
        listeners=[(driver, listen) for driver in link_drivers],
        clock=clock,
        random=source,
        logger=logger,
        counters=counters,
        incarnation=incarnation,
    )
    router = Router(
        node_id=node_id,
        network=network_name,
        site=site,
        table=table,
        clock=clock,
        random=source,
        logger=logger,
        counters=counters,
        incarnation=incarnation,
    )
    server = Server(SERVICE, at=at, counters=counters)

    async def dial(address: str) -> Socket:
        return await transport.dial(address, timeout_s=3.0)

    def dial_session(peer: str, priority: Priority) -> Session:
        return tunnel.dial(CHANNEL, peer=peer, priority=priority)

    proxy = Proxy(
        node_id=node_id,
        at=at,
        router=router,
        server=server,
        own_services={SERVICE},
        pool=Pool(dial, clock=clock, random=source, node_id=node_id, counters=counters),
        dial_session=dial_session,
        clock=clock,
        random=source,
        logger=logger,
        counters=counters,
    )
    network = Network(
        name=network_name,
        record=NodeRecord(id=node_id, name=name, site=site, addresses=(), incarnation=incarnation, sequence=1),
        tunnel=tunnel,
        router=router,
        resolvers=resolvers if link_drivers else [],
        seeds=chosen.nodes if link_drivers else (),
        clock=clock,
        random=source,
        logger=logger,
        counters=counters,
        options=PeerOptions(target_links=chosen.target_links),
    )
    if chosen.nodes and not link_drivers:
        raise ConfigError("there are nodes to join and no tunnel to reach them", hint="name one, as in --plugins quic")
    topics = Topics(
        node_id=node_id,
        router=router,
        proxy=proxy,
        broker=broker,
        clock=clock,
        logger=logger,
        counters=counters,
    )

    def metadata() -> dict[str, str]:
        return {"node": node_id, "name": name, "site": site, "tunnel": ",".join(tunnel.address())}

    node = Node(
        node_id=node_id,
        name=name,
        site=site,
        network_name=network_name,
        transport=transport,
        registry=registry,
        broker=broker,
        broker_host=broker_host,
        table=table,
        resolvers=resolvers,
        tunnel=tunnel,
        router=router,
        network=network,
        proxy=proxy,
        topics=topics,
        server=server,
        listen_address=chosen.address,
        lease_s=chosen.lease,
        metadata=metadata,
        counters=counters,
        log=logger,
        drivers=tuple(entry.qualified for role in Role for entry in drivers_of(catalog, settings, role)),
    )
    Control(network=network, router=router, topics=topics, broker=broker, clock=clock, facts=node.facts).add_to(server)
    return node


def network_token(settings: Settings) -> str:
    """The network's token: given, from the file given, or the one kept for this user on this machine."""
    chosen = settings.node
    if chosen.token:
        return chosen.token
    if chosen.token_file:
        return load_token(Path(chosen.token_file).expanduser())
    return load_or_create_token(settings.state_dir() / "networks" / f"{_file_name(chosen.network)}.token")


def _file_name(name: str) -> str:
    """`name` as the name of a file: nothing that could lead out of its directory."""
    return "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):02x}" for letter in name)[:200]
