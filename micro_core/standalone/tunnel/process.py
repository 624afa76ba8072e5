"""`micro tunnel`: the link plane of a node in a process of its own, with an IPC server for its router and its proxy."""

from __future__ import annotations

import random
from dataclasses import replace

from micro_core.config import Settings
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError
from micro_core.contract.names import IPC_KEY, TUNNEL_KEY, TUNNEL_SERVICE, short_id
from micro_core.drivers.selection import drivers_of
from micro_core.lifecycle.environment import Environment
from micro_core.node.assembly import describe_node, link_settings, network_token, node_file
from micro_core.node.link_plane import LinkPlane
from micro_core.node.network_endpoints import NetworkEndpoints
from micro_core.plugins import Catalog
from micro_core.rpc.service import Service
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import Report, component_metadata
from micro_core.standalone.tunnel.server import IpcServer
from micro_core.tunnel.identity import NodeIdentity, next_incarnation

UNUSED_UNIX_SOCKET = "unix://"
"""Default address of the IPC server: an unused Unix socket that only this user can open."""

MAX_ADDRESSES_IN_FACTS = 16


class TunnelComponent(Component):
    """The links of a node, the graph of the network, and the IPC server. Reports changes of the links."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: str = "",
        ipc_address: str = "",
        report: Report,
        catalog: Catalog | None = None,
    ) -> None:
        super().__init__(settings, address=address, report=report, catalog=catalog)
        self._ipc_address = ipc_address or UNUSED_UNIX_SOCKET

    async def start(self) -> None:
        """Start the links and the IPC server.

        Raises:
            ConfigError: the settings are invalid, or no tunnel driver is selected.
            Conflict: an address is in use.
            Unreachable: the registry does not answer.
        """
        settings, catalog = self._settings, self._catalog
        if not drivers_of(catalog, settings, Role.TUNNEL):
            raise ConfigError("cannot open links: no tunnel driver is selected", hint="select one, e.g. --plugins quic")
        runtime = await self._start_runtime()
        identity = NodeIdentity.load_or_create(node_file(settings, "key"))
        node = describe_node(settings, identity.node_id)
        # Nonces of handshakes are drawn from this source, so it must not be predictable.
        context = replace(runtime.context, node_id=node.node_id, random=random.SystemRandom())
        incarnation = next_incarnation(node_file(settings, "incarnation"), int(context.clock.wall() * 1000))
        plane_settings = link_settings(catalog, settings, context, identity=identity, incarnation=incarnation)
        environment = Environment.from_context(context)
        plane = LinkPlane(plane_settings, node=node, environment=environment)
        plane.network.set_report_handler(self._report)
        ipc = IpcServer(
            tunnel=plane.tunnel,
            network=node.network,
            token=network_token(settings),
            facts=lambda: {
                "name": node.name,
                "site": node.site,
                "addresses": plane.tunnel.address()[:MAX_ADDRESSES_IN_FACTS],
            },
            environment=environment,
        )
        plane.add_event_handler(ipc.handle_link_event)
        for resolver in plane_settings.resolvers:
            self._close_later(resolver.close)
            await resolver.start()
        self._close_later(plane.close)
        await plane.connect()
        self._close_later(ipc.close)
        await ipc.start(runtime.transport, self._ipc_address)
        addresses = plane.tunnel.address()
        service = Service(
            TUNNEL_SERVICE,
            registry=runtime.registry,
            transport=runtime.transport,
            metadata=component_metadata(
                node.node_id, node.name, node.site, {TUNNEL_KEY: ",".join(addresses), IPC_KEY: ipc.address}
            ),
            address=self._listen_address,
            instance_id=f"{TUNNEL_SERVICE}-{node.node_id}",
            lease_s=settings.node.lease,
            counters=context.counters,
        )
        NetworkEndpoints(network=plane.network, clock=context.clock).add_to(service.server)
        self._close_later(service.stop)
        await service.start()
        self.address = service.address
        self.introduction = [
            f"tunnel of node {node.name} ({short_id(node.node_id)}) of network {node.network}, site {node.site}",
            f"  links     {', '.join(addresses) or 'outgoing only'}",
            f"  ipc       {ipc.address}",
        ]
