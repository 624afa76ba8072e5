"""Behaviour of the built-in registries that the conformance kit does not test (see test_conformance.py)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from micro_core.builtin.registry import local as local_registry
from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.joined import JoinedRegistry
from micro_core.contract import (
    BadRequest,
    CountersInMemory,
    DriverContext,
    Endpoint,
    Instance,
    Registry,
    RegistryEvent,
    RegistryEventKind,
    RegistryWatch,
    TooLarge,
)

CREATED, UPDATED, DELETED, RESYNC = (
    RegistryEventKind.CREATED,
    RegistryEventKind.UPDATED,
    RegistryEventKind.DELETED,
    RegistryEventKind.RESYNC,
)

Opener = Callable[..., Awaitable[Registry]]
GREETER = Instance(
    service="go.micro.srv.greeter",
    id="greeter-1",
    address="tcp://127.0.0.1:4001",
    metadata={"zone": "a"},
    endpoints=(Endpoint(name="Say.Hello", request={"type": "object"}, idempotent=True),),
)


@pytest.fixture(params=["memory", "local", "joined"])
async def opened(request: pytest.FixtureRequest, make_context: Callable[..., DriverContext]) -> AsyncIterator[Opener]:
    registries: list[Registry] = []

    async def opener(**context: str) -> Registry:
        registry: Registry
        if request.param == "memory":
            driver = memory_registry.micro_registry()
            registry = driver.create(driver.options(), make_context(**context))
        elif request.param == "joined":
            driver = memory_registry.micro_registry()
            joined = [
                driver.create(
                    driver.options(),
                    make_context(**{**context, "network": f"{context.get('network', 'go.micro')}.{name}"}),
                )
                for name in ("one", "two")
            ]
            registry = JoinedRegistry(joined, CountersInMemory())
        else:
            driver = local_registry.micro_registry()
            registry = driver.create(driver.options(poll_s=0.02), make_context(**context))
        await registry.start()
        registries.append(registry)
        return registry

    yield opener
    for registry in registries:
        await registry.close()


async def next_events(watch: RegistryWatch, count: int, timeout_s: float = 5.0) -> list[RegistryEvent]:
    """Return the next `count` events of a watch."""
    iterator = aiter(watch)
    async with asyncio.timeout(timeout_s):
        return [await anext(iterator) for _ in range(count)]


async def test_slow_watcher_receives_resync(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = await opened()
    if isinstance(reader, JoinedRegistry):
        pytest.skip("each of its registries sends RESYNC by itself")
    monkeypatch.setattr(reader._watches, "_capacity", 3)  # type: ignore[attr-defined]
    watch = await reader.watch()
    instances = [replace(GREETER, id=f"greeter-{number}") for number in range(10)]
    for instance in instances:
        await reader.register(instance, lease_s=30)
    assert len(await reader.instances()) == 10
    assert (RESYNC, None) in [(event.kind, event.instance) for event in await next_events(watch, 1)]
    final = replace(GREETER, id="greeter-final")
    await reader.register(final, lease_s=30)
    iterator = aiter(watch)
    async with asyncio.timeout(5):
        while (await anext(iterator)).instance != final:
            pass


async def test_invalid_record_is_rejected(opened: Opener) -> None:
    registry = await opened()
    with pytest.raises(BadRequest, match="service"):
        await registry.register(replace(GREETER, service="no spaces"), lease_s=30)
    with pytest.raises(BadRequest, match="lease"):
        await registry.register(GREETER, lease_s=0)
    with pytest.raises(BadRequest, match="lease"):
        await registry.register(GREETER, lease_s=float("nan"))
    with pytest.raises(TooLarge, match="65536"):
        await registry.register(
            replace(GREETER, metadata={f"key-{number}": "x" * 4_000 for number in range(20)}), lease_s=30
        )
    assert await registry.instances() == []
