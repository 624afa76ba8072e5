"""A running node: start, drain and stop. `composition.py` assembles it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from micro_core.builtin.broker.host import BrokerHost
from micro_core.contract.broker import Broker
from micro_core.contract.names import BROKER_SERVICE
from micro_core.contract.registry import Registry
from micro_core.contract.resolver import Resolver
from micro_core.contract.table import Table
from micro_core.contract.transport import Transport
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.closing import Closing
from micro_core.lifecycle.environment import Environment
from micro_core.network.network import Network
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingPlane
from micro_core.node.link_plane import LinkPlane
from micro_core.node.node_lock import NodeLock
from micro_core.node.registration import NodeRegistrations
from micro_core.node.routing_plane import RoutingPlane
from micro_core.plugins import Hooks
from micro_core.proxy.proxy import Proxy
from micro_core.routing.router import Router
from micro_core.tunnel.tunnel import TunnelHost

PROPAGATION_S = 0.3
"""Seconds for withdrawals to reach the neighbours before calls are refused."""

CLOSE_TIMEOUT_S = 5.0
"""Timeout in seconds for closing one component."""


@dataclass(kw_only=True)
class Node:
    """The planes of a node and its drivers. Implements `RunningNode`, the view for plugins."""

    description: NodeDescription
    environment: Environment
    links: LinkPlane
    routing: RoutingPlane
    forwarding: ForwardingPlane
    transport: Transport
    registry: Registry
    table: Table
    broker: Broker
    broker_host: BrokerHost | None
    resolvers: Sequence[Resolver]
    listen_address: str
    lease_s: float
    hooks: Hooks
    lock: NodeLock | None
    driver_names: tuple[str, ...]
    _is_announced: bool = False
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self._tasks = BackgroundTasks(
            component="node",
            logger=self.environment.logger,
            counters=self.environment.counters,
            failure_counter="node_tasks_failed",
        )
        self.links.add_resumed_handler(self._resumed)
        self._closing = Closing(
            timeout_s=CLOSE_TIMEOUT_S,
            logger=self.environment.logger,
            counters=self.environment.counters,
            failure_counter="node_stop_failures",
        )
        self._registrations = NodeRegistrations(
            self.registry, node=self.description, lease_s=self.lease_s, counters=self.environment.counters
        )

    # -------------------------------------------------------------- lifecycle

    async def start(self) -> None:
        """Start drivers and planes, lower layers first.

        On failure or cancellation, everything that was started is closed before the error is raised.

        Raises:
            Conflict: an address is in use, or the node runs in another process already.
            ConfigError: a driver cannot be started with its options.
            Unreachable: the registry does not answer.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(drain=False)
            raise

    async def _start(self) -> None:
        if self.lock is not None:
            await self._start_component(self.lock.acquire, self.lock.release)
        await self._start_component(self.transport.start, self.transport.close)
        await self._start_component(self.registry.start, self.registry.close)
        await self._start_component(self.table.start, self.table.close)
        self.routing.restore()
        for resolver in self.resolvers:
            await self._start_component(resolver.start, resolver.close)
        await self._start_component(lambda: self.forwarding.listen(self.listen_address), self.forwarding.close)
        await self._start_brokers()
        self.forwarding.accept_sessions()
        # Adverts see every link from the first on, and are closed before the links, so that their last messages are sent.
        self._closing.push(self._stack, self.links.close)
        self._closing.push(self._stack, self.routing.close)
        self.routing.open_sessions()
        await self.links.connect()
        await self.routing.follow_registry(self.registry)
        await self._start_component(self.forwarding.topics.start, self.forwarding.topics.close)
        await self._registrations.add_node(
            self.address,
            tunnel_addresses=self.tunnel.address(),
            endpoints=self.forwarding.server.endpoints,
        )
        self.hooks.node_started(self)
        self._is_announced = True

    def _resumed(self, incarnation: int) -> None:  # noqa: ARG002 - the links use it
        """Renew the records in the registry after a suspension of this process."""
        if self._is_announced:
            self._tasks.start(self._registrations.renew())

    async def _start_brokers(self) -> None:
        if self.broker_host is not None:
            host = self.broker_host
            await self._start_component(lambda: host.start(self.transport), host.close)
            metadata = self.description.metadata(self.tunnel.address())
            await self._registrations.add(BROKER_SERVICE, host.address, metadata=metadata)
        await self._start_component(self.broker.start, self.broker.close)

    async def _start_component(
        self, start: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]
    ) -> None:
        # Close also after a failed start, which may have opened something.
        self._closing.push(self._stack, close)
        await start()

    async def stop(self, *, drain: bool = True) -> None:
        """Withdraw all records and routes, finish the calls in progress, then close everything, upper layers first.

        Without `drain`, routes are not withdrawn and calls in progress end with Cancelled. Safe to call at any time, and
        twice. Cancellation ends the step that runs; the components are closed in any case.
        """
        if self._is_announced:
            self._is_announced = False
            self.hooks.node_stopping(self)
        await self._tasks.cancel()
        try:
            await self._registrations.withdraw(self._closing)
            if drain:
                self.router.withdraw_all()
                await asyncio.sleep(PROPAGATION_S)
                await self.forwarding.drain()
        finally:
            await self._stack.aclose()

    # ------------------------------------------------------------------- view

    @property
    def node_id(self) -> str:
        """The id of the node."""
        return self.description.node_id

    @property
    def name(self) -> str:
        """The display name of the node."""
        return self.description.name

    @property
    def site(self) -> str:
        """The site of the node."""
        return self.description.site

    @property
    def network_name(self) -> str:
        """The name of the network to which the node belongs."""
        return self.description.network

    @property
    def address(self) -> str:
        """The address at which the node accepts calls from its site, or empty before `start`."""
        return self.forwarding.address

    @property
    def tunnel(self) -> TunnelHost:
        """The tunnel of the link plane."""
        return self.links.tunnel

    @property
    def network(self) -> Network:
        """The network of the link plane."""
        return self.links.network

    @property
    def router(self) -> Router:
        """The router of the routing plane."""
        return self.routing.router

    @property
    def proxy(self) -> Proxy:
        """The proxy of the forwarding plane."""
        return self.forwarding.proxy

    def facts(self) -> dict[str, Any]:
        """Return the values that `micro network status` shows."""
        return {
            "id": self.node_id,
            "name": self.name,
            "site": self.site,
            "network": self.network_name,
            "address": self.address,
            "tunnel": self.tunnel.address(),
            "drivers": list(self.driver_names),
            "in_flight": self.proxy.in_flight,
            "loop_lag_us": round(self.tunnel.loop_watch.lag_s() * 1e6),
            "counters": self.counted(),
        }

    def counted(self) -> dict[str, int]:
        """Return all counters by name, sorted."""
        return self.environment.counted()
