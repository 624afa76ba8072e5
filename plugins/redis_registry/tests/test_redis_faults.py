"""What is lost when Redis is killed, emptied, stopped, slow, full or written to by strangers: the README's fault table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from micro_core.contract import Instance, Overloaded, Unreachable

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import MakeRelay, MakeServer, Open, Opened, RedisServer, Watch

STILL_S = 10.0
"""How long the server stands still in the longest test: several times `timeout_s`, and most of a lease."""
ROOT = "micro:{go.micro/eu}:"
MakeInstance = Callable[..., Instance]
Until = Callable[..., Awaitable[None]]


@asynccontextmanager
async def renewing(one: Opened, instance: Instance, lease_s: float) -> AsyncIterator[None]:
    """As a service does: at a third of the lease, and again soon where that fails."""

    async def renew() -> None:
        while True:
            try:
                await one.registry.register(instance, lease_s=lease_s)
            except Unreachable:
                await asyncio.sleep(lease_s / 10)
            else:
                await asyncio.sleep(lease_s / 3)

    await one.registry.register(instance, lease_s=lease_s)
    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def lists(one: Opened, *ids: str) -> bool:
    try:
        return sorted(instance.id for instance in await one.registry.instances()) == sorted(ids)
    except Unreachable:
        return False


@pytest.mark.parametrize("empty", [False, True], ids=["same-data", "empty"])
async def test_a_killed_server_that_is_back_costs_watchers_no_event(
    opened: Open,
    seen: Watch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
    empty: bool,
) -> None:
    owner, other = await opened(), await opened()
    watch = await seen(other)
    async with renewing(owner, make_instance("1"), 15), renewing(owner, make_instance("2"), 15):
        await wait_until(lambda: len(watch.standing) == 2, "both are seen")
        await redis_server.kill()
        with pytest.raises(Unreachable) as caught:
            await other.registry.instances()
        assert caught.value.hint
        with pytest.raises(Unreachable):
            await other.registry.watch()
        await (redis_server.wipe() if empty else redis_server.restart())
        await wait_until(lambda: lists(other, "1", "2"), "the records stand again")
        await owner.registry.register(make_instance("3"), lease_s=30)
        await wait_until(lambda: "3" in watch.standing, "the watch goes on")
        # Where all was lost: longer than what the server lost is held for its owners.
        quiet_until = time.monotonic() + (4.5 if empty else 0)
        await wait_until(lambda: time.monotonic() > quiet_until, "quiet")
    assert watch.of("1") == watch.of("2") == ["created"]
    assert owner.said("redis is away") == owner.said("redis is back") <= 1, "told once, however long it lasts"


async def test_what_nobody_restores_after_the_loss_of_all_data_is_deleted(
    opened: Open, seen: Watch, redis_server: RedisServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, gone, other = await opened(), await opened(), await opened()
    watch = await seen(other)
    await owner.registry.register(make_instance("kept"), lease_s=60)
    await gone.registry.register(make_instance("gone"), lease_s=60)
    await wait_until(lambda: len(watch.standing) == 2, "both are seen")
    await gone.registry._keeper.stop()  # as if its process were killed
    await redis_server.client.flushall()
    await wait_until(lambda: watch.of("gone") == ["created", "deleted"], "what was lost is given up")
    assert watch.of("kept") == ["created"], "its owner restored it, and nobody heard"
    assert owner.counted("redis_records_restored") == 1
    assert await lists(other, "kept")


async def test_a_server_that_stood_still_for_long_goes_on_where_it_was(
    opened: Open, seen: Watch, redis_server: RedisServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await opened(timeout_s=1.0), await opened(timeout_s=1.0)
    watch = await seen(other)
    async with renewing(owner, make_instance("1"), STILL_S + 2):
        await wait_until(lambda: len(watch.standing) == 1, "it is seen")
        await redis_server.pause()
        began = time.monotonic()
        while time.monotonic() - began < STILL_S:
            asked_at = time.monotonic()
            with pytest.raises(Unreachable):
                await other.registry.instances()
            assert time.monotonic() - asked_at < 4, "nobody waits longer than timeout_s, and a busy machine"
        await redis_server.resume()
        await wait_until(lambda: lists(other, "1"), "it stands")
        await owner.registry.register(make_instance("2"), lease_s=30)
        await wait_until(lambda: "2" in watch.standing, "the watch goes on")
    assert watch.of("1") == ["created"]


async def test_what_was_sent_in_vain_is_not_done_later(
    opened: Open, redis_server: RedisServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await opened(timeout_s=0.3), await opened()
    await owner.registry.register(make_instance(), lease_s=60)
    await redis_server.pause()
    with pytest.raises(Unreachable):
        await owner.registry.register(make_instance(version="late"), lease_s=60)
    with pytest.raises(Unreachable):
        await owner.registry.register(make_instance("late"), lease_s=60)
    with pytest.raises(Unreachable):
        await owner.registry.deregister(make_instance())
    await redis_server.resume()
    await wait_until(lambda: lists(other, "1"), "all that stands is what stood")
    (record,) = await other.registry.instances()
    assert record.version == "1.0"


async def test_a_renewal_given_up_half_way_does_not_outlive_the_withdrawal(
    opened: Open, make_relay: MakeRelay, redis_server: RedisServer, make_instance: MakeInstance
) -> None:
    relay = await make_relay(redis_server.port, delay_s=0.05)
    owner, other = await opened(f"redis://127.0.0.1:{relay.port}"), await opened()
    await owner.registry.register(make_instance(), lease_s=60)
    for _ in range(5):
        renewal = asyncio.create_task(owner.registry.register(make_instance(), lease_s=60))
        await asyncio.sleep(0.02)
        renewal.cancel()
        await owner.registry.deregister(make_instance())
        assert await other.registry.instances() == []


async def test_a_slow_server_is_slow_and_nothing_worse(
    opened: Open,
    seen: Watch,
    make_relay: MakeRelay,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    relay = await make_relay(redis_server.port, delay_s=0.1)
    url = f"redis://127.0.0.1:{relay.port}"
    owner, other = await opened(url), await opened(url)
    watch = await seen(other)
    instances = [make_instance(str(number)) for number in range(10)]
    await asyncio.gather(*(owner.registry.register(one, lease_s=60) for one in instances))
    await wait_until(lambda: len(watch.standing) == 10, "all are seen")
    assert await lists(other, *watch.standing)
    await owner.registry.register(make_instance("short"), lease_s=1.5)
    await wait_until(lambda: watch.of("short") == ["created", "deleted"], "its lease ends all the same")


async def test_a_server_with_full_memory_renews_and_withdraws_and_says_why_it_takes_nothing_new(
    opened: Open, seen: Watch, make_server: MakeServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    server = await make_server("--maxmemory-policy", "noeviction").start()
    owner, other = await opened(server.url), await opened(server.url)
    watch = await seen(other)
    for name in ("renewed", "withdrawn", "dying"):
        await owner.registry.register(make_instance(name), lease_s=1.5 if name != "withdrawn" else 60)
    await wait_until(lambda: len(watch.standing) == 3, "all are seen")
    await server.client.config_set("maxmemory", "1")
    with pytest.raises(Overloaded) as caught:
        await owner.registry.register(make_instance("new"), lease_s=30)
    assert "maxmemory" in caught.value.hint
    with pytest.raises(Overloaded):
        await owner.registry.register(make_instance("renewed", version="2.0"), lease_s=30)
    async with renewing(owner, make_instance("renewed"), 1.5):
        await owner.registry.deregister(make_instance("withdrawn"))
        await wait_until(lambda: list(watch.standing) == ["renewed"], "withdrawals and ends of leases are told")
        lasts_until = time.monotonic() + 2
        await wait_until(lambda: time.monotonic() > lasts_until, "more than a lease")
        assert watch.of("renewed") == ["created"]
        assert await lists(other, "renewed")
        await server.client.config_set("maxmemory", "0")
        await owner.registry.register(make_instance("new"), lease_s=30)
        await wait_until(lambda: "new" in watch.standing, "what is new is taken again")


@pytest.mark.parametrize("flags", ["", "Kgxe"], ids=["own-channel", "keyspace"])
async def test_keys_that_a_stranger_deletes_or_overwrites_are_put_right(
    opened: Open, seen: Watch, make_server: MakeServer, make_instance: MakeInstance, wait_until: Until, flags: str
) -> None:
    server = await make_server("--notify-keyspace-events", flags).start()
    owner, other = await opened(server.url), await opened(server.url)
    watch = await seen(other)
    names = ("deleted", "string", "unlisted", "persisted", "whole")
    for name in names:
        await owner.registry.register(make_instance(name), lease_s=60)
    client = server.client
    await client.delete(f"{ROOT}instance:deleted")
    await client.set(f"{ROOT}instance:string", "a stranger's")
    await client.zrem(f"{ROOT}index", "greeter unlisted")
    await client.persist(f"{ROOT}instance:persisted")
    await wait_until(lambda: owner.counted("redis_records_restored") >= 3, "what was lost is restored")
    await wait_until(lambda: lists(other, *names), "all stand")
    await wait_until(lambda: len(watch.standing) == len(names), "and watchers know")
    assert watch.of("whole") == ["created"]
    for key in (f"{ROOT}index", f"{ROOT}service:greeter"):
        await client.delete(key)
        await client.set(key, "a stranger's")
        await wait_until(lambda: lists(other, *names), f"{key} is put right")

    async def is_found_by_name() -> bool:
        return sorted(one.id for one in await other.registry.instances("greeter")) == sorted(names)

    await wait_until(is_found_by_name, "each is found by its service's name")
    assert watch.of("whole") == ["created"]


async def test_a_key_deleted_behind_our_back_is_told_at_once_by_keyspace_notifications(
    opened: Open, seen: Watch, make_server: MakeServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    server = await make_server("--notify-keyspace-events", "KA").start()
    gone, other = await opened(server.url), await opened(server.url)
    watch = await seen(other)
    assert other.said("keyspace notifications") == 1
    await gone.registry.register(make_instance(), lease_s=60)
    await gone.registry._keeper.stop()
    await wait_until(lambda: watch.of("1") == ["created"], "it is seen")
    await server.client.delete(f"{ROOT}instance:1")
    await wait_until(lambda: watch.of("1") == ["created", "deleted"], "it is told")
    assert await server.client.zcard(f"{ROOT}index") == 2, "the index forgets it, too"


async def test_without_notifications_that_is_said_once_and_leases_end_in_time(
    opened: Open, seen: Watch, redis_server: RedisServer, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await opened(), await opened()
    watch, second = await seen(other), await seen(other)
    await redis_server.kill()
    await redis_server.restart()
    await owner.registry._keeper.stop()
    await wait_until(lambda: owner_is_back(owner, make_instance()), "it is back")
    began = time.monotonic()
    await wait_until(lambda: watch.of("1") == second.of("1") == ["created", "deleted"], "its lease ends")
    assert 1.0 < time.monotonic() - began < 3.5
    assert other.said("notifications are off") == 1


async def owner_is_back(owner: Opened, instance: Instance) -> bool:
    try:
        await owner.registry.register(instance, lease_s=1.5)
    except Unreachable:
        return False
    return True


@pytest.mark.usefixtures("redis_server")
async def test_a_lease_made_shorter_ends_earlier(
    opened: Open, seen: Watch, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await opened(), await opened()
    watch = await seen(other)
    await owner.registry.register(make_instance(), lease_s=60)
    await owner.registry.register(make_instance(), lease_s=0.5)
    began = time.monotonic()
    await wait_until(lambda: watch.of("1") == ["created", "deleted"], "it ends")
    assert time.monotonic() - began < 2.5


@pytest.mark.usefixtures("redis_server")
async def test_what_another_removed_on_purpose_is_not_restored(
    opened: Open, seen: Watch, make_instance: MakeInstance, wait_until: Until
) -> None:
    owner, other = await opened(), await opened()
    watch = await seen(other)
    await owner.registry.register(make_instance(), lease_s=60)
    await other.registry.deregister(make_instance())
    await wait_until(lambda: len(owner.registry._own) == 0, "its owner sees that it was meant")
    assert await other.registry.instances() == []
    await owner.registry.register(make_instance(), lease_s=60)
    await wait_until(lambda: watch.of("1") == ["created", "deleted", "created"], "registered again, it is back")
    assert owner.counted("redis_records_restored") == 0


async def test_start_says_that_the_server_is_away_and_the_object_works_when_it_is_there(
    opened: Open, make_server: MakeServer, make_instance: MakeInstance
) -> None:
    server = make_server()
    one = await opened(server.url, start=False)
    with pytest.raises(Unreachable) as caught:
        await one.registry.start()
    assert str(server.port) in caught.value.at
    assert "redis.url" in caught.value.hint
    await server.start()
    await one.registry.register(make_instance(), lease_s=30)
    assert await one.registry.instances() == [make_instance()]


async def test_the_feed_is_given_up_when_nobody_watches(
    opened: Open,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("micro_redis_registry.registry.UNWATCHED_S", 0.0)
    one = await opened()
    await one.registry.register(make_instance(), lease_s=60)
    watch = await one.registry.watch()

    async def subscribers() -> int:
        counted: list[Any] = await redis_server.client.pubsub_numsub(f"{ROOT}feed:0")
        return int(counted[0][1])

    assert await subscribers() == 1
    await watch.close()

    async def is_given_up() -> bool:
        return await subscribers() == 0

    await wait_until(is_given_up, "the feed is given up")
    again = await one.registry.watch()
    async with asyncio.timeout(10):
        assert (await anext(aiter(again))).instance == make_instance()
