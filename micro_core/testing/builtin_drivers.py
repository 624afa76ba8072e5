"""The conformance tests of the built-in drivers, which `micro plugin verify` runs for them.

The module of a plugin author (entry-point group `micro.testing`) has the same form: one class per driver, each with the
fixture `driver_under_test`.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from micro_core.builtin.broker import memory as memory_broker
from micro_core.builtin.broker import node as node_broker
from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.node import NodeBrokerOptions
from micro_core.builtin.registry import local as local_registry
from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.local import LocalRegistryOptions
from micro_core.builtin.registry.record_files import path_component
from micro_core.builtin.resolver import memory as memory_resolver
from micro_core.builtin.resolver import registry as registry_resolver
from micro_core.builtin.resolver import static as static_resolver
from micro_core.builtin.resolver.static import StaticOptions
from micro_core.builtin.table import memory as memory_table
from micro_core.builtin.transport import memory as memory_transport
from micro_core.builtin.transport import tcp as tcp_transport
from micro_core.builtin.transport import unix as unix_transport
from micro_core.builtin.tunnel import memory as memory_tunnel
from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import (
    Broker,
    Candidate,
    CountersInMemory,
    Driver,
    DriverContext,
    Instance,
    LinkDriver,
    NoOptions,
    Registry,
    Resolver,
    Table,
    Transport,
    Unreachable,
)
from micro_core.contract.names import BROKER_SERVICE, NODE_KEY, PRIORITY_KEY, TUNNEL_KEY
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.standalone.broker import client as service_broker
from micro_core.testing.broker.checks import BrokerConformance
from micro_core.testing.kit.driver_under_test import DriverUnderTest, Faults
from micro_core.testing.kit.harness import Harness
from micro_core.testing.registry.checks import RegistryConformance
from micro_core.testing.resolver import ResolverConformance
from micro_core.testing.table import TableConformance
from micro_core.testing.transport import TransportConformance
from micro_core.testing.tunnel import TunnelConformance


def _context() -> DriverContext:
    """Return a context for the registry and the transport that a driver gets in its own context."""
    return DriverContext(
        node_id="a" * 32,
        network=f"kit.{secrets.token_hex(6)}",
        site="eu",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),  # noqa: S311 - not used for secrets
        logger=logging.getLogger("micro.kit"),
        counters=CountersInMemory(),
    )


# ------------------------------------------------------------------------------- registries


class TestMemoryRegistry(RegistryConformance):
    """The kit for `registry:memory`."""

    lease_s = 0.4

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        """Return the driver."""
        return DriverUnderTest(driver=memory_registry.micro_registry())


class _ForeignFiles(Faults):
    """Writes files that are not records into the directory of the registry."""

    async def garbage(self, context: DriverContext) -> None:
        directory = Path(context.state_dir, "registry", path_component(context.network), path_component(context.site))
        for number, content in enumerate(
            (
                b"",
                b"{",
                b"null",
                b"[1, 2]",
                b'{"instance": {"service": 7}, "lease_s": 60}',
                b"\xff\xfe" * 300,
                b"x" * 70_000,
            )
        ):
            (directory / f"garbage-{number}.json").write_bytes(content)
        (directory / "garbage.json.d").mkdir(exist_ok=True)


class TestLocalRegistry(RegistryConformance):
    """The kit for `registry:local`."""

    lease_s = 0.5
    burst_changes = 300  # each change writes a file

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        """Return the driver."""
        options = LocalRegistryOptions(poll_s=0.02)
        return DriverUnderTest(driver=local_registry.micro_registry(), options=options, faults=_ForeignFiles())


# ------------------------------------------------------------------------------- transports


class TestMemoryTransport(TransportConformance):
    """The kit for `transport:memory`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Transport]:
        """Return the driver."""
        driver = memory_transport.micro_transport()
        faults = _ConnectionFaults()
        return DriverUnderTest(driver=dataclasses.replace(driver, create=faults.recording(driver)), faults=faults)


class TestTcpTransport(TransportConformance):
    """The kit for `transport:tcp`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Transport]:
        """Return the driver."""
        return DriverUnderTest(driver=tcp_transport.micro_transport())


class TestUnixTransport(TransportConformance):
    """The kit for `transport:unix`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Transport]:
        """Return the driver."""
        return DriverUnderTest(driver=unix_transport.micro_transport())


class _ConnectionFaults(Faults):
    """Breaks all connections of the transports of a test."""

    def __init__(self) -> None:
        self._created: list[Any] = []

    def recording(self, driver: Driver[Any]) -> Any:
        """Return the `create` function of a driver, extended to record the drivers that it creates."""

        def create(options: Any, context: DriverContext) -> Any:
            created = driver.create(options, context)
            self._created.append(created)
            return created

        return create

    async def kill(self) -> None:
        for transport in self._created:
            for socket in list(transport.sockets):
                socket.cut()


# ---------------------------------------------------------------------------------- brokers


class TestMemoryBroker(BrokerConformance):
    """The kit for `broker:memory`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Broker]:
        """Return the driver."""
        return DriverUnderTest(driver=memory_broker.micro_broker())


class _BrokerHostFaults(Faults):
    """Stops and starts the broker of a node, which clients find through a registry."""

    def __init__(self) -> None:
        self.context = _context()
        self.registry = memory_registry.create(NoOptions(), self.context)
        self.transport = memory_transport.create(NoOptions(), self.context)
        self._host: BrokerHost | None = None

    async def restart(self) -> None:
        self._host = BrokerHost(node_id="host", counters=self.context.counters, logger=self.context.logger)
        await self._host.start(self.transport, "memory://host")
        record = Instance(service=BROKER_SERVICE, id="go.micro.broker-host", address=self._host.address)
        await self.registry.register(record, lease_s=3_600)

    async def wipe(self) -> None:
        # A host stores nothing except the connections of its subscribers.
        await self.restart()

    async def kill(self) -> None:
        if self._host is not None:
            await self._host.close()


class TestNodeBroker(BrokerConformance):
    """The kit for `broker:node`."""

    too_large_message_bytes = 17 * 1024 * 1024
    driver: ClassVar[Driver[Broker]] = node_broker.micro_broker()

    @pytest_asyncio.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[Broker]]:
        """Yield the driver with its back end."""
        host = _BrokerHostFaults()
        await host.registry.start()
        await host.transport.start()
        await host.restart()
        options = NodeBrokerOptions(retry_s=0.05, publish_timeout_s=1.0, subscribe_timeout_s=1.0)
        yield DriverUnderTest(
            driver=self.driver,
            options=options,
            faults=host,
            registry=host.registry,
            transport=host.transport,
        )
        await host.kill()
        await host.transport.close()
        await host.registry.close()


class TestServiceBroker(TestNodeBroker):
    """The kit for `broker:service`, the same client as `broker:node` with a broker in a separate process."""

    driver = service_broker.micro_broker()


# ---------------------------------------------------------------------------------- tunnels


class _NetworkFaults(Faults):
    """Pauses, resumes and breaks the links of in-memory tunnels."""

    def __init__(self) -> None:
        self._created: list[MemoryTunnel] = []

    def create(self, options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
        """Create a driver like `create` of `tunnel:memory`, and record it."""
        created = MemoryTunnel(options, context)
        self._created.append(created)
        return created

    async def kill(self) -> None:
        for tunnel in self._created:
            for link in tunnel.links:
                link.cut()

    async def pause(self) -> None:
        for tunnel in self._created:
            for link in [*tunnel.links, *tunnel.accepted_links]:
                link.hold()

    async def resume(self) -> None:
        for tunnel in self._created:
            for link in [*tunnel.links, *tunnel.accepted_links]:
                link.release()


class TestMemoryTunnel(TunnelConformance):
    """The kit for `tunnel:memory`."""

    listen_address = ""

    @pytest.fixture(params=[4, 1], ids=["four-lanes", "one-lane"])
    def driver_under_test(self, request: pytest.FixtureRequest) -> DriverUnderTest[LinkDriver]:
        """Return the driver."""
        network = _NetworkFaults()
        return DriverUnderTest(
            driver=dataclasses.replace(memory_tunnel.micro_tunnel(), create=network.create),
            options=MemoryTunnelOptions(lanes=request.param),
            faults=network,
        )


# ----------------------------------------------------------------------------------- tables


class TestMemoryTable(TableConformance):
    """The kit for `table:memory`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Table]:
        """Return the driver."""
        return DriverUnderTest(driver=memory_table.micro_table())


# -------------------------------------------------------------------------------- resolvers


class TestMemoryResolver(ResolverConformance):
    """The kit for `resolver:memory`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Resolver]:
        """Return the driver."""
        self.withdrawals: list[Any] = []
        return DriverUnderTest(driver=memory_resolver.micro_resolver())

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        """Replace the nodes that the resolver finds."""
        for withdraw in self.withdrawals:
            withdraw()
        self.withdrawals = [memory_resolver.announce(harness.network, candidate) for candidate in candidates]


class TestStaticResolver(ResolverConformance):
    """The kit for `resolver:static`."""

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Resolver]:
        """Return the driver."""
        options = StaticOptions(nodes=("quic://127.0.0.1:7001", "127.0.0.1:7002"))
        return DriverUnderTest(driver=static_resolver.micro_resolver(), options=options)


class _UnavailableRegistry(Faults):
    """A registry that can be made unavailable."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.is_available = True

    async def kill(self) -> None:
        self.is_available = False

    async def restart(self) -> None:
        self.is_available = True

    async def garbage(self, context: DriverContext) -> None:
        metadata = {NODE_KEY: "b" * 32, TUNNEL_KEY: "two words, \x00", PRIORITY_KEY: "-7"}
        record = Instance(service="go.micro.network", id="garbage", address="tcp://127.0.0.1:1", metadata=metadata)
        del context
        await self._registry.register(record, lease_s=60)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the instances, as the resolver reads them. Raises Unreachable if the registry was made unavailable."""
        if not self.is_available:
            raise Unreachable("the registry is not available")
        return await self._registry.instances(service)


class TestRegistryResolver(ResolverConformance):
    """The kit for `resolver:registry`."""

    @pytest_asyncio.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[Resolver]]:
        """Yield the driver with its back end."""
        self.registry = memory_registry.create(NoOptions(), _context())
        await self.registry.start()
        faults = _UnavailableRegistry(self.registry)
        registry: Any = faults  # the resolver only calls `instances`
        yield DriverUnderTest(driver=registry_resolver.micro_resolver(), faults=faults, registry=registry)
        await self.registry.close()

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        """Replace the nodes that the resolver finds."""
        del harness
        for instance in await self.registry.instances():
            await self.registry.deregister(instance)
        for number, candidate in enumerate(candidates):
            metadata = {
                NODE_KEY: f"node-{number}",
                TUNNEL_KEY: candidate.address,
                PRIORITY_KEY: str(candidate.priority),
            }
            record = Instance(
                service="go.micro.network", id=str(number), address="tcp://127.0.0.1:1", metadata=metadata
            )
            await self.registry.register(record, lease_s=60)


__all__ = [name for name in dir() if name.startswith("Test")]
