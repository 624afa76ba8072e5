"""`micro router`: the routing plane of a node in a process of its own; its adverts go through the node's tunnel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from micro_core.config import Settings
from micro_core.contract.driver import Role
from micro_core.contract.errors import MicroError
from micro_core.contract.table import Table
from micro_core.drivers.runtime import build, build_runtime, drivers_of
from micro_core.lifecycle.environment import Environment
from micro_core.network.adverts import Adverts
from micro_core.node.assembly import node_file, node_name, router_options
from micro_core.node.router_endpoints import RouterEndpoints
from micro_core.plugins import Catalog
from micro_core.routing.router import Router
from micro_core.rpc.service import Service
from micro_core.standalone.discovery import (
    ROUTER_SERVICE,
    TUNNEL_SERVICE,
    Relay,
    Standing,
    component_metadata,
    remote_tunnel,
)
from micro_core.standalone.router.server import TableEndpoints
from micro_core.standalone.tunnel.client import RemoteTunnel
from micro_core.tunnel.identity import next_incarnation


class RouterComponent:
    """A router, and its table for others to read. `say` is told when the tunnel is missed, and when it is back."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: str = "",
        say: Callable[[str], None],
        catalog: Catalog | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog if catalog is not None else Catalog.discover()
        self._listen_address = address
        self._say = say
        self._standing = Standing()
        self._table: TableEndpoints | None = None
        self._facts: list[str] = []
        self.address = ""

    async def start(self) -> None:
        """Waits for the node's tunnel. Raises ConfigError, Conflict, Unreachable (the registry is away)."""
        settings, catalog = self._settings, self._catalog
        runtime = await build_runtime(settings, catalog=catalog)
        self._standing.add(runtime.close)
        context, name = runtime.context, node_name(settings)
        tunnel = remote_tunnel(runtime, self._say)
        self._standing.add(tunnel.close)
        await tunnel.connect()
        table: Table = build(catalog, settings, drivers_of(catalog, settings, Role.TABLE)[0], context)
        self._standing.add(table.close)
        await table.start()
        environment = replace(Environment.from_context(context), node_id=tunnel.node_id)
        router = Router(
            network=context.network,
            site=context.site,
            table=table,
            environment=environment,
            incarnation=next_incarnation(node_file(settings, "router.incarnation"), int(context.clock.wall() * 1000)),
            options=router_options(settings.node),
        )
        adverts = Adverts(tunnel=tunnel, router=router, environment=environment)
        tunnel.set_event_handler(adverts.handle_link_event)
        router.set_sender(adverts.send)
        self._standing.add(router.close, adverts.close)
        router.restore()
        # The registry first: what the neighbours are told at once is then the whole, and withdraws nothing that stands.
        await router.start(runtime.registry)
        adverts.start()
        service = Service(
            ROUTER_SERVICE,
            registry=runtime.registry,
            transport=runtime.transport,
            metadata=component_metadata(tunnel.node_id, name, context.site),
            address=self._listen_address,
            instance_id=f"{ROUTER_SERVICE}-{tunnel.node_id}",
            lease_s=settings.node.lease,
            counters=context.counters,
        )
        relay = Relay(runtime)
        self._standing.add(relay.close)
        RouterEndpoints(
            router=router,
            node_name=name,
            links=tunnel.links,
            names=lambda: _names(relay, tunnel),
            clock=context.clock,
        ).add_to(service.server)
        self._table = TableEndpoints(router, node_id=tunnel.node_id, counters=context.counters)
        self._table.add_to(service.server)
        self._standing.add(service.stop)
        await service.start()
        self.address = service.address
        self._facts = [
            f"router of node {name} ({tunnel.node_id[:8]}) of network {context.network}, site {context.site}"
        ]

    async def stop(self) -> None:
        """End the watches, then the rest. Nothing is withdrawn: the node stands, and calls pass by the proxy's copy."""
        if self._table is not None:
            self._table.end_watches()
        await self._standing.end()

    def introduction(self) -> list[str]:
        return self._facts


async def _names(relay: Relay, tunnel: RemoteTunnel) -> dict[str, str]:
    """Names of nodes by id: of all in sight, or of the neighbours alone where the tunnel does not answer."""
    names = {link.peer: link.peer_name for link in tunnel.links()}
    try:
        nodes = (await relay.ask(TUNNEL_SERVICE, "Network.Nodes", {}))["nodes"]
        names |= {str(node["id"]): str(node["name"]) for node in nodes}
    except (MicroError, KeyError, TypeError):
        # Names are for people; the routes themselves are known.
        return names
    return names
