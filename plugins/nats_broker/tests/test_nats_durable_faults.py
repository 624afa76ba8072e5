"""The broker with JetStream while servers crash, stop responding or lose their store, and the limits of its streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats
import pytest

from micro_core.contract import ConfigError, Overloaded, TooLarge, Unreachable

TIMEOUT_S = 15.0


# ------------------------------------------------------------------------------------------ faults


async def test_server_restart_loses_no_message(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(jetstream=True)
    publisher, subscriber = await site.durable_broker(server), await site.durable_broker(server)
    plain, grouped = site.handler(), site.handler()
    await subscriber.subscribe("orders", plain)
    await subscriber.subscribe("orders", grouped, queue="q")
    sent = []

    async def publish() -> None:
        for number in range(150):
            message = site.message(number)
            while True:
                try:
                    await publisher.publish("orders", message)
                    break
                except Unreachable:
                    # Publish the same message again: the stream stores each id once.
                    await site.until_connected(publisher)
            sent.append(number)

    publishing = asyncio.create_task(publish())
    await site.until(lambda: len(sent) > 30)
    server.kill()
    await site.until_disconnected(publisher)
    await site.until_disconnected(subscriber)
    server.start()
    await publishing
    await site.until(lambda: set(plain.numbers) == set(grouped.numbers) == set(range(150)))
    # The subscriber remembers handled messages, so none is handled twice.
    assert len(plain.numbers) == len(grouped.numbers) == 150


async def test_server_restart_without_its_store_loses_only_stored_messages(
    site: Any, start_server: Callable[..., Any]
) -> None:
    server = start_server(jetstream=True)
    publisher, subscriber, late = (
        await site.durable_broker(server),
        await site.durable_broker(server),
        await site.durable_broker(server, subscribe_timeout_s=5.0),
    )
    plain, grouped = site.handler(), site.handler()
    await subscriber.subscribe("orders", plain)
    await subscriber.subscribe("orders", grouped, queue="q")
    for number in range(5):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: plain.numbers == grouped.numbers == list(range(5)))
    server.kill()
    server.wipe()
    server.start()
    # If the publisher reconnects before the subscriber, the subscriber receives its messages later.
    await site.until_connected(publisher)
    for number in range(5, 10):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: plain.numbers == grouped.numbers == list(range(10)))
    assert site.count(subscriber, "broker_nats_streams_lost") + site.count(publisher, "broker_nats_streams_lost") >= 1
    # A new subscription still starts now and not at the beginning of the stream.
    await site.until_connected(late)
    late_handler = site.handler()
    await late.subscribe("orders", late_handler)
    await publisher.publish("orders", site.message(10))
    await site.until(lambda: late_handler.messages)
    assert late_handler.numbers == [10]


async def test_deleted_stream_or_consumer_is_created_again(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(jetstream=True)
    broker, plain, grouped = await site.durable_broker(server), site.handler(), site.handler()
    await broker.subscribe("orders", plain)
    await broker.subscribe("orders", grouped, queue="q")
    await broker.publish("orders", site.message(1))
    await site.until(lambda: plain.numbers == grouped.numbers == [1])
    client = await nats.connect(server.url)
    manager = client.jetstream()
    for consumer in await manager.consumers_info(broker._subjects.stream):
        await manager.delete_consumer(broker._subjects.stream, consumer.name)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: plain.numbers == grouped.numbers == [1, 2])
    await manager.delete_stream(broker._subjects.stream)
    await broker.publish("orders", site.message(3))
    await site.until(lambda: plain.numbers == grouped.numbers == [1, 2, 3])
    await client.close()


async def test_unresponsive_server_loses_no_message(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(jetstream=True)
    options = {
        "answer_timeout_s": 0.5,
        "keepalive_s": 0.3,
        "connect_timeout_s": 0.5,
        "publish_timeout_s": 0.8,
    }
    broker, handler = await site.durable_broker(server, **options), site.handler()
    await broker.subscribe("orders", handler)
    await broker.publish("orders", site.message(1))
    # Otherwise its delivery may be lost, and its redelivery may arrive after message 2.
    await site.until(lambda: handler.numbers == [1])
    message = site.message(2)
    server.pause()
    with pytest.raises(Unreachable):
        await broker.publish("orders", message)
    await site.until_disconnected(broker)
    await site.until_redialled(broker)
    server.resume()
    await site.until_connected(broker)
    await broker.publish("orders", message)
    # Messages arrive in order: a second copy of message 2 in the stream would arrive before message 3.
    await broker.publish("orders", site.message(3))
    await site.until(lambda: 3 in handler.numbers)
    assert handler.numbers == [1, 2, 3]


async def test_unconfirmed_publication_is_retried_and_stored_once(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(jetstream=True)
    broker, handler = await site.durable_broker(server, publish_timeout_s=TIMEOUT_S), site.handler()
    await broker.subscribe("orders", handler)
    publishing = [asyncio.create_task(broker.publish("orders", site.message(number))) for number in range(50)]
    await asyncio.sleep(0)
    server.kill()
    server.start()
    await asyncio.gather(*publishing)
    await site.until(lambda: set(handler.numbers) == set(range(50)))
    assert len(handler.numbers) == 50


async def test_durable_without_jetstream_raises_unreachable(site: Any, start_server: Callable[..., Any]) -> None:
    broker = await site.durable_broker(start_server(), subscribe_timeout_s=0.5)
    with pytest.raises(Unreachable, match="no JetStream"):
        await broker.publish("orders", site.message(1))


# ------------------------------------------------------------------------------------------ limits


async def test_stream_that_exceeds_the_store_fails_the_start(site: Any, shared_server: Any) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        await site.broker(shared_server, durable=True, max_bytes=10**12)


async def test_message_that_the_stream_refuses_raises_the_reason(site: Any, shared_server: Any) -> None:
    broker = await site.durable_broker(shared_server)
    with pytest.raises(TooLarge):
        await broker.publish("orders", site.message(1, bytes(5_000_000)))
    client = await nats.connect(shared_server.url)
    manager = client.jetstream()
    config = (await manager.stream_info(broker._subjects.stream)).config
    await manager.update_stream(config.evolve(discard="new", max_msgs=1))
    await broker.publish("orders", site.message(2))
    with pytest.raises(Overloaded, match="maximum messages"):
        await broker.publish("orders", site.message(3))
    await client.close()


async def test_limits_of_an_existing_stream_are_kept_and_a_difference_is_logged(
    site: Any, shared_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await site.durable_broker(shared_server)
    other = await site.durable_broker(shared_server, max_bytes=1_000_000)
    assert "limits of the existing stream differ" in caplog.text
    assert (await site.stream_info(shared_server, other)).config.max_bytes == 8_000_000


async def test_slow_subscriber_loses_no_message(site: Any, shared_server: Any) -> None:
    publisher, slow = await site.durable_broker(shared_server), site.handler()
    slow.gate.clear()
    subscriber = await site.durable_broker(shared_server, ack_wait_s=30.0, max_waiting=5)
    await subscriber.subscribe("orders", slow)
    for number in range(200):
        await publisher.publish("orders", site.message(number))
    assert subscriber._connection.session is not None
    slow.gate.set()
    await site.until(lambda: slow.numbers == list(range(200)))


async def test_closed_subscriptions_leave_no_consumer_at_the_server(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
    subscriptions = [await broker.subscribe("orders", handler) for _ in range(3)]
    assert (await site.stream_info(shared_server, broker)).state.consumer_count == 3
    await subscriptions[1].close()
    await broker.subscribe("orders", handler)
    for each in subscriptions:
        await each.close()
    assert (await site.stream_info(shared_server, broker)).state.consumer_count == 1
