"""A running node: start, drain, stop. What it is made of is decided in assembly.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from micro_core.builtin.broker.host import BrokerHost
from micro_core.contract.broker import Broker
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.errors import MicroError
from micro_core.contract.registry import Instance, Registry
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import Table
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.network.adverts import Adverts
from micro_core.network.network import Network
from micro_core.node.node_lock import NodeLock
from micro_core.plugins import Hooks
from micro_core.proxy.proxy import CHANNEL, Proxy
from micro_core.proxy.topics import Topics
from micro_core.routing.router import Router
from micro_core.rpc.connection import Connection
from micro_core.rpc.registration import Registration
from micro_core.rpc.server import Server
from micro_core.tunnel.tunnel import TunnelHost

PROPAGATION_S = 0.3
"""How long a withdrawal is given to reach the neighbours before calls are refused."""

DRAIN_S = 10.0
"""How long calls in flight are given at a stop."""


@dataclass(kw_only=True)
class Node:
    """All parts of a node, wired. `start` raises what went wrong; `stop` is safe at any point after."""

    node_id: str
    name: str
    site: str
    network_name: str
    transport: Transport
    registry: Registry
    broker: Broker
    broker_host: BrokerHost | None
    table: Table
    resolvers: Sequence[Resolver]
    tunnel: TunnelHost
    router: Router
    network: Network
    adverts: Adverts
    proxy: Proxy
    topics: Topics
    server: Server
    listen_address: str
    lease_s: float
    metadata: Callable[[], dict[str, str]]
    counters: CountersInMemory
    log: logging.Logger
    hooks: Hooks
    drivers: tuple[str, ...]
    """What it was assembled of, as `tunnel:quic`."""
    address: str = ""
    """Where the node takes calls, once started."""
    claim: NodeLock | None = None
    _is_announced: bool = False
    _listener: Listener | None = None
    _registrations: list[Registration] = field(default_factory=list)
    _started: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def start(self) -> None:
        """Bring everything up, lowest first; on failure take down what stood and raise."""
        try:
            await self._start()
        except BaseException:
            await self.stop(drain=False)
            raise

    async def _start(self) -> None:
        if self.claim is not None:
            await self._bring_up(self.claim.take, self.claim.release)
        await self._bring_up(self.transport.start, self.transport.close)
        await self._bring_up(self.registry.start, self.registry.close)
        await self._bring_up(self.table.start, self.table.close)
        self.router.restore()
        for resolver in self.resolvers:
            await self._bring_up(resolver.start, resolver.close)
        self._listener = await self.transport.listen(self.listen_address, self._accept)
        self._started.append(self._listener.close)
        self.address = self._listener.address
        self._started.append(self.proxy.close)
        if self.broker_host is not None:
            host = self.broker_host
            await self._bring_up(lambda: host.start(self.transport), host.close)
            await self._register("go.micro.broker", host.address)
        await self._bring_up(self.broker.start, self.broker.close)
        self.tunnel.listen(CHANNEL, self.proxy.accept_session)
        # Adverts hear of every link, and end before the network does: what was said last still leaves.
        self._started += [self.network.close, self.adverts.close]
        self.adverts.start()
        await self.network.connect()
        await self._bring_up(lambda: self.router.start(self.registry), self.router.close)
        await self._bring_up(self.topics.start, self.topics.close)
        await self._register(self.server.name, self.address)
        self.hooks.node_started(self)
        self._is_announced = True

    async def stop(self, *, drain: bool = True) -> None:
        """Withdraw, let the neighbours hear it, finish what is in flight, take everything down, highest first."""
        if self._is_announced:
            self._is_announced = False
            self.hooks.node_stopping(self)
        for registration in self._registrations:
            await self._quietly(registration.close())
        self._registrations.clear()
        if drain:
            self.router.withdraw_all()
            await asyncio.sleep(PROPAGATION_S)
            await self.server.drain(DRAIN_S)
            await self.proxy.drain(DRAIN_S)
        while self._started:
            await self._quietly(self._started.pop()())

    def facts(self) -> dict[str, Any]:
        """What the node says of itself."""
        return {
            "id": self.node_id,
            "name": self.name,
            "site": self.site,
            "network": self.network_name,
            "address": self.address,
            "tunnel": self.tunnel.address(),
            "drivers": list(self.drivers),
            "in_flight": self.proxy.in_flight,
            "counters": self.counted(),
        }

    def counted(self) -> dict[str, int]:
        """All counters, by name."""
        values = self.counters.values
        return {name: values[name] for name in sorted(values)}

    def _accept(self, socket: Socket) -> None:
        self.proxy.accept_socket(
            Connection(socket, dialed=False, handler=self.proxy, node_id=self.node_id, counters=self.counters)
        )

    async def _bring_up(self, up: Callable[[], Awaitable[None]], down: Callable[[], Awaitable[None]]) -> None:
        self._started.append(down)
        await up()

    async def _register(self, service: str, address: str) -> None:
        instance = Instance(
            service=service,
            id=f"{service}-{self.node_id}",
            address=address,
            metadata=self.metadata(),
            endpoints=self.server.endpoints if service == self.server.name else (),
        )
        registration = Registration(self.registry, instance, lease_s=self.lease_s, counters=self.counters)
        self._registrations.append(registration)
        await registration.start()

    async def _quietly(self, work: Awaitable[None]) -> None:
        # One part that cannot be taken down must not keep the others up.
        try:
            async with asyncio.timeout(5.0):
                await work
        except (MicroError, TimeoutError, OSError) as error:
            self.counters.add("node_stop_failures")
            self.log.warning("a part did not stop cleanly", extra={"reason": str(error) or "timeout"})
