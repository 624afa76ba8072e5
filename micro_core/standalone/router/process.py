"""`micro router`: the routing plane of a node in a process of its own. Its adverts go through the tunnel process."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract.driver import Role
from micro_core.contract.errors import MicroError
from micro_core.contract.names import ROUTER_SERVICE, TUNNEL_SERVICE, short_id
from micro_core.contract.tunnel import Sessions
from micro_core.drivers.construction import build_all
from micro_core.lifecycle.environment import Environment
from micro_core.node.assembly import describe_node, node_file, routing_settings
from micro_core.node.router_endpoints import RouterEndpoints
from micro_core.node.routing_plane import RoutingPlane
from micro_core.rpc.service import Service
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import Relay, component_metadata
from micro_core.standalone.router.server import TableEndpoints
from micro_core.standalone.tunnel.remote import remote_tunnel
from micro_core.tunnel.identity import next_incarnation


class RouterComponent(Component):
    """The routes of a node, and endpoints to read them. Reports when the tunnel becomes unavailable or available."""

    _endpoints: TableEndpoints | None = None

    async def start(self) -> None:
        """Start the router. Waits until the tunnel of the node is available.

        Raises:
            ConfigError: the settings are invalid.
            Conflict: the address is in use.
            Unreachable: the registry does not answer.
        """
        settings, catalog = self._settings, self._catalog
        runtime = await self._start_runtime()
        tunnel = remote_tunnel(runtime, self._report)
        self._close_later(tunnel.close)
        await tunnel.connect()
        node = describe_node(settings, tunnel.node_id)
        context = replace(runtime.context, node_id=node.node_id)
        (table,) = build_all(catalog, settings, Role.TABLE, context)
        self._close_later(table.close)
        await table.start()
        incarnation = next_incarnation(node_file(settings, "router.incarnation"), int(context.clock.wall() * 1000))
        plane = RoutingPlane(
            routing_settings(settings, table, incarnation=incarnation),
            node=node,
            sessions=tunnel,
            environment=Environment.from_context(context),
        )
        tunnel.set_event_handler(plane.handle_link_event)
        self._close_later(plane.close)
        plane.restore()
        # Read the registry before opening sessions: the first message to each neighbour is then the full table, and does
        # not withdraw valid routes.
        await plane.follow_registry(runtime.registry)
        plane.open_sessions()
        service = Service(
            ROUTER_SERVICE,
            registry=runtime.registry,
            transport=runtime.transport,
            metadata=component_metadata(node.node_id, node.name, node.site),
            address=self._listen_address,
            instance_id=f"{ROUTER_SERVICE}-{node.node_id}",
            lease_s=settings.node.lease,
            counters=context.counters,
        )
        relay = Relay(runtime)
        self._close_later(relay.close)
        RouterEndpoints(
            router=plane.router,
            node_name=node.name,
            links=tunnel.links,
            names=lambda: _names(relay, tunnel),
            clock=context.clock,
        ).add_to(service.server)
        self._endpoints = TableEndpoints(
            plane.router, plane.router.table, node_id=node.node_id, counters=context.counters
        )
        self._endpoints.add_to(service.server)
        self._close_later(service.stop)
        await service.start()
        self.address = service.address
        self.introduction = [
            f"router of node {node.name} ({short_id(node.node_id)}) of network {node.network}, site {node.site}"
        ]

    async def stop(self) -> None:
        """End the watches and close everything. Routes are not withdrawn: the proxy forwards calls with its copy."""
        if self._endpoints is not None:
            self._endpoints.end_watches()
        await super().stop()


async def _names(relay: Relay, tunnel: Sessions) -> dict[str, str]:
    """Return names of nodes by id: of all nodes in the graph, or only of the neighbours if the tunnel does not answer."""
    names = {link.peer: link.peer_name for link in tunnel.links()}
    try:
        nodes = (await relay.ask(TUNNEL_SERVICE, "Network.Nodes", {}))["nodes"]
        names |= {str(node["id"]): str(node["name"]) for node in nodes}
    except (MicroError, KeyError, TypeError):
        # Names are only for display. The routes are available without them.
        return names
    return names
