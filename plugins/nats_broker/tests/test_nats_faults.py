"""Servers that crash, do not respond, or are slow, and clusters; without JetStream unless stated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from micro_core.contract import LinkLost, MicroError, Unreachable
from micro_core.testing import free_port

TIMEOUT_S = 15.0


async def test_subscriptions_are_restored_after_a_server_crash(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server()
    publisher, subscriber = await site.broker(server), await site.broker(server)
    plain, grouped, pattern = site.handler(), site.handler(), site.handler()
    await subscriber.subscribe("orders", plain)
    await subscriber.subscribe("orders", grouped, queue="q")
    await subscriber.subscribe("*", pattern)
    await publisher.publish("orders", site.message(1))
    await site.until(lambda: all(each.numbers == [1] for each in (plain, grouped, pattern)))
    server.kill()
    with pytest.raises(Unreachable):
        async with asyncio.timeout(TIMEOUT_S):
            await publisher.publish("orders", site.message(2))
    server.start()
    await site.until_connected(publisher)
    await site.until_connected(subscriber)
    await publisher.publish("orders", site.message(3))
    await site.until(lambda: all(each.numbers == [1, 3] for each in (plain, grouped, pattern)))
    assert site.count(subscriber, "broker_nats_connections_lost") == 1


async def test_publishing_without_a_server_fails_soon_and_stores_nothing(
    site: Any, start_server: Callable[..., Any]
) -> None:
    server = start_server()
    broker, handler = await site.broker(server), site.handler()
    await broker.subscribe("orders", handler)
    server.kill()
    await site.until(lambda: broker._connection.session is None)
    began = time.monotonic()
    for number in range(200):
        with pytest.raises(Unreachable, match="no NATS server"):
            await broker.publish("orders", site.message(number))
    # Only the first publication waits 0.5 s for another server of the cluster.
    assert time.monotonic() - began < 3.0
    server.start()
    await site.until_connected(broker)
    await broker.publish("orders", site.message(1000))
    await site.until(lambda: handler.messages)
    assert handler.numbers == [1000]


async def test_broker_starts_and_subscribes_before_its_server(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server()
    server.kill()
    broker, handler = await site.broker(server, subscribe_timeout_s=0.1), site.handler()
    assert site.count(broker, "broker_nats_started_without_server") == 1
    await broker.subscribe("orders", handler)
    assert site.count(broker, "broker_subscriptions_waiting") == 1
    server.start()
    await site.until_connected(broker)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: handler.messages)


async def test_publications_wait_for_a_server_that_pauses_briefly(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server()
    broker, handler = await site.broker(server, answer_timeout_s=TIMEOUT_S), site.handler()
    impatient_broker = await site.broker(server, answer_timeout_s=0.5, keepalive_s=0.1)
    await broker.subscribe("orders", handler)
    server.pause()
    publications = [asyncio.create_task(broker.publish("orders", site.message(number))) for number in range(5)]
    # A broker with a short timeout disconnects meanwhile.
    await site.until_disconnected(impatient_broker)
    assert not any(task.done() for task in publications)
    server.resume()
    await asyncio.gather(*publications)
    await site.until(lambda: handler.numbers == list(range(5)))
    assert site.count(broker, "broker_nats_connections_lost") == 0


async def test_unresponsive_server_is_disconnected_and_connected_again(
    site: Any, start_server: Callable[..., Any]
) -> None:
    server = start_server()
    options = {"answer_timeout_s": 0.5, "keepalive_s": 0.3, "connect_timeout_s": 0.5}
    broker, subscriber = await site.broker(server, **options), await site.broker(server, **options)
    handler = site.handler()
    await subscriber.subscribe("orders", handler)
    server.pause()
    with pytest.raises(LinkLost):
        await broker.publish("orders", site.message(1))
    # A broker that publishes nothing notices it by its keepalives.
    await site.until(lambda: site.count(subscriber, "broker_nats_connections_lost") == 1)
    await site.until(lambda: isinstance(broker._connection._failure, Unreachable))
    with pytest.raises(Unreachable):
        await broker.publish("orders", site.message(2))
    await site.until_redialled(broker)
    await site.until_redialled(subscriber)
    server.resume()
    await site.until_connected(broker)
    await site.until_connected(subscriber)
    await broker.publish("orders", site.message(3))
    await site.until(lambda: 3 in handler.numbers)
    # Message 1 was sent but not confirmed, so it may have arrived. Message 2 was not sent.
    assert set(handler.numbers) <= {1, 3}


async def test_slow_connection_loses_no_message(
    site: Any, shared_server: Any, slow_proxy: Callable[[Any], Any]
) -> None:
    async with slow_proxy(shared_server) as proxy:
        proxy.delay_s = 0.05
        broker, handler = await site.broker(url=(proxy.url,)), site.handler()
        await broker.subscribe("orders", handler)
        await asyncio.gather(*(broker.publish("orders", site.message(number, bytes(10_000))) for number in range(100)))
        await site.until(lambda: handler.numbers == list(range(100)))
        await broker.close()


async def test_blocked_connection_holds_a_bounded_amount_of_data(
    site: Any, shared_server: Any, slow_proxy: Callable[[Any], Any]
) -> None:
    async with slow_proxy(shared_server) as proxy:
        broker = await site.broker(url=(proxy.url,), answer_timeout_s=1.0, connect_timeout_s=0.5)
        proxy.open.clear()
        # 200 MB are published. The connection buffers a bounded amount, and the rest is refused.
        results = await asyncio.gather(
            *(broker.publish("orders", site.message(number, bytes(1_000_000))) for number in range(200)),
            return_exceptions=True,
        )
        assert all(isinstance(each, MicroError) for each in results)
        assert sum("too much data is waiting" in str(each) for each in results) > 150
        proxy.open.set()
        await site.until_connected(broker)
        await broker.close()


async def test_close_does_not_wait_for_a_blocked_connection(
    site: Any, shared_server: Any, slow_proxy: Callable[[Any], Any]
) -> None:
    async with slow_proxy(shared_server) as proxy:
        broker = await site.broker(url=(proxy.url,), answer_timeout_s=10.0, drain_timeout_s=0.2)
        await broker.subscribe("orders", site.handler())
        proxy.open.clear()
        session = broker._connection.session
        publications = [asyncio.create_task(broker.publish("a", site.message(n, bytes(1_000_000)))) for n in range(8)]
        await site.until(lambda: len(session._sent_confirmations) + len(session._pending_confirmations) == 8)
        async with asyncio.timeout(5.0):
            await broker.close()
        results = await asyncio.gather(*publications, return_exceptions=True)
        assert all(isinstance(each, LinkLost) for each in results)


# ---------------------------------------------------------------------------------------- cluster


@pytest.fixture
def cluster(tmp_path: Path, shared_server: Any) -> Any:
    """A cluster of three servers, in which JetStream has elected a leader."""
    cluster_ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in cluster_ports)
    servers = [
        type(shared_server)(
            tmp_path,
            name=f"n{port}",
            jetstream=True,
            config=f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}\n',
        )
        for port in cluster_ports
    ]
    for server in servers:
        server.start()
    for server in servers:
        server.wait_until(server.is_healthy)
    yield servers
    for server in servers:
        server.kill()


def port_of_connected_server(broker: Any) -> int | None:
    session = broker._connection.session
    return None if session is None else session.server.port


async def test_next_server_of_a_cluster_replaces_a_crashed_one(site: Any, cluster: Any) -> None:
    subscriber, publisher = await site.broker(*cluster), await site.broker(cluster[0])
    handler = site.handler()
    await subscriber.subscribe("orders", handler)
    # The first server announces the others.
    await site.until(lambda: len(publisher._connection.session.discovered_servers()) >= 2)
    publisher._connection._pool.connected(
        publisher._connection.session.server, publisher._connection.session.discovered_servers()
    )
    sent, failed = [], 0
    for number in range(300):
        if number == 100:
            cluster[0].kill()
        if number == 101:
            # Messages published while the subscriber has no connection are lost.
            await site.until(lambda: port_of_connected_server(subscriber) not in (None, cluster[0].port))
        try:
            await publisher.publish("orders", site.message(number))
            sent.append(number)
        except Unreachable:
            failed += 1
    # At most the publications around the crash fail.
    assert failed <= 2
    assert port_of_connected_server(publisher) != cluster[0].port
    await site.until(lambda: handler.numbers[-1:] == sent[-1:])
    assert handler.numbers == sorted(set(handler.numbers))
    # Only messages in transit through the crashed server are lost.
    assert len(set(sent) - set(handler.numbers)) <= 50


async def test_three_replicas_lose_no_message_when_a_server_crashes(site: Any, cluster: Any) -> None:
    # A delivery that the crashed server did not complete is repeated after `ack_wait_s`.
    options = {"durable": True, "replicas": 3, "max_bytes": 10_000_000, "publish_timeout_s": 30.0, "ack_wait_s": 1.0}
    subscriber, publisher = await site.broker(*cluster, **options), await site.broker(*cluster, **options)
    handler = site.handler()
    await site.until_connected(subscriber)
    await site.until_connected(publisher)
    await subscriber.subscribe("orders", handler, queue="q")
    sent = []
    for number in range(60):
        if number == 20:
            cluster[0].kill()
        try:
            await publisher.publish("orders", site.message(number))
            sent.append(number)
        except Unreachable:
            continue
    assert len(sent) >= 55
    await site.until(lambda: set(sent) <= set(handler.numbers), timeout_s=2 * TIMEOUT_S)
