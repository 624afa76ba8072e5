"""The broker with JetStream: delivery, redelivery, dead letters and replay."""

from __future__ import annotations

import asyncio
from typing import Any

import nats
import pytest
from micro_nats_broker.subjects import group_consumer
from nats.js.api import ConsumerConfig

from micro_core.contract import BadRequest, Message, OptionError

TIMEOUT_S = 15.0


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


# --------------------------------------------------------------------------------------- delivery


async def test_messages_wait_for_a_queue_group_without_members(site: Any, shared_server: Any) -> None:
    publisher = await site.durable_broker(shared_server)
    member, before, after = await site.durable_broker(shared_server), site.handler(), site.handler()
    await member.subscribe("jobs", before, queue="workers")
    await publisher.publish("jobs", site.message(0))
    await site.until(lambda: before.numbers == [0])
    await member.close()
    for number in range(1, 50):
        await publisher.publish("jobs", site.message(number))
    await (await site.durable_broker(shared_server)).subscribe("jobs", after, queue="workers")
    await site.until(lambda: after.numbers == list(range(1, 50)))


async def test_messages_wait_for_a_subscriber_with_the_same_node_id(site: Any, shared_server: Any) -> None:
    publisher = await site.durable_broker(shared_server)
    node, before = await site.durable_broker(shared_server, node_id="node-1"), site.handler()
    await node.subscribe("orders", before)
    # As in a crash, the subscription is not closed.
    await node._connection.close()
    await publisher.publish("orders", site.message(1))
    again, other = site.handler(), site.handler()
    await (await site.durable_broker(shared_server, node_id="node-1")).subscribe("orders", again)
    await (await site.durable_broker(shared_server, node_id="node-2")).subscribe("orders", other)
    await publisher.publish("orders", site.message(2))
    await site.until(lambda: again.numbers == [1, 2])
    await site.until(lambda: other.numbers == [2])


async def test_queue_group_shares_messages(site: Any, shared_server: Any) -> None:
    publisher, members = await site.durable_broker(shared_server), [site.handler() for _ in range(3)]
    for each in members:
        await (await site.durable_broker(shared_server)).subscribe("jobs", each, queue="workers")
    await asyncio.gather(*(publisher.publish("jobs", site.message(number)) for number in range(400)))
    await site.until(lambda: sum(len(each.messages) for each in members) == 400)
    assert sorted(number for each in members for number in each.numbers) == list(range(400))
    assert all(each.messages for each in members)


async def test_more_messages_than_are_held_at_once_arrive_in_order(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
    await broker.subscribe("orders.*", handler)
    for number in range(300):
        await broker.publish("orders.a", site.message(number))
    await site.until(lambda: handler.numbers == list(range(300)))


async def test_message_id_is_stored_once_per_topic(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
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
    broker = await site.durable_broker(shared_server)
    await broker.publish("orders", site.message(1))
    info = await site.stream_info(shared_server, broker)
    assert info.state.messages == 1
    assert (info.config.max_bytes, info.config.max_age, info.config.duplicate_window) == (8_000_000, 86_400.0, 120.0)


# -------------------------------------------------------------------------------------- redelivery


async def test_failed_message_is_redelivered(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
    handler.failures = 3
    await broker.subscribe("jobs", handler, queue="workers")
    await broker.publish("jobs", site.message(1))
    await site.until(lambda: handler.numbers == [1])
    assert handler.calls == 4


async def test_message_of_a_hanging_handler_is_redelivered_to_another_member(site: Any, shared_server: Any) -> None:
    publisher, hanging, other = await site.durable_broker(shared_server), site.handler(), site.handler()
    hanging.gate.clear()
    hangs = await site.durable_broker(shared_server)
    await hangs.subscribe("jobs", hanging, queue="workers")
    await publisher.publish("jobs", site.message(1))
    await site.until(lambda: hanging.calls == 1)
    await (await site.durable_broker(shared_server)).subscribe("jobs", other, queue="workers")
    await site.until(lambda: other.numbers == [1])


async def test_queued_messages_are_not_redelivered(site: Any, shared_server: Any) -> None:
    broker = await site.durable_broker(shared_server)
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
    publisher = await site.durable_broker(shared_server)
    options = {"ack_wait_s": 60.0, "drain_timeout_s": 0.1}
    leaving, stuck, other = await site.durable_broker(shared_server, **options), site.handler(), site.handler()
    stuck.gate.clear()
    await leaving.subscribe("jobs", stuck, queue="workers")
    for number in range(10):
        await publisher.publish("jobs", site.message(number))
    await site.until(lambda: stuck.calls == 1)
    await leaving.close()
    await (await site.durable_broker(shared_server, **options)).subscribe("jobs", other, queue="workers")
    # Message 0 was being handled; it is redelivered only after `ack_wait_s`.
    await site.until(lambda: set(other.numbers) >= set(range(1, 10)))


async def test_message_becomes_a_dead_letter_after_the_maximum_deliveries(site: Any, shared_server: Any) -> None:
    broker = await site.durable_broker(shared_server, max_deliveries=3)
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
    publisher, dead_letters = await site.durable_broker(shared_server), site.handler()
    await publisher.subscribe("dead-letters", dead_letters)
    options = {"max_deliveries": 2, "ack_wait_s": 0.2}
    for attempt in range(2):
        crashing, blocked = await site.durable_broker(shared_server, **options), site.handler()
        blocked.gate.clear()
        await crashing.subscribe("jobs", blocked, queue="workers")
        if attempt == 0:
            await publisher.publish("jobs", site.message(1))
        await site.until(lambda: blocked.calls == 1)  # noqa: B023 - called at once
        # As in a crash, the message is neither acknowledged nor returned.
        await crashing._connection.close()
    last_member, handler = await site.durable_broker(shared_server, **options), site.handler()
    await last_member.subscribe("jobs", handler, queue="workers")
    await site.until(lambda: dead_letters.messages)
    assert handler.calls == 0
    assert dead_letters.messages[0].headers["dead-letter-deliveries"] == "3"


async def test_dead_letter_whose_handler_fails_is_dropped_and_counted(site: Any, shared_server: Any) -> None:
    broker, failing = await site.durable_broker(shared_server, max_deliveries=2), site.handler()
    failing.failures = 100
    await broker.subscribe("dead-letters", failing)
    await broker.publish("dead-letters", site.message(1))
    await site.until(lambda: site.count(broker, "broker_nats_dead_letters_dropped") == 1)
    assert failing.calls == 2


async def test_invalid_messages_are_neither_delivered_nor_redelivered(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
    await broker.subscribe("jobs", handler, queue="q")
    client = await nats.connect(shared_server.url)
    subject = broker._subjects.of("jobs")
    await client.publish(subject, b"no id")
    await client.publish(subject, b"", headers={"Status": "409", "Description": "Consumer Deleted"})
    await client.publish(subject, b"", headers={"Micro-Id": "%zz"})
    # nats-py sends the PING of a flush before the commands that it has queued, so only the second one follows them.
    await client.flush()
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
    publisher = await site.durable_broker(shared_server)
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
        await (await site.durable_broker(shared_server, replay_from=start)).subscribe("orders", handler)
    await publisher.publish("orders", site.message(6))
    await site.until(lambda: all(6 in handler.numbers for handler, _ in starts))
    assert from_all.numbers == from_hour.numbers == list(range(7))
    assert from_time.numbers == [3, 4, 5, 6]
    assert from_now.numbers == [6]


async def test_existing_queue_group_is_not_replayed(site: Any, shared_server: Any) -> None:
    options = {"replay_from": "all"}
    first, second = site.handler(), site.handler()
    broker = await site.durable_broker(shared_server, **options)
    await broker.publish("jobs", site.message(1))
    await broker.subscribe("jobs", first, queue="workers")
    await site.until(lambda: first.numbers == [1])
    await broker.close()
    broker = await site.durable_broker(shared_server, **options)
    await broker.subscribe("jobs", second, queue="workers")
    await broker.publish("jobs", site.message(2))
    await site.until(lambda: second.messages)
    assert second.numbers == [2]


async def test_replay_without_durable_is_rejected(site: Any, shared_server: Any) -> None:
    with pytest.raises(OptionError, match="requires durable"):
        await site.broker(shared_server, replay_from="all")
    with pytest.raises(OptionError, match="replay_from"):
        await site.broker(shared_server, durable=True, replay_from="yesterday")


# ------------------------------------------------------------------- groups that forward messages


async def test_group_handles_several_messages_at_a_time_in_order(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server), site.handler()
    handler.gate.clear()
    await broker.subscribe_group("orders", handler, group="micro-site-us", max_concurrent=8)
    for number in range(20):
        await broker.publish("orders", site.message(number))
    await site.until(lambda: handler.calls == 8)
    await asyncio.sleep(0.1)
    assert handler.calls == 8
    handler.gate.set()
    await site.until(lambda: handler.numbers == list(range(20)))


async def test_messages_of_a_closed_member_of_a_group_are_handled_by_the_next_one(
    site: Any, shared_server: Any
) -> None:
    publisher = await site.durable_broker(shared_server)
    leader, slow = await site.durable_broker(shared_server), site.handler()
    slow.gate.clear()
    await leader.subscribe_group("orders", slow, group="micro-site-us", max_concurrent=8)
    for number in range(20):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: slow.calls == 8)
    await leader.close()
    following, handler = await site.durable_broker(shared_server), site.handler()
    await following.subscribe_group("orders", handler, group="micro-site-us", max_concurrent=8)
    await site.until(lambda: sorted(handler.numbers) == list(range(20)))
    assert slow.numbers == []


async def test_message_of_a_group_whose_handler_was_cancelled_elsewhere_is_delivered_again(
    site: Any, shared_server: Any
) -> None:
    broker = await site.durable_broker(shared_server, redelivery_delay_s=0.05)
    calls = 0

    async def handle(topic: str, message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError

    await broker.subscribe_group("orders", handle, group="micro-site-us", max_concurrent=8)
    await broker.publish("orders", site.message(1))
    await site.until(lambda: calls == 2)


async def test_group_begins_with_new_messages_for_any_replay_from(site: Any, shared_server: Any) -> None:
    broker, handler = await site.durable_broker(shared_server, replay_from="all"), site.handler()
    await broker.publish("orders", site.message(1))
    await broker.subscribe_group("orders", handler, group="micro-site-us", max_concurrent=8)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: handler.numbers)
    assert handler.numbers == [2]


async def test_group_requires_durable(site: Any, shared_server: Any) -> None:
    broker = await site.broker(shared_server)
    assert not broker.is_durable
    with pytest.raises(BadRequest):
        await broker.subscribe_group("orders", site.handler(), group="micro-site-us", max_concurrent=8)
