"""`micro proxy`: the proxy of a node in a process of its own.

It stands where a whole node would: services and commands find it as `go.micro.network`, and what it cannot answer itself
it asks the node's tunnel and router. Calls ask nobody: routes are a copy of the router's table, sessions go through the
tunnel's door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from micro_core.config import Settings
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.contract.registry import Instance
from micro_core.contract.transport import Socket
from micro_core.contract.tunnel import LinkEvent, LinkMoved, Priority, Session
from micro_core.drivers.runtime import build_runtime
from micro_core.lifecycle.environment import Environment
from micro_core.node.assembly import node_name
from micro_core.node.composition import DIAL_TIMEOUT_S
from micro_core.node.control import Publishing
from micro_core.node.network_endpoints import NETWORK_ENDPOINTS
from micro_core.node.node import DRAIN_S
from micro_core.node.router_endpoints import ROUTER_ENDPOINTS
from micro_core.plugins import Catalog
from micro_core.proxy.proxy import CHANNEL, Proxy
from micro_core.proxy.topics import Topics
from micro_core.rpc.connection import Connection
from micro_core.rpc.pool import Pool
from micro_core.rpc.registration import Registration
from micro_core.rpc.server import Server
from micro_core.standalone.discovery import (
    PROXY_SERVICE,
    ROUTER_SERVICE,
    TUNNEL_SERVICE,
    Relay,
    Standing,
    availability_reporter,
    component_metadata,
    remote_tunnel,
)
from micro_core.standalone.router.client import RemoteRouter


class ProxyComponent:
    """Takes the site's calls and its peers' sessions. `say` is told which other parts are missed."""

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
        self._listen_address = address or settings.node.address
        self._say = say
        self._standing = Standing()
        self._registrations: list[Registration] = []
        self._server: Server | None = None
        self._proxy: Proxy | None = None
        self._facts: list[str] = []
        self.address = ""

    async def start(self) -> None:
        """Waits for the node's tunnel and router. Raises ConfigError, Conflict, Unreachable (the registry is away)."""
        runtime = await build_runtime(self._settings, catalog=self._catalog)
        self._standing.add(runtime.close)
        context, name = runtime.context, node_name(self._settings)
        tunnel = remote_tunnel(runtime, self._say)
        self._standing.add(tunnel.close)
        await tunnel.connect()
        router = RemoteRouter(runtime, name=name, node_id=tunnel.node_id)
        router.add_availability_handler(availability_reporter("router", self._say))
        self._standing.add(router.close)
        await router.connect()
        node_id = tunnel.node_id
        at = f"node {name} ({short_id(node_id)})"
        common: dict[str, Any] = {"clock": context.clock, "random": context.random, "counters": context.counters}

        async def dial(address: str) -> Socket:
            return await runtime.transport.dial(address, timeout_s=DIAL_TIMEOUT_S)

        def dial_session(peer: str, priority: Priority) -> Session:
            return tunnel.dial(CHANNEL, peer=peer, priority=priority)

        server = self._server = Server(NETWORK_SERVICE, at=at, counters=context.counters)
        environment = replace(Environment.from_context(context), node_id=node_id)
        proxy = self._proxy = Proxy(
            at=at,
            router=router,
            server=server,
            own_services={NETWORK_SERVICE, PROXY_SERVICE},
            pool=Pool(dial, node_id=node_id, **common),
            dial_session=dial_session,
            environment=environment,
        )

        def dispatch(event: LinkEvent) -> None:
            if isinstance(event, LinkMoved):
                proxy.peer_moved(event.link.peer)

        tunnel.set_event_handler(dispatch)

        def accept(socket: Socket) -> None:
            proxy.accept_socket(
                Connection(socket, dialed=False, handler=proxy, node_id=node_id, counters=context.counters)
            )

        listener = await runtime.transport.listen(self._listen_address, accept)
        self._standing.add(listener.close, proxy.close)
        self.address = listener.address
        broker = await runtime.open_broker()
        topics = Topics(
            router=router,
            proxy=proxy,
            broker=broker,
            environment=environment,
        )
        proxy.set_message_handler(topics.message_received)
        self._standing.add(topics.close)
        await topics.start()
        tunnel.listen(CHANNEL, proxy.accept_session)
        relay = Relay(runtime)
        self._standing.add(relay.close)
        for endpoint in NETWORK_ENDPOINTS:
            relay.add_to(server, TUNNEL_SERVICE, endpoint, idempotent=True)
        for endpoint in ROUTER_ENDPOINTS:
            relay.add_to(server, ROUTER_SERVICE, endpoint, idempotent=endpoint != "Network.Release")

        async def status() -> dict[str, Any]:
            """What this node is, and what its proxy has counted."""
            counters = context.counters
            return {
                "id": node_id,
                "name": name,
                "site": context.site,
                "network": context.network,
                "address": self.address,
                "tunnel": _addresses(tunnel.facts),
                "drivers": ["tunnel:service", "router:service", "registry and broker as set"],
                "in_flight": proxy.in_flight,
                "counters": dict(sorted(counters.values.items())) if isinstance(counters, CountersInMemory) else {},
                "topics": topics.topics(),
                "links": len(tunnel.links()),
            }

        server.add("Network.Status", status, idempotent=True)
        server.add("Broker.Publish", Publishing(broker).publish)
        whole = {"node": node_id, "name": name, "site": context.site, "tunnel": ",".join(_addresses(tunnel.facts))}
        await self._register(runtime.registry, NETWORK_SERVICE, node_id, whole, context.counters)
        own = component_metadata(node_id, name, context.site)
        await self._register(runtime.registry, PROXY_SERVICE, node_id, own, context.counters)
        self._facts = [
            f"proxy of node {name} ({node_id[:8]}) of network {context.network}, site {context.site}",
            f"  calls at  {self.address}",
        ]

    async def stop(self) -> None:
        """Withdraw, finish what is in flight, end."""
        for registration in self._registrations:
            await registration.close()
        self._registrations.clear()
        if self._server is not None and self._proxy is not None:
            await self._server.drain(DRAIN_S)
            await self._proxy.drain(DRAIN_S)
        await self._standing.end()

    def introduction(self) -> list[str]:
        return self._facts

    async def _register(
        self, registry: Any, service: str, node_id: str, metadata: dict[str, str], counters: Any
    ) -> None:
        assert self._server is not None
        instance = Instance(
            service=service,
            id=f"{service}-{node_id}",
            address=self.address,
            metadata=metadata,
            endpoints=self._server.endpoints,
        )
        registration = Registration(registry, instance, lease_s=self._settings.node.lease, counters=counters)
        await registration.start()
        self._registrations.append(registration)


def _addresses(facts: dict[str, Any]) -> list[str]:
    found = facts.get("addresses")
    return [address for address in found if isinstance(address, str)] if isinstance(found, list) else []
