"""`micro tunnel`: the links of a node in a process of their own, with a door for its router and its proxy."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from micro_core.config import Settings
from micro_core.contract.driver import Role
from micro_core.contract.errors import ConfigError
from micro_core.contract.resolver import Resolver
from micro_core.contract.tunnel import LinkDriver, LinkEvent
from micro_core.drivers.runtime import Runtime, build, build_runtime, drivers_of
from micro_core.lifecycle.environment import Environment
from micro_core.network.messages import NodeRecord
from micro_core.network.network import Network
from micro_core.network.peers import PeerOptions
from micro_core.node.assembly import listeners, network_token, node_file, node_name
from micro_core.node.network_endpoints import NetworkEndpoints
from micro_core.plugins import Catalog
from micro_core.rpc.service import Service
from micro_core.standalone.discovery import IPC_KEY, TUNNEL_SERVICE, Standing, component_metadata
from micro_core.standalone.tunnel.server import IpcServer
from micro_core.tunnel.identity import NodeIdentity, next_incarnation
from micro_core.tunnel.tunnel import TunnelHost

ANY_DOOR = "unix://"
"""Any free place for a Unix socket of this user: the door is for this machine unless somebody says otherwise."""


class TunnelComponent:
    """Links, the graph of the network, and the door. `say` is told of links that come and go."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: str = "",
        door: str = "",
        say: Callable[[str], None],
        catalog: Catalog | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog if catalog is not None else Catalog.discover()
        self._listen_address = address
        self._door_address = door or ANY_DOOR
        self._say = say
        self._standing = Standing()
        self._facts: list[str] = []
        self.address = ""

    async def start(self) -> None:
        """Raises ConfigError where no tunnel is named, Conflict where an address is taken, Unreachable."""
        settings, catalog, chosen = self._settings, self._catalog, self._settings.node
        if not drivers_of(catalog, settings, Role.TUNNEL):
            raise ConfigError("no tunnel to make links with is named", hint="name one, as in --plugins quic")
        runtime = await build_runtime(settings, catalog=catalog)
        self._standing.add(runtime.close)
        name, clock = node_name(settings), runtime.context.clock
        identity = NodeIdentity.load_or_create(node_file(settings, "key"))
        incarnation = next_incarnation(node_file(settings, "incarnation"), int(clock.wall() * 1000))
        # Nonces of handshakes are drawn from it: it must not be guessable.
        context = replace(runtime.context, node_id=identity.node_id, random=random.SystemRandom())
        links: list[LinkDriver] = [
            build(catalog, settings, e, context) for e in drivers_of(catalog, settings, Role.TUNNEL)
        ]
        common: dict[str, Any] = {
            "clock": clock,
            "random": context.random,
            "logger": context.logger,
            "counters": context.counters,
        }
        tunnel = TunnelHost(
            identity=identity,
            name=name,
            site=context.site,
            network=context.network,
            token=network_token(settings),
            listeners=listeners(links, chosen.listen),
            incarnation=incarnation,
            environment=Environment.from_context(context),
        )
        network = Network(
            name=context.network,
            record=NodeRecord(
                id=identity.node_id, name=name, site=context.site, addresses=(), incarnation=incarnation, sequence=1
            ),
            tunnel=tunnel,
            resolvers=await self._resolvers(runtime, identity.node_id),
            seeds=chosen.nodes,
            options=PeerOptions(target_links=chosen.target_links),
            environment=Environment.from_context(context),
        )
        network.set_report_handler(self._say)
        door = IpcServer(
            tunnel=tunnel,
            network=context.network,
            token=network_token(settings),
            facts=lambda: {"name": name, "site": context.site, "addresses": tunnel.address()[:16]},
            **common,
        )

        def dispatch(event: LinkEvent) -> None:
            network.handle_link_event(event)
            door.handle_link_event(event)

        tunnel.set_event_handler(dispatch)
        self._standing.add(network.close)
        await network.connect()
        self._standing.add(door.close)
        await door.start(runtime.transport, self._door_address)
        service = Service(
            TUNNEL_SERVICE,
            registry=runtime.registry,
            transport=runtime.transport,
            metadata=component_metadata(
                identity.node_id, name, context.site, tunnel=",".join(tunnel.address()), **{IPC_KEY: door.address}
            ),
            address=self._listen_address,
            instance_id=f"{TUNNEL_SERVICE}-{identity.node_id}",
            lease_s=chosen.lease,
            counters=context.counters,
        )
        NetworkEndpoints(network=network, clock=clock).add_to(service.server)
        self._standing.add(service.stop)
        await service.start()
        self.address = service.address
        self._facts = [
            f"tunnel of node {name} ({identity.node_id[:8]}) of network {context.network}, site {context.site}",
            f"  links at  {', '.join(tunnel.address()) or 'none: dials out only'}",
            f"  door at   {door.address}",
        ]

    async def stop(self) -> None:
        """Withdraw, tell the peers, end the links."""
        await self._standing.end()

    def introduction(self) -> list[str]:
        return self._facts

    async def _resolvers(self, runtime: Runtime, node_id: str) -> list[Resolver]:
        context = replace(runtime.context, node_id=node_id)
        resolvers: list[Resolver] = [
            build(self._catalog, self._settings, entry, context)
            for entry in drivers_of(self._catalog, self._settings, Role.RESOLVER)
        ]
        for resolver in resolvers:
            self._standing.add(resolver.close)
            await resolver.start()
        return resolvers
