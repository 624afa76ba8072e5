"""The fault table of the README: Redis is killed, emptied, stopped, slow, full, or written to by other programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from micro_core.contract import Instance, Overloaded, Unreachable

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import (
        MakeRelay,
        MakeServer,
        OpenRegistry,
        OpenWatch,
        RedisServer,
        RegistryUnderTest,
    )

STOPPED_S = 10.0
"""Seconds for which the server is stopped in the longest test: several times `timeout_s`, and most of a lease."""
ROOT = "micro:{go.micro/eu}:"
MakeInstance = Callable[..., Instance]
Until = Callable[..., Awaitable[None]]


@asynccontextmanager
async def renewing(opened: RegistryUnderTest, instance: Instance, lease_s: float) -> AsyncIterator[None]:
    """Renew records like a service: at a third of the lease, and soon again after a failure."""

    async def renew() -> None:
        while True:
            try:
                await opened.registry.register(instance, lease_s=lease_s)
            except Unreachable:
                await asyncio.sleep(lease_s / 10)
            else:
                await asyncio.sleep(lease_s / 3)

    await opened.registry.register(instance, lease_s=lease_s)
    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def lists(opened: RegistryUnderTest, *ids: str) -> bool:
    try:
        return sorted(instance.id for instance in await opened.registry.instances()) == sorted(ids)
    except Unreachable:
        return False


@pytest.mark.parametrize("empty", [False, True], ids=["same-data", "empty"])
async def test_watchers_see_no_event_when_a_killed_server_restarts(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
    empty: bool,
) -> None:
    owner, dead_owner, other = await open_registry(), await open_registry(), await open_registry()
    watch = await open_watch(other)
    await dead_owner.registry.register(make_instance("unowned"), lease_s=60)
    await dead_owner.registry._monitor.stop()  # as if its process were killed
    async with renewing(owner, make_instance("1"), 15), renewing(owner, make_instance("2"), 15):
        await wait_until(lambda: len(watch.current) == 3, "all records are seen")
        await redis_server.kill()
        with pytest.raises(Unreachable) as caught:
            await other.registry.instances()
        assert caught.value.hint
        with pytest.raises(Unreachable):
            await other.registry.watch()
        await (redis_server.wipe() if empty else redis_server.restart())
        expected = ("1", "2") if empty else ("1", "2", "unowned")
        await wait_until(lambda: lists(other, *expected), "the records exist again")
        await owner.registry.register(make_instance("3"), lease_s=30)
        await wait_until(lambda: "3" in watch.current, "the watch continues")
        # If all data were lost, the lost records are held for their owners; after that, those still missing are deleted.
        events = ["created", "deleted"] if empty else ["created"]
        await wait_until(lambda: watch.of("unowned") == events, "lost records are not held any more")
    assert watch.of("1") == watch.of("2") == ["created"]
    assert owner.count_logged("redis is unreachable") == owner.count_logged("redis is reachable again") <= 1, (
        "logged once per outage"
    )


async def test_record_of_a_dead_owner_is_deleted_after_a_loss_of_all_data(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    owner, dead_owner, other = await open_registry(), await open_registry(), await open_registry()
    watch = await open_watch(other)
    await owner.registry.register(make_instance("kept"), lease_s=60)
    await dead_owner.registry.register(make_instance("unowned"), lease_s=60)
    await wait_until(lambda: len(watch.current) == 2, "both records are seen")
    await dead_owner.registry._monitor.stop()  # as if its process were killed
    await redis_server.client.flushall()
    await wait_until(lambda: watch.of("unowned") == ["created", "deleted"], "the lost record is removed")
    assert watch.of("kept") == ["created"], "its owner restored it without an event"
    assert owner.count("redis_records_restored") == 1
    assert await lists(other, "kept")


async def test_stopped_server_continues_without_loss(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    owner, other = await open_registry(timeout_s=1.0), await open_registry(timeout_s=1.0)
    watch = await open_watch(other)
    async with renewing(owner, make_instance("1"), STOPPED_S + 2):
        await wait_until(lambda: len(watch.current) == 1, "the record is seen")
        await redis_server.pause()
        began = time.monotonic()
        while time.monotonic() - began < STOPPED_S:
            asked_at = time.monotonic()
            with pytest.raises(Unreachable):
                await other.registry.instances()
            assert time.monotonic() - asked_at < 4, "no call waits longer than timeout_s plus scheduling delay"
        await redis_server.resume()
        await wait_until(lambda: lists(other, "1"), "the record exists")
        await owner.registry.register(make_instance("2"), lease_s=30)
        await wait_until(lambda: "2" in watch.current, "the watch continues")
    assert watch.of("1") == ["created"]


async def test_change_is_not_executed_after_its_deadline(
    open_registry: OpenRegistry, redis_server: RedisServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await open_registry(timeout_s=0.3), await open_registry()
    await owner.registry.register(make_instance(), lease_s=60)
    await redis_server.pause()
    with pytest.raises(Unreachable):
        await owner.registry.register(make_instance(version="late"), lease_s=60)
    with pytest.raises(Unreachable):
        await owner.registry.register(make_instance("late"), lease_s=60)
    with pytest.raises(Unreachable):
        await owner.registry.deregister(make_instance())
    await redis_server.resume()
    await wait_until(lambda: lists(other, "1"), "only the previous record exists")
    (record,) = await other.registry.instances()
    assert record.version == "1.0"


async def test_cancelled_renewal_is_not_executed_after_the_deregistration(
    open_registry: OpenRegistry,
    make_relay: MakeRelay,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    relay = await make_relay(redis_server.port, delay_s=0.05)
    owner, other = await open_registry(f"redis://127.0.0.1:{relay.port}"), await open_registry()
    await owner.registry.register(make_instance(), lease_s=60)
    for _ in range(5):
        chunks = relay.received_chunks
        renewal = asyncio.create_task(owner.registry.register(make_instance(), lease_s=60))
        await wait_until(lambda: relay.received_chunks > chunks, "the command is sent")  # noqa: B023 - called at once
        renewal.cancel()
        await owner.registry.deregister(make_instance())
        assert await other.registry.instances() == []


async def test_slow_server_causes_only_delay(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_relay: MakeRelay,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    relay = await make_relay(redis_server.port, delay_s=0.1)
    url = f"redis://127.0.0.1:{relay.port}"
    owner, other = await open_registry(url), await open_registry(url)
    watch = await open_watch(other)
    instances = [make_instance(str(number)) for number in range(10)]
    await asyncio.gather(*(owner.registry.register(instance, lease_s=60) for instance in instances))
    await wait_until(lambda: len(watch.current) == 10, "all records are seen")
    assert await lists(other, *watch.current)
    await owner.registry.register(make_instance("short"), lease_s=1.5)
    await wait_until(lambda: watch.of("short") == ["created", "deleted"], "its lease ends nevertheless")


async def test_server_with_full_memory_renews_and_deregisters_but_refuses_new_records(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    server = await make_server("--maxmemory-policy", "noeviction").start()
    owner, other = await open_registry(server.url), await open_registry(server.url)
    watch = await open_watch(other)
    for name in ("renewed", "deregistered", "dying"):
        await owner.registry.register(make_instance(name), lease_s=1.5 if name != "deregistered" else 60)
    await wait_until(lambda: len(watch.current) == 3, "all records are seen")
    await server.client.config_set("maxmemory", "1")
    with pytest.raises(Overloaded) as caught:
        await owner.registry.register(make_instance("new"), lease_s=30)
    assert "maxmemory" in caught.value.hint
    with pytest.raises(Overloaded):
        await owner.registry.register(make_instance("renewed", version="2.0"), lease_s=30)
    async with renewing(owner, make_instance("renewed"), 1.5):
        await owner.registry.deregister(make_instance("deregistered"))
        await wait_until(lambda: list(watch.current) == ["renewed"], "deregistrations and ends of leases are reported")

        async def end_of_lease_ms() -> float:
            return float(await server.client.zscore(f"{ROOT}index", "greeter renewed") or 0.0)

        extended_ms = await end_of_lease_ms() + 2_000

        async def is_extended() -> bool:
            return await end_of_lease_ms() > extended_ms

        await wait_until(is_extended, "the lease is extended by more than its length")
        assert watch.of("renewed") == ["created"]
        assert await lists(other, "renewed")
        await server.client.config_set("maxmemory", "0")
        await owner.registry.register(make_instance("new"), lease_s=30)
        await wait_until(lambda: "new" in watch.current, "new records are accepted again")


@pytest.mark.parametrize("flags", ["", "Kgxe"], ids=["own-channel", "keyspace"])
async def test_keys_deleted_or_overwritten_by_another_program_are_repaired(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
    flags: str,
) -> None:
    server = await make_server("--notify-keyspace-events", flags).start()
    owner, other = await open_registry(server.url), await open_registry(server.url)
    watch = await open_watch(other)
    names = ("deleted", "string", "unlisted", "persisted", "whole")
    for name in names:
        await owner.registry.register(make_instance(name), lease_s=60)
    client = server.client
    await client.delete(f"{ROOT}instance:deleted")
    await client.set(f"{ROOT}instance:string", "a foreign value")
    await client.zrem(f"{ROOT}index", "greeter unlisted")
    await client.persist(f"{ROOT}instance:persisted")
    await wait_until(lambda: owner.count("redis_records_restored") >= 3, "lost records are restored")
    await wait_until(lambda: lists(other, *names), "all records exist")
    await wait_until(lambda: len(watch.current) == len(names), "watchers see all records")
    assert watch.of("whole") == ["created"]
    for key in (f"{ROOT}index", f"{ROOT}service:greeter"):
        await client.delete(key)
        await client.set(key, "a foreign value")
        await wait_until(lambda: lists(other, *names), f"{key} is repaired")

    async def is_found_by_name() -> bool:
        return sorted(instance.id for instance in await other.registry.instances("greeter")) == sorted(names)

    await wait_until(is_found_by_name, "each record is listed under its service")
    assert watch.of("whole") == ["created"]


async def test_deleted_key_is_reported_immediately_with_keyspace_notifications(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    server = await make_server("--notify-keyspace-events", "KA").start()
    dead_owner, other = await open_registry(server.url), await open_registry(server.url)
    watch = await open_watch(other)
    assert other.count_logged("keyspace notifications") == 1
    await dead_owner.registry.register(make_instance(), lease_s=60)
    await dead_owner.registry._monitor.stop()
    await wait_until(lambda: watch.of("1") == ["created"], "the record is seen")
    await server.client.delete(f"{ROOT}instance:1")
    await wait_until(lambda: watch.of("1") == ["created", "deleted"], "the loss is reported")
    assert await server.client.zcard(f"{ROOT}index") == 2, "the index is updated, too"


async def test_disabled_notifications_are_logged_once_and_leases_end_in_time(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    owner, other = await open_registry(), await open_registry()
    watch, second = await open_watch(other), await open_watch(other)
    await redis_server.kill()
    await redis_server.restart()
    await owner.registry._monitor.stop()
    await wait_until(lambda: record_is_restored(owner, make_instance()), "the record is restored")
    began = time.monotonic()
    await wait_until(lambda: watch.of("1") == second.of("1") == ["created", "deleted"], "its lease ends")
    assert 1.0 < time.monotonic() - began < 3.5
    assert other.count_logged("notifications are disabled") == 1


async def record_is_restored(owner: RegistryUnderTest, instance: Instance) -> bool:
    try:
        await owner.registry.register(instance, lease_s=1.5)
    except Unreachable:
        return False
    return True


@pytest.mark.usefixtures("redis_server")
async def test_shortened_lease_ends_earlier(
    open_registry: OpenRegistry, open_watch: OpenWatch, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await open_registry(), await open_registry()
    watch = await open_watch(other)
    await owner.registry.register(make_instance(), lease_s=60)
    await owner.registry.register(make_instance(), lease_s=0.5)
    began = time.monotonic()
    await wait_until(lambda: watch.of("1") == ["created", "deleted"], "the lease ends")
    assert time.monotonic() - began < 2.5


@pytest.mark.usefixtures("redis_server")
async def test_record_deregistered_by_another_process_is_not_restored(
    open_registry: OpenRegistry, open_watch: OpenWatch, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await open_registry(), await open_registry()
    watch = await open_watch(other)
    await owner.registry.register(make_instance(), lease_s=60)
    await other.registry.deregister(make_instance())
    await wait_until(lambda: len(owner.registry._own) == 0, "its owner gives the record up")
    assert await other.registry.instances() == []
    await owner.registry.register(make_instance(), lease_s=60)
    await wait_until(
        lambda: watch.of("1") == ["created", "deleted", "created"], "the record exists after being registered again"
    )
    assert owner.count("redis_records_restored") == 0


async def test_start_raises_unreachable_and_the_registry_works_once_the_server_is_up(
    open_registry: OpenRegistry, make_server: MakeServer, make_instance: MakeInstance
) -> None:
    server = make_server()
    opened = await open_registry(server.url, start=False)
    with pytest.raises(Unreachable) as caught:
        await opened.registry.start()
    assert str(server.port) in caught.value.at
    assert "redis.url" in caught.value.hint
    await server.start()
    await opened.registry.register(make_instance(), lease_s=30)
    assert await opened.registry.instances() == [make_instance()]


async def test_feed_is_closed_when_there_are_no_watches(
    open_registry: OpenRegistry,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("micro_redis_registry.registry.IDLE_FEED_S", 0.0)
    opened = await open_registry()
    await opened.registry.register(make_instance(), lease_s=60)
    watch = await opened.registry.watch()

    async def subscribers() -> int:
        counts: list[Any] = await redis_server.client.pubsub_numsub(f"{ROOT}feed:0")
        return int(counts[0][1])

    assert await subscribers() == 1
    await watch.close()

    async def is_closed() -> bool:
        return await subscribers() == 0

    await wait_until(is_closed, "the feed is closed")
    again = await opened.registry.watch()
    async with asyncio.timeout(10):
        assert (await anext(aiter(again))).instance == make_instance()
