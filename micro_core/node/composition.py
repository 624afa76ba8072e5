"""Assembles a node from its three planes. Every node is assembled here, also in the lab.

`micro tunnel`, `micro router` and `micro proxy` run one of the planes each; see `micro_core.standalone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from micro_core.builtin.broker.host import BrokerHost
from micro_core.contract.registry import Registry
from micro_core.lifecycle.environment import Environment
from micro_core.node.control import Control
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingPlane, ForwardingSettings
from micro_core.node.link_plane import LinkPlane, LinkSettings
from micro_core.node.node import Node
from micro_core.node.node_lock import NodeLock
from micro_core.node.routing_plane import RoutingPlane, RoutingSettings
from micro_core.plugins import Hooks


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeComponents:
    """Everything that a node is assembled from. The drivers have been created and not started."""

    node: NodeDescription
    environment: Environment
    links: LinkSettings
    routing: RoutingSettings
    forwarding: ForwardingSettings
    registry: Registry
    broker_host: BrokerHost | None = None
    """The broker that this node hosts for its site. `forwarding.broker` is then a client of all hosts of the site."""
    address: str = ""
    """Where the node accepts calls from its site. Empty for a free address."""
    lease_s: float = 90.0
    """Lease of the node's records in the registry, in seconds."""
    hooks: Hooks = field(default_factory=Hooks)
    lock: NodeLock | None = None
    """Keeps a second process from running the same node."""
    driver_names: Sequence[str] = ()
    """Qualified names of the drivers, e.g. `tunnel:quic`, for `micro network status`."""


def compose(components: NodeComponents) -> Node:
    """Assemble a node without starting anything."""
    description, environment = components.node, components.environment
    links = LinkPlane(components.links, node=description, environment=environment)
    routing = RoutingPlane(components.routing, node=description, sessions=links.tunnel, environment=environment)
    forwarding = ForwardingPlane(
        components.forwarding,
        node=description,
        routes=routing.router,
        sessions=links.tunnel,
        environment=environment,
    )
    # The proxy comes first: when a link has moved, new calls use the new link at once.
    links.add_event_handler(forwarding.handle_link_event)
    links.add_event_handler(routing.handle_link_event)
    links.add_resumed_handler(routing.router.resumed)
    forwarding.proxy.set_suspension_check(links.tunnel.loop_watch.check)
    links.network.set_reachability_source(routing.router.origins)
    node = Node(
        description=description,
        environment=environment,
        links=links,
        routing=routing,
        forwarding=forwarding,
        transport=components.forwarding.transport,
        registry=components.registry,
        table=components.routing.table,
        broker=components.forwarding.broker,
        broker_host=components.broker_host,
        resolvers=components.links.resolvers,
        listen_address=components.address,
        lease_s=components.lease_s,
        hooks=components.hooks,
        lock=components.lock,
        driver_names=tuple(components.driver_names),
    )
    Control(
        network=links.network,
        router=routing.router,
        topics=forwarding.topics,
        broker=components.forwarding.broker,
        clock=environment.clock,
        facts=node.facts,
        waiting_us=forwarding.proxy.waiting_us,
    ).add_to(forwarding.server)
    return node
