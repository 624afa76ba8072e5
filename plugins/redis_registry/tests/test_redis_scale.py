"""Thousands of instances are listed, watched and expired without blocking the event loop or the server."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from micro_redis_registry.encoding import encode_record
from micro_redis_registry.namespace import make_namespace
from micro_redis_registry.scripts import REGISTER

from micro_core.contract import Instance

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import MakeServer, OpenRegistry, OpenWatch, RedisServer

COUNT = 5_000
BY_DRIVER = 200
"""Number of records registered by this process; the others are registered directly on the server."""
MAX_BLOCKED_S = 0.2
"""Longest time for which the loop may be blocked, in seconds of CPU time, which excludes other processes."""
NAMESPACE = make_namespace(prefix="micro", namespace="", network="go.micro", site="eu", database=0)

EXPIRE_ALL = """
for number = 0, tonumber(ARGV[3]) - 1 do
  redis.call('PEXPIREAT', ARGV[1] .. 'instance:' .. number, ARGV[2])
  redis.call('ZADD', KEYS[1], ARGV[2], 'service-' .. number % 50 .. ' ' .. number)
end
"""
"""Script that ends all leases at the same moment, as if all owners had renewed at the same time and then crashed."""


async def register_elsewhere(server: RedisServer, instances: list[Instance]) -> None:
    """Register records in batches with the script of the driver."""
    sha = await server.client.script_load(REGISTER.source)
    assert sha == REGISTER.digest
    for start in range(0, len(instances), 250):
        pipe = server.client.pipeline(transaction=False)
        for instance in instances[start : start + 250]:
            keys = (NAMESPACE.index, NAMESPACE.record(instance.id), NAMESPACE.service(instance.service))
            arguments = (
                NAMESPACE.root,
                NAMESPACE.feed,
                str(2**53),
                instance.id,
                instance.service,
                encode_record(instance),
                "x",
            )
            pipe.evalsha(sha, len(keys), *keys, *arguments, "300000", "0")
        assert all(result[1] == b"put" for result in await pipe.execute())


@asynccontextmanager
async def measured(longest: list[float]) -> AsyncIterator[None]:
    """Record the longest blocking times of the loop in seconds of CPU time."""

    async def beat() -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(0.01)
            longest.append(time.process_time() - began)

    # Collect the garbage of earlier tests first, since that alone takes a fifth of a second.
    gc.collect()
    gc.freeze()
    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        gc.unfreeze()


async def test_five_thousand_instances_do_not_block_loop_or_server(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: Callable[..., Instance],
    wait_until: Callable[..., Awaitable[None]],
) -> None:
    server = await make_server().start()
    owner, reader = await open_registry(server.url), await open_registry(server.url)
    instances = [make_instance(str(number), service=f"service-{number % 50}") for number in range(COUNT)]
    await register_elsewhere(server, instances[BY_DRIVER : COUNT // 2])
    duration_s: dict[str, float] = {}
    longest: list[float] = []

    watch = await open_watch(reader)
    await register_elsewhere(server, instances[COUNT // 2 :])
    await asyncio.gather(*(owner.registry.register(instance, lease_s=300) for instance in instances[:BY_DRIVER]))
    await wait_until(lambda: len(watch.current) == COUNT, "all records are seen")
    assert list(watch.current.values()).count(instances[4_000]) == 1

    async with measured(longest):
        began = time.monotonic()
        assert len(await reader.registry.instances()) == COUNT
        duration_s["list all"] = time.monotonic() - began
        began = time.monotonic()
        assert len(await reader.registry.instances("service-7")) == COUNT // 50
        duration_s["list one service"] = time.monotonic() - began
        began = time.monotonic()
        late_watch = await open_watch(await open_registry(server.url))
        await wait_until(lambda: len(late_watch.current) == COUNT, "a new watch sees all records")
        duration_s["first watch"] = time.monotonic() - began

    await owner.registry._monitor.stop()
    owner.registry._own._records.clear()
    ends_ms = int(time.time() * 1000) + 1_000
    await server.client.eval(EXPIRE_ALL, 1, NAMESPACE.index, NAMESPACE.root, str(ends_ms), str(COUNT))
    async with measured(longest):
        for each in (watch, late_watch):
            await wait_until(lambda each=each: not each.current, "all records have expired and watchers were notified")
    duration_s["expire"] = time.time() - ends_ms / 1000

    assert max(longest) < MAX_BLOCKED_S
    assert duration_s["expire"] < 10
    stats = await server.client.info("commandstats")
    assert not {f"cmdstat_{command}" for command in ("keys", "scan", "smembers", "zrange")} & stats.keys()
    # Use the average, since a busy machine may interrupt the server during a single script.
    duration_s["a script"] = stats["cmdstat_evalsha"]["usec_per_call"] / 1e6
    assert duration_s["a script"] < 0.005, "no script blocks the server for long"
    assert await server.client.zcard(NAMESPACE.index) == 2, "the index contains only the special members"
    print({key: round(value, 5) for key, value in duration_s.items()}, "longest blocked", round(max(longest), 3))  # noqa: T201
