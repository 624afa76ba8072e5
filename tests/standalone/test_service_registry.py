"""`registry:service` passes the conformance kit with a registry that is served over TCP and can be stopped."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.transport import tcp as tcp_transport
from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Instance,
    NoOptions,
    Registry,
    RegistryEvent,
    RegistryEventKind,
    Transport,
    Unreachable,
)
from micro_core.contract.names import REGISTRY_SERVICE
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.rpc.service import Service
from micro_core.standalone.registry import client as service_registry
from micro_core.standalone.registry.client import ServiceRegistry, ServiceRegistryOptions
from micro_core.standalone.registry.server import RegistryEndpoints
from micro_core.testing import DriverUnderTest, RegistryConformance, free_port
from micro_core.testing.kit.driver_under_test import Faults

GREETER = Instance(service="go.micro.srv.greeter", id="greeter-1", address="tcp://127.0.0.1:4001")
TIMEOUT_S = 10.0


def context(**changes: object) -> DriverContext:
    plain = DriverContext(
        node_id="a" * 32,
        network="go.micro",
        site="eu",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class Host(Faults):
    """A registry at a fixed address, in this event loop. `wipe` starts it again without records."""

    def __init__(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.starts = 0
        self._service: Service | None = None
        self._endpoints: RegistryEndpoints | None = None
        self._transport: Transport | None = None

    async def start(self) -> None:
        self.starts += 1
        start = self.starts
        transport = self._transport = tcp_transport.micro_transport().create(
            tcp_transport.micro_transport().options(), context()
        )
        await transport.start()

        def open_registry(network: str, site: str) -> Registry:
            # A new network for each start, because the records of a memory registry are kept as long as the process.
            return memory_registry.create(NoOptions(), context(network=f"{network}.{start}.{id(self)}", site=site))

        endpoints = self._endpoints = RegistryEndpoints(open_registry)
        own = await endpoints.of("go.micro", "host")
        service = self._service = Service(REGISTRY_SERVICE, registry=own, transport=transport, address=self.address)
        endpoints.add_to(service.server)
        await service.start()

    async def kill(self) -> None:
        assert self._service is not None
        assert self._endpoints is not None
        assert self._transport is not None
        # The sockets are closed first, so that clients receive no GOAWAY.
        await self._transport.close()
        await self._service.stop(drain_s=0)
        await self._endpoints.close()

    async def wipe(self) -> None:
        await self.start()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.start()
    yield host
    await host.kill()


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = tcp_transport.micro_transport().create(tcp_transport.micro_transport().options(), context())
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def options(host: Host) -> ServiceRegistryOptions:
    return ServiceRegistryOptions(address=host.address, retry_s=0.1, start_s=2.0, grace_s=0.5)


class TestServiceRegistry(RegistryConformance):
    lease_s = 0.5

    @pytest.fixture
    def driver_under_test(
        self, host: Host, options: ServiceRegistryOptions, transport: Transport
    ) -> DriverUnderTest[Registry]:
        return DriverUnderTest(
            driver=service_registry.micro_registry(), options=options, transport=transport, faults=host
        )


@pytest.fixture
async def registries(options: ServiceRegistryOptions, transport: Transport) -> AsyncIterator[list[ServiceRegistry]]:
    made = [ServiceRegistry(options, context(transport=transport)) for _ in range(2)]
    for registry in made:
        await registry.start()
    yield made
    for registry in made:
        await registry.close()


async def next_event(events: AsyncIterator[RegistryEvent]) -> RegistryEvent:
    async with asyncio.timeout(TIMEOUT_S):
        return await anext(events)


async def test_records_are_registered_again_after_a_restart_and_watchers_see_no_change(
    host: Host, registries: list[ServiceRegistry]
) -> None:
    writer, reader = registries
    await writer.register(GREETER, lease_s=60)
    watch = await reader.watch()
    events = aiter(watch)
    assert (await next_event(events)).instance == GREETER
    await host.kill()
    with pytest.raises(Unreachable):
        await reader.instances()
    await host.wipe()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                if GREETER in await reader.instances():
                    break
            except Unreachable:
                pass
            await asyncio.sleep(0.02)
    # The next event is a later change, not the removal of the greeter.
    other = replace(GREETER, id="greeter-2")
    await writer.register(other, lease_s=60)
    event = await next_event(events)
    assert (event.kind, event.instance) == (RegistryEventKind.CREATED, other)


async def test_record_whose_owner_has_stopped_is_deleted_after_the_grace_period(
    host: Host, registries: list[ServiceRegistry]
) -> None:
    writer, reader = registries
    await writer.register(GREETER, lease_s=60)
    events = aiter(await reader.watch())
    await next_event(events)
    await host.kill()
    await writer.close()
    await host.wipe()
    event = await next_event(events)
    assert (event.kind, event.instance) == (RegistryEventKind.DELETED, GREETER)


async def test_start_without_a_registry_fails_with_the_address_and_a_hint(transport: Transport) -> None:
    nowhere = ServiceRegistryOptions(address=f"tcp://127.0.0.1:{free_port()}", start_s=0.2)
    registry = ServiceRegistry(nowhere, context(transport=transport))
    with pytest.raises(Unreachable, match=r"no registry at tcp://127\.0\.0\.1.*micro registry"):
        await registry.start()


async def test_five_thousand_records_are_read_and_watched(registries: list[ServiceRegistry]) -> None:
    writer, reader = registries
    instances = [replace(GREETER, id=f"greeter-{number}") for number in range(5_000)]
    for start in range(0, len(instances), 250):
        await asyncio.gather(*(writer.register(one, lease_s=600) for one in instances[start : start + 250]))
    assert len(await reader.instances()) == 5_000
    watch = aiter(await reader.watch(GREETER.service))
    async with asyncio.timeout(TIMEOUT_S):
        found = {event.instance.id async for event in _take(watch, 5_000) if event.instance is not None}
    assert len(found) == 5_000


async def _take(events: AsyncIterator[RegistryEvent], count: int) -> AsyncIterator[RegistryEvent]:
    for _ in range(count):
        yield await anext(events)


class FailingRegistry(memory_registry.MemoryRegistry):
    """A registry whose start fails, and that notes whether it is closed."""

    closed = 0

    async def start(self) -> None:
        await super().start()
        raise Unreachable("no answer")

    async def close(self) -> None:
        type(self).closed += 1
        await super().close()


async def test_registry_that_cannot_be_started_is_closed() -> None:
    endpoints = RegistryEndpoints(lambda network, site: FailingRegistry(context(network=network, site=site)))
    with pytest.raises(Unreachable):
        await endpoints.of("go.micro", "eu")
    assert FailingRegistry.closed == 1
    await endpoints.close()
