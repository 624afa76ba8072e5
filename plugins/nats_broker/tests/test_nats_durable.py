"""The broker with JetStream, with real servers that crash and restart, with and without their store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats
import pytest
from micro_nats_broker.subjects import group_consumer
from nats.js.api import ConsumerConfig

from micro_core.contract import ConfigError, Message, OptionError, Overloaded, TooLarge, Unreachable

TIMEOUT_S = 15.0
DURABLE: dict[str, Any] = {
    "durable": True,
    "max_bytes": 8_000_000,
    "ack_wait_s": 1.0,
    "redelivery_delay_s": 0.02,
    "keep_subscriber_s": 30.0,
}


async def deliveries(server: Any, broker: Any, queue: str) -> int:
    """Return how often messages of a group were delivered, once each of them is acknowledged or terminated."""
    client = await nats.connect(server.url)
    manager = client.jetstream()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            consumers = await manager.consumers_info(broker._subjects.stream)
            (info,) = [info for info in consumers if info.name == group_consumer("jobs", queue)]
            if not info.num_pending and not info.num_ack_pending:
                break
    await client.close()
    assert info.delivered is not None
    return int(info.delivered.consumer_seq)


async def stream_info(shared_server: Any, broker: Any) -> Any:
    client = await nats.connect(shared_server.url)
    info = await client.jetstream().stream_info(broker._subjects.stream)
    await client.close()
    return info


# --------------------------------------------------------------------------------------- delivery


async def test_messages_wait_for_a_queue_group_without_members(site: Any, shared_server: Any) -> None:
    publisher = await site.broker(shared_server, **DURABLE)
    member, before, after = await site.broker(shared_server, **DURABLE), site.handler(), site.handler()
    await member.subscribe("jobs", before, queue="workers")
    await publisher.publish("jobs", site.message(0))
    await site.until(lambda: before.numbers == [0])
    await member.close()
    for number in range(1, 50):
        await publisher.publish("jobs", site.message(number))
    await (await site.broker(shared_server, **DURABLE)).subscribe("jobs", after, queue="workers")
    await site.until(lambda: after.numbers == list(range(1, 50)))


async def test_messages_wait_for_a_subscriber_with_the_same_node_id(site: Any, shared_server: Any) -> None:
    publisher = await site.broker(shared_server, **DURABLE)
    node, before = await site.broker(shared_server, node_id="node-1", **DURABLE), site.handler()
    await node.subscribe("orders", before)
    # As in a crash, the subscription is not closed.
    await node._connection.close()
    await publisher.publish("orders", site.message(1))
    again, other = site.handler(), site.handler()
    await (await site.broker(shared_server, node_id="node-1", **DURABLE)).subscribe("orders", again)
    await (await site.broker(shared_server, node_id="node-2", **DURABLE)).subscribe("orders", other)
    await publisher.publish("orders", site.message(2))
    await site.until(lambda: again.numbers == [1, 2])
    await site.until(lambda: other.numbers == [2])


async def test_queue_group_shares_messages(site: Any, shared_server: Any) -> None:
    publisher, members = await site.broker(shared_server, **DURABLE), [site.handler() for _ in range(3)]
    for each in members:
        await (await site.broker(shared_server, **DURABLE)).subscribe("jobs", each, queue="workers")
    await asyncio.gather(*(publisher.publish("jobs", site.message(number)) for number in range(400)))
    await site.until(lambda: sum(len(each.messages) for each in members) == 400)
    assert sorted(number for each in members for number in each.numbers) == list(range(400))
    assert all(each.messages for each in members)


async def test_more_messages_than_are_held_at_once_arrive_in_order(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server, **DURABLE), site.handler()
    await broker.subscribe("orders.*", handler)
    for number in range(300):
        await broker.publish("orders.a", site.message(number))
    await site.until(lambda: handler.numbers == list(range(300)))


async def test_message_id_is_stored_once_per_topic(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server, **DURABLE), site.handler()
    await broker.subscribe(">", handler)
    message = site.message(1)
    for _ in range(3):
        await broker.publish("orders", message)
    await broker.publish("others", message)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: 2 in handler.numbers)
    assert list(zip(handler.topics, handler.numbers, strict=True)) == [("orders", 1), ("others", 1), ("orders", 2)]
    assert site.count(broker, "broker_nats_duplicates_refused") == 2


async def test_message_is_stored_when_publish_returns(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server, **DURABLE)
    await broker.publish("orders", site.message(1))
    info = await stream_info(shared_server, broker)
    assert info.state.messages == 1
    assert (info.config.max_bytes, info.config.max_age, info.config.duplicate_window) == (8_000_000, 86_400.0, 120.0)


# -------------------------------------------------------------------------------------- redelivery


async def test_failed_message_is_redelivered(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server, **DURABLE), site.handler()
    handler.failures = 3
    await broker.subscribe("jobs", handler, queue="workers")
    await broker.publish("jobs", site.message(1))
    await site.until(lambda: handler.numbers == [1])
    assert handler.calls == 4


async def test_message_of_a_hanging_handler_is_redelivered_to_another_member(site: Any, shared_server: Any) -> None:
    publisher, hanging, other = await site.broker(shared_server, **DURABLE), site.handler(), site.handler()
    hanging.gate.clear()
    hangs = await site.broker(shared_server, **DURABLE)
    await hangs.subscribe("jobs", hanging, queue="workers")
    await publisher.publish("jobs", site.message(1))
    await site.until(lambda: hanging.calls == 1)
    await (await site.broker(shared_server, **DURABLE)).subscribe("jobs", other, queue="workers")
    await site.until(lambda: other.numbers == [1])


async def test_queued_messages_are_not_redelivered(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server, **DURABLE)
    numbers: list[int] = []
    permits = asyncio.Semaphore(0)

    async def handle(_topic: str, message: Message) -> None:
        await permits.acquire()
        numbers.append(int(message.headers["n"]))

    await broker.subscribe("jobs", handle, queue="workers")
    for number in range(10):
        await broker.publish("jobs", site.message(number))
    # A second consumer measures time at the server: its message is redelivered every 0.2 s. Each redelivery lets one
    # message be handled, so that the last message is queued for twice `ack_wait_s`.
    client = await nats.connect(shared_server.url)
    timer = await client.jetstream().pull_subscribe(
        broker._subjects.of("jobs"),
        durable="timer",
        stream=broker._subjects.stream,
        config=ConsumerConfig(ack_wait=0.2, max_deliver=-1, max_ack_pending=1),
    )
    await timer.fetch(1, timeout=TIMEOUT_S)
    for _ in range(10):
        await timer.fetch(1, timeout=TIMEOUT_S)
        permits.release()
    await client.close()
    await site.until(lambda: 9 in numbers)
    assert numbers == list(range(10))
    assert await deliveries(shared_server, broker, "workers") == 10


async def test_unhandled_messages_of_a_closed_member_are_redelivered_at_once(site: Any, shared_server: Any) -> None:
    publisher = await site.broker(shared_server, **DURABLE)
    options = {**DURABLE, "ack_wait_s": 60.0, "drain_timeout_s": 0.1}
    leaving, stuck, other = await site.broker(shared_server, **options), site.handler(), site.handler()
    stuck.gate.clear()
    await leaving.subscribe("jobs", stuck, queue="workers")
    for number in range(10):
        await publisher.publish("jobs", site.message(number))
    await site.until(lambda: stuck.calls == 1)
    await leaving.close()
    await (await site.broker(shared_server, **options)).subscribe("jobs", other, queue="workers")
    # Message 0 was being handled; it is redelivered only after `ack_wait_s`.
    await site.until(lambda: set(other.numbers) >= set(range(1, 10)))


async def test_message_becomes_a_dead_letter_after_the_maximum_deliveries(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server, **DURABLE, max_deliveries=3)
    dead_letters, numbers = site.handler(), []

    async def fail_on_message_1(_topic: str, message: Message) -> None:
        numbers.append(int(message.headers["n"]))
        if message.headers["n"] == "1":
            raise RuntimeError("on purpose")

    await broker.subscribe("dead-letters", dead_letters, queue="inspectors")
    await broker.subscribe("jobs", fail_on_message_1, queue="workers")
    message = site.message(1, b"body", trace="t")
    await broker.publish("jobs", message)
    await broker.publish("jobs", site.message(2))
    await site.until(lambda: dead_letters.messages and 2 in numbers)
    assert sorted(numbers) == [1, 1, 1, 2]
    dead_letter = dead_letters.messages[0]
    headers = dead_letter.headers
    assert (dead_letter.body, dead_letter.content_type, headers["trace"]) == (b"body", message.content_type, "t")
    assert headers["dead-letter-topic"] == "jobs"
    assert headers["dead-letter-id"] == message.id
    assert headers["dead-letter-queue"] == "workers"
    assert headers["dead-letter-deliveries"] == "3"
    assert headers["dead-letter-reason"] == "RuntimeError: on purpose"
    assert site.count(broker, "broker_nats_dead_letters") == 1


async def test_message_that_crashes_its_processes_becomes_a_dead_letter(site: Any, shared_server: Any) -> None:
    publisher, dead_letters = await site.broker(shared_server, **DURABLE), site.handler()
    await publisher.subscribe("dead-letters", dead_letters)
    options = {**DURABLE, "max_deliveries": 2, "ack_wait_s": 0.2}
    for attempt in range(2):
        crashing, blocked = await site.broker(shared_server, **options), site.handler()
        blocked.gate.clear()
        await crashing.subscribe("jobs", blocked, queue="workers")
        if attempt == 0:
            await publisher.publish("jobs", site.message(1))
        await site.until(lambda: blocked.calls == 1)  # noqa: B023 - called at once
        # As in a crash, the message is neither acknowledged nor returned.
        await crashing._connection.close()
    last_member, handler = await site.broker(shared_server, **options), site.handler()
    await last_member.subscribe("jobs", handler, queue="workers")
    await site.until(lambda: dead_letters.messages)
    assert handler.calls == 0
    assert dead_letters.messages[0].headers["dead-letter-deliveries"] == "3"


async def test_dead_letter_whose_handler_fails_is_dropped_and_counted(site: Any, shared_server: Any) -> None:
    broker, failing = await site.broker(shared_server, **DURABLE, max_deliveries=2), site.handler()
    failing.failures = 100
    await broker.subscribe("dead-letters", failing)
    await broker.publish("dead-letters", site.message(1))
    await site.until(lambda: site.count(broker, "broker_nats_dead_letters_dropped") == 1)
    assert failing.calls == 2


async def test_invalid_messages_are_neither_delivered_nor_redelivered(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server, **DURABLE), site.handler()
    await broker.subscribe("jobs", handler, queue="q")
    client = await nats.connect(shared_server.url)
    subject = broker._subjects.of("jobs")
    await client.publish(subject, b"no id")
    await client.publish(subject, b"", headers={"Status": "409", "Description": "Consumer Deleted"})
    await client.publish(subject, b"", headers={"Micro-Id": "%zz"})
    await client.flush()
    await client.close()
    await broker.publish("jobs", site.message(1))
    await site.until(lambda: handler.numbers == [1])
    # Four messages, each delivered once; the server waits for no acknowledgement, so it redelivers none.
    assert await deliveries(shared_server, broker, "q") == 4
    assert site.count(broker, "broker_nats_garbage") == 3
    assert site.count(broker, "broker_nats_streams_lost") == 0


# ------------------------------------------------------------------------------------------ replay


async def test_new_subscription_can_start_at_the_beginning_or_at_a_time(site: Any, shared_server: Any) -> None:
    publisher = await site.broker(shared_server, **DURABLE)
    for number in range(3):
        await publisher.publish("orders", site.message(number))
    for number in range(3, 6):
        await publisher.publish("orders", site.message(number))
    client = await nats.connect(shared_server.url)
    message_3 = await client.jetstream().get_msg(publisher._subjects.stream, seq=4)
    await client.close()
    assert message_3.time is not None
    from_all, from_time, from_hour, from_now = (site.handler() for _ in range(4))
    starts = ((from_all, "all"), (from_time, message_3.time.isoformat()), (from_hour, "1h"), (from_now, ""))
    for handler, start in starts:
        await (await site.broker(shared_server, **DURABLE, replay_from=start)).subscribe("orders", handler)
    await publisher.publish("orders", site.message(6))
    await site.until(lambda: all(6 in handler.numbers for handler, _ in starts))
    assert from_all.numbers == from_hour.numbers == list(range(7))
    assert from_time.numbers == [3, 4, 5, 6]
    assert from_now.numbers == [6]


async def test_existing_queue_group_is_not_replayed(site: Any, shared_server: Any) -> None:
    options = {**DURABLE, "replay_from": "all"}
    first, second = site.handler(), site.handler()
    broker = await site.broker(shared_server, **options)
    await broker.publish("jobs", site.message(1))
    await broker.subscribe("jobs", first, queue="workers")
    await site.until(lambda: first.numbers == [1])
    await broker.close()
    broker = await site.broker(shared_server, **options)
    await broker.subscribe("jobs", second, queue="workers")
    await broker.publish("jobs", site.message(2))
    await site.until(lambda: second.messages)
    assert second.numbers == [2]


async def test_replay_without_durable_is_rejected(site: Any, shared_server: Any) -> None:
    with pytest.raises(OptionError, match="requires durable"):
        await site.broker(shared_server, replay_from="all")
    with pytest.raises(OptionError, match="replay_from"):
        await site.broker(shared_server, durable=True, replay_from="yesterday")


# ------------------------------------------------------------------------------------------ faults


async def test_server_restart_loses_no_message(site: Any, start_server: Callable[..., Any]) -> None:
    server = start_server(jetstream=True)
    publisher, subscriber = await site.broker(server, **DURABLE), await site.broker(server, **DURABLE)
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
        await site.broker(server, **DURABLE),
        await site.broker(server, **DURABLE),
        await site.broker(server, **DURABLE, subscribe_timeout_s=5.0),
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
    broker, plain, grouped = await site.broker(server, **DURABLE), site.handler(), site.handler()
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
        **DURABLE,
        "answer_timeout_s": 0.5,
        "keepalive_s": 0.3,
        "connect_timeout_s": 0.5,
        "publish_timeout_s": 0.8,
    }
    broker, handler = await site.broker(server, **options), site.handler()
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
    broker, handler = await site.broker(server, **DURABLE, publish_timeout_s=TIMEOUT_S), site.handler()
    await broker.subscribe("orders", handler)
    publishing = [asyncio.create_task(broker.publish("orders", site.message(number))) for number in range(50)]
    await asyncio.sleep(0)
    server.kill()
    server.start()
    await asyncio.gather(*publishing)
    await site.until(lambda: set(handler.numbers) == set(range(50)))
    assert len(handler.numbers) == 50


async def test_durable_without_jetstream_raises_unreachable(site: Any, start_server: Callable[..., Any]) -> None:
    broker = await site.broker(start_server(), **DURABLE, subscribe_timeout_s=0.5)
    with pytest.raises(Unreachable, match="no JetStream"):
        await broker.publish("orders", site.message(1))


async def test_stream_that_exceeds_the_store_fails_the_start(site: Any, shared_server: Any) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        await site.broker(shared_server, durable=True, max_bytes=10**12)


async def test_message_that_the_stream_refuses_raises_the_reason(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server, **DURABLE)
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
    await site.broker(shared_server, **DURABLE)
    other = await site.broker(shared_server, **{**DURABLE, "max_bytes": 1_000_000})
    assert "limits of the existing stream differ" in caplog.text
    assert (await stream_info(shared_server, other)).config.max_bytes == 8_000_000


async def test_slow_subscriber_loses_no_message(site: Any, shared_server: Any) -> None:
    publisher, slow = await site.broker(shared_server, **DURABLE), site.handler()
    slow.gate.clear()
    subscriber = await site.broker(shared_server, **{**DURABLE, "ack_wait_s": 30.0}, max_waiting=5)
    await subscriber.subscribe("orders", slow)
    for number in range(200):
        await publisher.publish("orders", site.message(number))
    assert subscriber._connection.session is not None
    slow.gate.set()
    await site.until(lambda: slow.numbers == list(range(200)))


async def test_closed_subscriptions_leave_no_consumer_at_the_server(site: Any, shared_server: Any) -> None:
    broker, handler = await site.broker(shared_server, **DURABLE), site.handler()
    subscriptions = [await broker.subscribe("orders", handler) for _ in range(3)]
    assert (await stream_info(shared_server, broker)).state.consumer_count == 3
    await subscriptions[1].close()
    await broker.subscribe("orders", handler)
    for each in subscriptions:
        await each.close()
    assert (await stream_info(shared_server, broker)).state.consumer_count == 1
