"""The contract of the registry role, held by both built-in registries."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from micro_core.builtin import local_registry, memory_registry
from micro_core.spec import (
    BadRequest,
    Closed,
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


@pytest.fixture(params=["memory", "local"])
async def opened(request: pytest.FixtureRequest, make_context: Callable[..., DriverContext]) -> AsyncIterator[Opener]:
    registries: list[Registry] = []

    async def opener(**context: str) -> Registry:
        registry: Registry
        if request.param == "memory":
            driver = memory_registry.micro_registry()
            registry = driver.create(driver.options(), make_context(**context))
        else:
            driver = local_registry.micro_registry()
            registry = driver.create(driver.options(poll_s=0.02), make_context(**context))
        await registry.start()
        registries.append(registry)
        return registry

    yield opener
    for registry in registries:
        await registry.close()


async def following(watch: RegistryWatch, count: int, timeout_s: float = 5.0) -> list[RegistryEvent]:
    """The next `count` events of a watch."""
    iterator = aiter(watch)
    async with asyncio.timeout(timeout_s):
        return [await anext(iterator) for _ in range(count)]


async def next_change(watch: RegistryWatch) -> tuple[RegistryEventKind, Instance | None]:
    (event,) = await following(watch, 1)
    return event.kind, event.instance


async def test_a_registered_instance_is_seen_by_every_registry_of_the_site(opened: Opener) -> None:
    one, other = await opened(), await opened()
    assert await other.instances() == []
    await one.register(GREETER, lease_s=30)
    assert await one.instances() == [GREETER]
    assert await other.instances() == [GREETER]
    assert await other.instances(GREETER.service) == [GREETER]
    assert await other.instances("go.micro.srv.other") == []


async def test_sites_and_networks_do_not_see_each_other(opened: Opener) -> None:
    await (await opened()).register(GREETER, lease_s=30)
    assert await (await opened(site="us")).instances() == []
    assert await (await opened(network="go.other")).instances() == []


async def test_several_versions_and_instances_stand_side_by_side(opened: Opener) -> None:
    registry = await opened()
    instances = [
        replace(GREETER, id=f"greeter-{number}", version=version) for number in range(3) for version in ("1.0",)
    ] + [replace(GREETER, id="greeter-new", version="2.0", metadata={}, endpoints=())]
    for instance in instances:
        await registry.register(instance, lease_s=30)
    found = await registry.instances(GREETER.service)
    assert sorted(found, key=lambda instance: instance.id) == sorted(instances, key=lambda instance: instance.id)


async def test_a_watch_begins_with_what_stands_and_goes_on_with_changes(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    await writer.register(GREETER, lease_s=30)
    watch = await reader.watch()
    assert await next_change(watch) == (CREATED, GREETER)
    changed = replace(GREETER, metadata={"zone": "b"})
    await writer.register(changed, lease_s=30)
    assert await next_change(watch) == (UPDATED, changed)
    await writer.deregister(changed)
    assert await next_change(watch) == (DELETED, changed)
    assert await reader.instances() == []


async def test_an_equal_record_renews_silently(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    watch = await reader.watch()
    await writer.register(GREETER, lease_s=30)
    await writer.register(replace(GREETER), lease_s=30)
    await writer.register(replace(GREETER), lease_s=60)
    last = replace(GREETER, id="greeter-last")
    await writer.register(last, lease_s=30)
    assert [event.instance for event in await following(watch, 2)] == [GREETER, last]


async def test_renewing_keeps_a_record_beyond_its_first_lease(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    watch = await reader.watch()
    lease_s = 0.4
    mayfly = replace(GREETER, id="mayfly")
    await writer.register(GREETER, lease_s=lease_s)
    await writer.register(mayfly, lease_s=2 * lease_s)
    assert {event.kind for event in await following(watch, 2)} == {CREATED}

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_s / 4)
            await writer.register(GREETER, lease_s=lease_s)

    renewing = asyncio.create_task(renew())
    # The mayfly is not renewed and dies at twice the lease: the first thing to happen.
    assert await next_change(watch) == (DELETED, mayfly)
    renewing.cancel()
    assert await reader.instances() == [GREETER]
    assert await next_change(watch) == (DELETED, GREETER)
    assert await reader.instances() == []
    assert await writer.instances() == []


async def test_a_record_that_is_not_renewed_goes_within_its_lease_and_a_second(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    watch = await reader.watch(GREETER.service)
    await writer.register(GREETER, lease_s=0.3)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert [event.kind for event in await following(watch, 2)] == [CREATED, DELETED]
    assert 0.2 < loop.time() - began < 1.3


async def test_a_record_that_has_expired_can_be_registered_again(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    watch = await reader.watch()
    await writer.register(GREETER, lease_s=0.1)
    await following(watch, 2)
    await writer.register(GREETER, lease_s=30)
    assert await next_change(watch) == (CREATED, GREETER)


async def test_a_watch_of_one_service_hears_of_no_other(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    other = replace(GREETER, service="go.micro.srv.other", id="other-1")
    await writer.register(other, lease_s=30)
    watch = await reader.watch(GREETER.service)
    await writer.deregister(other)
    await writer.register(GREETER, lease_s=30)
    assert await next_change(watch) == (CREATED, GREETER)


async def test_an_instance_that_moves_to_another_service_leaves_the_first(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    await writer.register(GREETER, lease_s=30)
    watch = await reader.watch(GREETER.service)
    assert await next_change(watch) == (CREATED, GREETER)
    moved = replace(GREETER, service="go.micro.srv.moved")
    await writer.register(moved, lease_s=30)
    assert await next_change(watch) == (DELETED, GREETER)
    assert await reader.instances() == [moved]


async def test_a_watcher_that_falls_behind_is_told_to_read_everything_anew(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await opened()
    monkeypatch.setattr(reader._watches, "_capacity", 3)  # type: ignore[attr-defined]
    watch = await reader.watch()
    instances = [replace(GREETER, id=f"greeter-{number}") for number in range(10)]
    for instance in instances:
        await reader.register(instance, lease_s=30)
    assert len(await reader.instances()) == 10
    assert (RESYNC, None) in [(event.kind, event.instance) for event in await following(watch, 1)]
    last = replace(GREETER, id="greeter-last")
    await reader.register(last, lease_s=30)
    iterator = aiter(watch)
    async with asyncio.timeout(5):
        while (await anext(iterator)).instance != last:
            pass


async def test_closing_a_watch_ends_its_iteration_at_once(opened: Opener) -> None:
    registry = await opened()
    watch = await registry.watch()
    await registry.register(GREETER, lease_s=30)
    assert await next_change(watch) == (CREATED, GREETER)

    async def read() -> list[RegistryEvent]:
        return [event async for event in watch]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await watch.close()
    await watch.close()
    async with asyncio.timeout(5):
        assert await reading == []


async def test_closing_a_registry_withdraws_its_records_and_ends_its_watches(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    kept = replace(GREETER, id="kept")
    await reader.register(kept, lease_s=30)
    await writer.register(GREETER, lease_s=30)
    ended, watch = await writer.watch(), await reader.watch()
    assert {event.kind for event in await following(watch, 2)} == {CREATED}
    await writer.close()
    await writer.close()
    assert await next_change(watch) == (DELETED, GREETER)
    assert [event async for event in ended] == []
    assert await reader.instances() == [kept]
    with pytest.raises(Closed):
        await writer.register(GREETER, lease_s=30)
    with pytest.raises(Closed):
        await writer.instances()


async def test_closing_leaves_a_record_that_another_registry_has_taken_over(opened: Opener) -> None:
    first, second = await opened(), await opened()
    await first.register(GREETER, lease_s=30)
    newer = replace(GREETER, address="tcp://127.0.0.1:4002")
    await second.register(newer, lease_s=30)
    await first.close()
    assert await second.instances() == [newer]


async def test_deregistering_an_unknown_instance_is_ignored(opened: Opener) -> None:
    registry = await opened()
    await registry.deregister(GREETER)
    assert await registry.instances() == []


async def test_a_record_that_others_would_refuse_is_refused_at_once(opened: Opener) -> None:
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


async def test_a_caller_that_changes_its_maps_later_changes_no_record(opened: Opener) -> None:
    registry = await opened()
    metadata = {"zone": "a"}
    await registry.register(replace(GREETER, metadata=metadata), lease_s=30)
    metadata["zone"] = "b"
    assert [instance.metadata for instance in await registry.instances()] == [{"zone": "a"}]


@pytest.mark.parametrize("instance_id", ["../../escape", "/etc/passwd", ".", "..", "a\\b:c*?", "x" * 253, "ünï-日本"])
async def test_any_printable_id_is_kept_apart_and_in_its_place(opened: Opener, instance_id: str) -> None:
    registry = await opened()
    odd = replace(GREETER, id=instance_id)
    await registry.register(GREETER, lease_s=30)
    await registry.register(odd, lease_s=30)
    assert {instance.id for instance in await registry.instances()} == {GREETER.id, instance_id}
    await registry.deregister(odd)
    assert await registry.instances() == [GREETER]
