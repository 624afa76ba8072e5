"""Server layouts: Sentinel with a failover, a cluster, databases, a Unix socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from micro_core.contract import Instance, Unreachable
from micro_core.testing import free_port

if TYPE_CHECKING:
    from plugins.redis_registry.tests.conftest import (
        MakeServer,
        OpenRegistry,
        OpenWatch,
        RedisServer,
        RegistryUnderTest,
    )

MakeInstance = Callable[..., Instance]
Until = Callable[..., Awaitable[None]]

SENTINEL = """
port {port}
bind 127.0.0.1
sentinel monitor registry 127.0.0.1 {master} 1
sentinel down-after-milliseconds registry 500
sentinel failover-timeout registry 3000
"""


async def registered(opened: RegistryUnderTest, instance: Instance) -> bool:
    try:
        await opened.registry.register(instance, lease_s=60)
    except Unreachable:
        return False
    return True


async def start_sentinel(make_server: MakeServer, master: RedisServer) -> RedisServer:
    sentinel = make_server("sentinel.conf", "--sentinel")
    sentinel.directory.mkdir()
    (sentinel.directory / "sentinel.conf").write_text(SENTINEL.format(port=sentinel.port, master=master.port))
    return await sentinel.start()


async def test_watchers_see_no_event_during_a_sentinel_failover(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    master = await make_server().start()
    replica = await make_server("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0").start()
    sentinel = await start_sentinel(make_server, master)

    async def is_ready() -> bool:
        found: list[dict[str, Any]] = await sentinel.client.sentinel_slaves("registry")
        state = await replica.client.info("replication")
        return len(found) == 1 and state["master_link_status"] == "up"

    await wait_until(is_ready, "the sentinel has found master and replica")
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/registry/0"
    owner, other = await open_registry(url), await open_registry(url)
    watch = await open_watch(other)
    await owner.registry.register(make_instance("1"), lease_s=60)
    await wait_until(lambda: watch.of("1") == ["created"], "the record is seen")
    await owner.registry.register(make_instance("2"), lease_s=60)
    await wait_until(lambda: watch.of("2") == ["created"], "the record is seen")
    await master.kill()
    await wait_until(lambda: registered(owner, make_instance("3")), "the replica is the new master", 30.0)
    await wait_until(lambda: watch.of("3") == ["created"], "the watch continues")

    async def all_exist() -> bool:
        return sorted(instance.id for instance in await other.registry.instances()) == ["1", "2", "3"]

    await wait_until(all_exist, "all records exist")
    assert watch.of("1") == watch.of("2") == ["created"]


async def test_unknown_master_name_is_reported(open_registry: OpenRegistry, make_server: MakeServer) -> None:
    master = await make_server().start()
    sentinel = await start_sentinel(make_server, master)
    opened = await open_registry(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", start=False)
    with pytest.raises(Unreachable) as caught:
        await opened.registry.start()
    assert "name of the master" in caught.value.hint


BUS_PORT_OFFSET = 10_000
"""A member of a cluster also listens on its port plus this number."""

MIN_EPHEMERAL_PORT = 32_768
"""Linux assigns ports from this one on to outgoing connections, which then block a server that restarts."""


def cluster_port() -> int:
    """Return a free port whose bus port is free and not ephemeral."""
    while True:
        port = free_port()
        if port + BUS_PORT_OFFSET < MIN_EPHEMERAL_PORT:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port + BUS_PORT_OFFSET))
                return port


async def start_cluster(make_server: MakeServer, wait_until: Until) -> list[RedisServer]:
    settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "yes")
    nodes = [await make_server(*settings, port=cluster_port()).start() for _ in range(3)]
    slots = (range(5461), range(5461, 10923), range(10923, 16384))
    for node, own in zip(nodes, slots, strict=True):
        await node.command("CLUSTER ADDSLOTS", *own)
        await node.command("CLUSTER MEET", "127.0.0.1", nodes[0].port)

    async def is_ready() -> bool:
        states = [await node.command("CLUSTER INFO") for node in nodes]
        return all(state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "3" for state in states)

    await wait_until(is_ready, "the cluster is ready")
    return nodes


async def holder_of(nodes: list[RedisServer]) -> RedisServer:
    """Return the node that stores the keys of the registry."""
    for node in nodes:
        try:
            if await node.client.exists("micro:{go.micro/eu}:index"):
                return node
        except RedisError:
            continue  # MOVED
    pytest.fail("no node has the keys")


async def test_cluster_works_like_a_single_server_and_its_node_may_restart(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    make_server: MakeServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    nodes = await start_cluster(make_server, wait_until)
    for node in nodes:
        await node.client.config_set("notify-keyspace-events", "Kgxe")
    url = f"redis+cluster://127.0.0.1:{nodes[2].port},127.0.0.1:{nodes[0].port}"
    owner, other = await open_registry(url), await open_registry(url)
    away = await open_registry(url, site="us")
    watch = await open_watch(other)
    assert other.count_logged("keyspace notifications are enabled") == 1
    await away.registry.register(make_instance("away"), lease_s=60)
    for name in ("1", "2"):
        await owner.registry.register(make_instance(name), lease_s=60)
    await owner.registry.register(make_instance("short"), lease_s=0.5)
    await wait_until(lambda: watch.of("short") == ["created", "deleted"], "leases end")
    assert len(await other.registry.instances()) == 2
    holder = await holder_of(nodes)
    await holder.kill()
    with pytest.raises(Unreachable):
        await other.registry.instances()
    await holder.restart()
    await wait_until(lambda: registered(owner, make_instance("3")), "the node is found again", 30.0)
    await wait_until(lambda: watch.of("3") == ["created"], "the watch continues")
    assert watch.of("1") == watch.of("2") == ["created"]
    await owner.registry.deregister(make_instance("1"))
    await wait_until(lambda: watch.of("1") == ["created", "deleted"], "a deregistration is reported")


async def test_databases_and_prefixes_are_isolated(
    open_registry: OpenRegistry,
    open_watch: OpenWatch,
    redis_server: RedisServer,
    make_instance: MakeInstance,
    wait_until: Until,
) -> None:
    port = redis_server.port
    first, second = (
        await open_registry(f"redis://127.0.0.1:{port}/0"),
        await open_registry(f"redis://127.0.0.1:{port}/5"),
    )
    third = await open_registry(prefix="other")
    shared = [await open_registry(namespace="shared", site=site) for site in ("eu", "us")]
    watches = [await open_watch(opened) for opened in (first, second, third, shared[1])]
    for number, opened in enumerate((first, second, third, shared[0])):
        await opened.registry.register(make_instance(str(number)), lease_s=60)
    for number, watch in enumerate(watches):
        await wait_until(lambda watch=watch: bool(watch.events), "each watch receives its own events")
        assert watch.events == [("created", str(number))]
    assert await redis_server.client.dbsize() == 9


async def test_unix_socket_works(
    open_registry: OpenRegistry, make_server: MakeServer, make_instance: MakeInstance, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    await make_server("--unixsocket", str(path)).start()
    opened = await open_registry(f"unix://{path}?db=2")
    await opened.registry.register(make_instance(), lease_s=60)
    assert await opened.registry.instances() == [make_instance()]
    missing = await open_registry(f"unix://{path}.missing", start=False)
    with pytest.raises(Unreachable):
        await missing.registry.start()
