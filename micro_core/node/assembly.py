"""From settings to a node: who it is, which drivers it stands on. What is made of them is in composition.py."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.builtin.transport.joined import JoinedTransport
from micro_core.config import Settings
from micro_core.config.settings import NodeSettings
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, DriverContext, Role
from micro_core.contract.errors import ConfigError
from micro_core.contract.names import check_network_name, check_site
from micro_core.contract.registry import Registry
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import Table
from micro_core.contract.transport import Transport
from micro_core.contract.tunnel import LinkDriver
from micro_core.drivers.runtime import build, build_hooks, check_tables, drivers_of, hooks_of
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.network.peers import PeerOptions
from micro_core.node.composition import Parts, compose
from micro_core.node.node import Node
from micro_core.node.node_lock import NodeLock
from micro_core.plugins import Catalog
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.options import EngineOptions
from micro_core.routing.policy import parse as parse_policy
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.identity import NodeIdentity, load_or_create_token, load_token, next_incarnation

NO_LISTEN = "none"
"""`node.listen` of a node that only dials out."""

NODE_BROKER = "broker:node"


def assemble(settings: Settings, catalog: Catalog | None = None) -> Node:
    """Build a node, everything wired and nothing started. Raises ConfigError and its kind."""
    catalog = catalog if catalog is not None else Catalog.discover()
    check_tables(catalog, settings)
    chosen = settings.node
    network_name, site = check_network_name(chosen.network), check_site(chosen.site)
    name = node_name(settings)

    # Who it is.
    identity = NodeIdentity.load_or_create(node_file(settings, "key"))
    node_id = identity.node_id
    clock, counters = SystemClock(), CountersInMemory()
    logger = logging.getLogger("micro.node")
    # One source for all: handshakes draw nonces from it, so it must not be guessable.
    source = random.SystemRandom()
    incarnation = next_incarnation(node_file(settings, "incarnation"), int(clock.wall() * 1000))

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
    context = replace(context, transport=transport)
    registries: list[Registry] = built(Role.REGISTRY, context)
    registry = registries[0] if len(registries) == 1 else JoinedRegistry(registries, counters)
    context = replace(context, registry=registry)
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

    if chosen.nodes and not link_drivers:
        raise ConfigError("there are nodes to join and no tunnel to reach them", hint="name one, as in --plugins quic")
    return compose(
        Parts(
            identity=identity,
            name=name,
            site=site,
            network=network_name,
            token=network_token(settings),
            incarnation=incarnation,
            clock=clock,
            random=source,
            logger=logger,
            counters=counters,
            transport=transport,
            registry=registry,
            table=table,
            broker=broker,
            broker_host=broker_host,
            resolvers=resolvers if link_drivers else [],
            links=listeners(link_drivers, chosen.listen),
            seeds=chosen.nodes,
            address=chosen.address,
            lease_s=chosen.lease,
            router=router_options(chosen),
            peers=PeerOptions(target_links=chosen.target_links),
            claim=NodeLock(node_file(settings, "lock"), name),
            hooks=build_hooks(catalog, settings, context),
            drivers=tuple(
                entry.qualified
                for entries in (*(drivers_of(catalog, settings, role) for role in Role), hooks_of(catalog, settings))
                for entry in entries
            ),
        )
    )


def node_name(settings: Settings) -> str:
    """The node's name for people: as set, else after host and site."""
    return settings.node.name or f"{socket.gethostname().partition('.')[0]}-{settings.node.site}"


def node_file(settings: Settings, suffix: str) -> Path:
    """A file that a node of this name keeps: `key`, `incarnation`."""
    return settings.state_dir() / "nodes" / f"{_file_name(node_name(settings))}.{suffix}"


def listeners(drivers: Sequence[LinkDriver], listen: str) -> list[tuple[LinkDriver, str | None]]:
    """Each driver with the place where it listens, None for one that only dials. Raises ConfigError.

    `listen` is `none`, or places with commas between them: one with a scheme is that driver's, one without is for
    every driver that has none of its own.
    """
    if listen == NO_LISTEN:
        return [(driver, None) for driver in drivers]
    places = [place.strip() for place in listen.split(",")]
    for_all = next((place for place in places if "://" not in place), None)
    own = {scheme: place for place in places for scheme, separator, _ in [place.partition("://")] if separator}
    schemes = [driver.scheme for driver in drivers]
    unused = [own[scheme] for scheme in own if scheme not in schemes]
    if unused and drivers:
        raise ConfigError(
            f"listen: no tunnel driver in use for {unused[0]!r:.80}", hint=f"drivers: {', '.join(schemes)}"
        )
    return [(driver, own.get(driver.scheme, for_all)) for driver in drivers]


def router_options(chosen: NodeSettings) -> RouterOptions:
    """What [node] says of routing. Raises ConfigError."""
    if chosen.damping not in ("on", "off", "dry-run"):
        raise ConfigError(f"damping: {chosen.damping!r:.40} is none of on, off, dry-run")
    damping = DampingPolicy(dry_run=chosen.damping == "dry-run")
    if chosen.damping == "off":
        damping = replace(damping, withdrawal=0.0, change=0.0)
    rules = tuple(parse_policy(text) for text in chosen.policies)
    return RouterOptions(
        is_gateway=chosen.gateway,
        restart_lease_s=chosen.restart_lease,
        engine=EngineOptions(policies=rules, damping=damping),
    )


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
