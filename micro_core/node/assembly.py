"""Creates a node from settings: its identity, its drivers and the options of its planes."""

from __future__ import annotations

import functools
import logging
import random
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.node import NodeBroker
from micro_core.config import Settings
from micro_core.config.settings import NodeSettings
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory, DriverContext, Role
from micro_core.contract.errors import ConfigError
from micro_core.contract.names import check_network_name, check_site
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import Table
from micro_core.contract.tunnel import LinkDriver
from micro_core.drivers.construction import build, build_all, build_hooks, build_site_drivers
from micro_core.drivers.selection import check_tables, drivers_of, selected_names
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.network.link_targets import PeerOptions
from micro_core.node.composition import NodeComponents, compose
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingSettings
from micro_core.node.link_plane import LinkSettings
from micro_core.node.node import Node
from micro_core.node.node_lock import NodeLock
from micro_core.node.routing_plane import RoutingSettings
from micro_core.plugins import Catalog
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.options import EngineOptions
from micro_core.routing.policy import parse as parse_policy
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.identity import NodeIdentity, load_or_create_token, load_token, next_incarnation

NO_LISTEN = "none"
"""Value of `node.listen` for a node that only dials."""

NODE_BROKER = "broker:node"
"""The broker that a node provides itself."""


def assemble(settings: Settings, catalog: Catalog | None = None) -> Node:
    """Create the node that the settings describe, without starting anything.

    Raises:
        ConfigError: or a subclass, if the settings or a plugin are invalid, or a file of the node cannot be read.
    """
    catalog = catalog if catalog is not None else Catalog.discover()
    check_tables(catalog, settings)
    identity = NodeIdentity.load_or_create(node_file(settings, "key"))
    description = describe_node(settings, identity.node_id)
    clock, counters = SystemClock(), CountersInMemory()
    incarnation = next_incarnation(node_file(settings, "incarnation"), int(clock.wall() * 1000))
    context = DriverContext(
        node_id=identity.node_id,
        network=description.network,
        site=description.site,
        state_dir=str(settings.state_dir()),
        clock=clock,
        # Nonces of handshakes are drawn from this source, so it must not be predictable.
        random=random.SystemRandom(),
        logger=logging.getLogger("micro.node"),
        counters=counters,
    )
    # Transport and registry first: other drivers are built on them.
    site_drivers = build_site_drivers(catalog, settings, context)
    context = site_drivers.context
    broker, broker_host = _build_broker(catalog, settings, context)
    (table,) = build_all(catalog, settings, Role.TABLE, context)
    return compose(
        NodeComponents(
            node=description,
            environment=Environment.from_context(context),
            links=link_settings(catalog, settings, context, identity=identity, incarnation=incarnation),
            routing=routing_settings(settings, table, incarnation=incarnation),
            forwarding=ForwardingSettings(transport=site_drivers.transport, broker=broker),
            registry=site_drivers.registry,
            broker_host=broker_host,
            address=settings.node.address,
            lease_s=settings.node.lease,
            lock=NodeLock(node_file(settings, "lock"), description.name),
            hooks=build_hooks(catalog, settings, context),
            driver_names=selected_names(catalog, settings),
        )
    )


def link_settings(
    catalog: Catalog, settings: Settings, context: DriverContext, *, identity: NodeIdentity, incarnation: int
) -> LinkSettings:
    """Create the drivers of a link plane. Raises ConfigError if there are nodes to join and no tunnel is selected."""
    chosen = settings.node
    resolvers: list[Resolver] = build_all(catalog, settings, Role.RESOLVER, context)
    link_drivers: list[LinkDriver] = build_all(catalog, settings, Role.TUNNEL, context)
    if chosen.nodes and not link_drivers:
        raise ConfigError(
            "cannot join the configured nodes: no tunnel driver is selected", hint="select one, e.g. --plugins quic"
        )
    return LinkSettings(
        identity=identity,
        token=network_token(settings),
        incarnation=incarnation,
        next_incarnation=functools.partial(_next_incarnation, settings, context),
        listeners=listeners(link_drivers, chosen.listen),
        resolvers=resolvers if link_drivers else [],
        seeds=chosen.nodes,
        peers=PeerOptions(links_site=chosen.links_site, links_remote=chosen.links_remote, max_links=chosen.max_links),
    )


def _next_incarnation(settings: Settings, context: DriverContext) -> int:
    """Return the incarnation of the node after a suspension. If it cannot be stored, the next start may repeat it."""
    wall_ms = int(context.clock.wall() * 1000)
    try:
        return next_incarnation(node_file(settings, "incarnation"), wall_ms)
    except ConfigError as error:
        context.logger.warning("incarnation not stored", extra={"reason": str(error)})
        return wall_ms


def routing_settings(settings: Settings, table: Table, *, incarnation: int) -> RoutingSettings:
    """Return the settings of a routing plane. Raises ConfigError."""
    return RoutingSettings(table=table, incarnation=incarnation, router=router_options(settings.node))


def _build_broker(catalog: Catalog, settings: Settings, context: DriverContext) -> tuple[Broker, BrokerHost | None]:
    (entry,) = drivers_of(catalog, settings, Role.BROKER)
    broker: Broker = build(catalog, settings, entry, context)
    if entry.qualified != NODE_BROKER or not isinstance(broker, NodeBroker):
        return broker, None
    # The node is a client of all brokers of its site, like the services: another node may host the one in use.
    host = BrokerHost(node_id=context.node_id, counters=context.counters, logger=context.logger)
    broker.set_local_host(host)
    return broker, host


def describe_node(settings: Settings, node_id: str) -> NodeDescription:
    """Return name, site and network of the node that the settings describe. Raises BadRequest."""
    return NodeDescription(
        node_id=node_id,
        name=node_name(settings),
        site=check_site(settings.node.site),
        network=check_network_name(settings.node.network),
    )


def node_name(settings: Settings) -> str:
    """Return the display name of the node: the configured name, or else host name and site."""
    return settings.node.name or f"{socket.gethostname().partition('.')[0]}-{settings.node.site}"


def node_file(settings: Settings, suffix: str) -> Path:
    """Return the path of a file that belongs to the node, e.g. with the suffix `key` or `incarnation`."""
    return settings.state_dir() / "nodes" / f"{_file_name(node_name(settings))}.{suffix}"


def listeners(drivers: Sequence[LinkDriver], listen: str) -> list[tuple[LinkDriver, str | None]]:
    """Return each driver with the address at which it listens, or None if it only dials.

    `listen` is `none`, or a list of addresses, separated by commas. An address with a scheme is for the driver of that
    scheme; an address without one is for all other drivers.

    Raises:
        ConfigError: an address has the scheme of a driver that is not in use.
    """
    if listen == NO_LISTEN:
        return [(driver, None) for driver in drivers]
    addresses = [address.strip() for address in listen.split(",")]
    default = next((address for address in addresses if "://" not in address), None)
    by_scheme = {address.partition("://")[0]: address for address in addresses if "://" in address}
    schemes = [driver.scheme for driver in drivers]
    unused = [by_scheme[scheme] for scheme in by_scheme if scheme not in schemes]
    if unused and drivers:
        raise ConfigError(
            f"listen: no tunnel driver in use for {unused[0]!r:.80}", hint=f"drivers: {', '.join(schemes)}"
        )
    return [(driver, by_scheme.get(driver.scheme, default)) for driver in drivers]


def router_options(chosen: NodeSettings) -> RouterOptions:
    """Return the options of the router. Raises ConfigError for an invalid damping mode or policy."""
    if chosen.damping not in ("on", "off", "dry-run"):
        raise ConfigError(f"invalid damping {chosen.damping!r:.40} (valid: on, off, dry-run)")
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
    """Return the token of the network: as configured, from the configured file, or this user's token on this machine."""
    chosen = settings.node
    if chosen.token:
        return chosen.token
    if chosen.token_file:
        return load_token(Path(chosen.token_file).expanduser())
    return load_or_create_token(settings.state_dir() / "networks" / f"{_file_name(chosen.network)}.token")


def _file_name(name: str) -> str:
    """Return `name` as a file name, which cannot contain a path to another directory."""
    return "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):02x}" for letter in name)[:200]
