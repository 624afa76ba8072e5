"""`micro proxy`: the forwarding plane of a node in a process of its own.

Services and commands find it as `go.micro.network`, like a whole node. It forwards requests about links and routes to the
tunnel and the router of the node. Calls need no other process: routes are read from a copy of the router's table, and
sessions are opened through the IPC server of the tunnel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from micro_core.config import Settings
from micro_core.contract.driver import Role
from micro_core.contract.names import NETWORK_SERVICE, PROXY_SERVICE, ROUTER_SERVICE, TUNNEL_SERVICE, short_id
from micro_core.drivers.selection import selected_names
from micro_core.lifecycle.environment import Environment
from micro_core.node.assembly import describe_node
from micro_core.node.control import Publishing
from micro_core.node.forwarding_plane import ForwardingPlane, ForwardingSettings
from micro_core.node.network_endpoints import NETWORK_ENDPOINTS
from micro_core.node.registration import NodeRegistrations
from micro_core.node.router_endpoints import ROUTER_ENDPOINTS
from micro_core.plugins import Catalog
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import (
    Relay,
    Report,
    availability_reporter,
    component_metadata,
)
from micro_core.standalone.router.client import RemoteRouter
from micro_core.standalone.tunnel.remote import remote_tunnel

ROLES = (Role.REGISTRY, Role.TRANSPORT, Role.BROKER)
"""Roles whose drivers this process uses. Tunnel drivers, resolvers and table belong to the other processes of the node."""


class ProxyComponent(Component):
    """The calls of a site and of the peers. Reports when tunnel or router become unavailable or available."""

    def __init__(
        self, settings: Settings, *, address: str = "", report: Report, catalog: Catalog | None = None
    ) -> None:
        super().__init__(settings, address=address or settings.node.address, report=report, catalog=catalog)
        self._registrations: NodeRegistrations | None = None
        self._plane: ForwardingPlane | None = None

    async def start(self) -> None:
        """Start the proxy. Waits until the tunnel and the router of the node are available.

        Raises:
            ConfigError: the settings are invalid.
            Conflict: the address is in use.
            Unreachable: the registry does not answer.
        """
        runtime = await self._start_runtime()
        tunnel = remote_tunnel(runtime, self._report)
        self._close_later(tunnel.close)
        await tunnel.connect()
        node = describe_node(self._settings, tunnel.node_id)
        router = RemoteRouter(runtime, name=node.name, node_id=node.node_id)
        router.set_availability_handler(availability_reporter("router", self._report))
        self._close_later(router.close)
        await router.connect()
        context = replace(runtime.context, node_id=node.node_id)
        environment = Environment.from_context(context)
        broker = await runtime.open_broker()
        plane = self._plane = ForwardingPlane(
            ForwardingSettings(
                transport=runtime.transport, broker=broker, own_services=(NETWORK_SERVICE, PROXY_SERVICE)
            ),
            node=node,
            routes=router,
            sessions=tunnel,
            environment=environment,
        )
        tunnel.set_event_handler(plane.handle_link_event)
        relay = Relay(runtime)
        self._close_later(relay.close)
        for endpoint in NETWORK_ENDPOINTS:
            relay.add_to(plane.server, TUNNEL_SERVICE, endpoint, idempotent=True)
        for endpoint in ROUTER_ENDPOINTS:
            relay.add_to(plane.server, ROUTER_SERVICE, endpoint, idempotent=endpoint != "Network.Release")

        driver_names = selected_names(self._catalog, self._settings, ROLES)

        async def status() -> dict[str, Any]:
            """Return the values that `micro network status` shows, with the counters of the proxy."""
            return {
                "id": node.node_id,
                "name": node.name,
                "site": node.site,
                "network": node.network,
                "address": plane.address,
                "tunnel": _addresses(tunnel.facts),
                "drivers": list(driver_names),
                "in_flight": plane.proxy.in_flight,
                "counters": environment.counted(),
                "topics": plane.topics.topics(),
                "links": len(tunnel.links()),
            }

        plane.server.add("Network.Status", status, idempotent=True)
        plane.server.add("Broker.Publish", Publishing(broker).publish)
        # All endpoints exist before the first call can arrive.
        self._close_later(plane.close)
        await plane.listen(self._listen_address)
        self.address = plane.address
        self._close_later(plane.topics.close)
        await plane.topics.start()
        plane.accept_sessions()
        registrations = self._registrations = NodeRegistrations(
            runtime.registry, node=node, lease_s=self._settings.node.lease, counters=context.counters
        )
        endpoints = plane.server.endpoints
        await registrations.add_node(self.address, tunnel_addresses=_addresses(tunnel.facts), endpoints=endpoints)
        metadata = component_metadata(node.node_id, node.name, node.site)
        await registrations.add(PROXY_SERVICE, self.address, metadata=metadata, endpoints=endpoints)
        self.introduction = [
            f"proxy of node {node.name} ({short_id(node.node_id)}) of network {node.network}, site {node.site}",
            f"  calls     {self.address}",
        ]

    async def stop(self) -> None:
        """Deregister, finish the calls in progress and close everything."""
        try:
            if self._registrations is not None:
                await self._registrations.withdraw(self._closing)
            if self._plane is not None:
                await self._plane.drain()
        finally:
            await super().stop()


def _addresses(facts: dict[str, Any]) -> list[str]:
    found = facts.get("addresses")
    return [address for address in found if isinstance(address, str)] if isinstance(found, list) else []
