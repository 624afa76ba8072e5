"""With JetStream, against real servers that die, come back, and come back empty."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import nats
import pytest

from micro_core.contract import ConfigError, Message, OptionError, Overloaded, TooLarge, Unreachable

STILL_S = 10.0
"""How long a server stands still: longer than everything that gives it up."""

PATIENCE_S = 15.0
DURABLE: dict[str, Any] = {
    "durable": True,
    "max_bytes": 8_000_000,
    "ack_wait_s": 1.0,
    "redelivery_delay_s": 0.02,
    "keep_subscriber_s": 30.0,
}


async def stream_of(shared: Any, broker: Any) -> Any:
    client = await nats.connect(shared.url)
    info = await client.jetstream().stream_info(broker._subjects.stream)
    await client.close()
    return info


# ------------------------------------------------------------------------------ what is delivered


async def test_what_is_published_while_a_group_is_away_waits_for_it(site: Any, shared: Any) -> None:
    publisher = await site.broker(shared, **DURABLE)
    member, before, after = await site.broker(shared, **DURABLE), site.heard(), site.heard()
    await member.subscribe("jobs", before, queue="workers")
    await publisher.publish("jobs", site.message(0))
    await site.until(lambda: before.numbers == [0])
    await member.close()
    for number in range(1, 50):
        await publisher.publish("jobs", site.message(number))
    await (await site.broker(shared, **DURABLE)).subscribe("jobs", after, queue="workers")
    await site.until(lambda: after.numbers == list(range(1, 50)))


async def test_a_subscriber_without_queue_is_kept_for_by_its_node_id(site: Any, shared: Any) -> None:
    publisher = await site.broker(shared, **DURABLE)
    node, before = await site.broker(shared, node_id="node-1", **DURABLE), site.heard()
    await node.subscribe("orders", before)
    # It dies: nobody says goodbye for it.
    await node._connection.close()
    await publisher.publish("orders", site.message(1))
    again, other = site.heard(), site.heard()
    await (await site.broker(shared, node_id="node-1", **DURABLE)).subscribe("orders", again)
    await (await site.broker(shared, node_id="node-2", **DURABLE)).subscribe("orders", other)
    await publisher.publish("orders", site.message(2))
    await site.until(lambda: again.numbers == [1, 2])
    await site.until(lambda: other.numbers == [2])


async def test_a_group_shares_the_work(site: Any, shared: Any) -> None:
    publisher, members = await site.broker(shared, **DURABLE), [site.heard() for _ in range(3)]
    for each in members:
        await (await site.broker(shared, **DURABLE)).subscribe("jobs", each, queue="workers")
    await asyncio.gather(*(publisher.publish("jobs", site.message(number)) for number in range(400)))
    await site.until(lambda: sum(len(each.messages) for each in members) == 400)
    assert sorted(number for each in members for number in each.numbers) == list(range(400))
    assert all(each.messages for each in members)


async def test_order_is_kept_and_more_than_is_held_at_once_arrives(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared, **DURABLE), site.heard()
    await broker.subscribe("orders.*", heard)
    for number in range(300):
        await broker.publish("orders.a", site.message(number))
    await site.until(lambda: heard.numbers == list(range(300)))


async def test_the_same_id_is_stored_once_on_a_topic(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared, **DURABLE), site.heard()
    await broker.subscribe(">", heard)
    message = site.message(1)
    for _ in range(3):
        await broker.publish("orders", message)
    await broker.publish("others", message)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: 2 in heard.numbers)
    assert list(zip(heard.topics, heard.numbers, strict=True)) == [("orders", 1), ("others", 1), ("orders", 2)]
    assert site.counted(broker, "broker_nats_duplicates_refused") == 2


async def test_a_message_is_stored_when_publish_has_returned(site: Any, shared: Any) -> None:
    broker = await site.broker(shared, **DURABLE)
    await broker.publish("orders", site.message(1))
    info = await stream_of(shared, broker)
    assert info.state.messages == 1
    assert (info.config.max_bytes, info.config.max_age, info.config.duplicate_window) == (8_000_000, 86_400.0, 120.0)


# -------------------------------------------------------------------------------------- redelivery


async def test_failed_message_is_redelivered(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared, **DURABLE), site.heard()
    heard.failures = 3
    await broker.subscribe("jobs", heard, queue="workers")
    await broker.publish("jobs", site.message(1))
    await site.until(lambda: heard.numbers == [1])
    assert heard.calls == 4


async def test_a_message_whose_handler_hangs_goes_to_another_member(site: Any, shared: Any) -> None:
    publisher, hanging, other = await site.broker(shared, **DURABLE), site.heard(), site.heard()
    hanging.gate.clear()
    hangs = await site.broker(shared, **DURABLE)
    await hangs.subscribe("jobs", hanging, queue="workers")
    await publisher.publish("jobs", site.message(1))
    await site.until(lambda: hanging.calls == 1)
    await (await site.broker(shared, **DURABLE)).subscribe("jobs", other, queue="workers")
    await site.until(lambda: other.numbers == [1])


async def test_messages_that_wait_their_turn_are_not_delivered_again(site: Any, shared: Any) -> None:
    # 20 messages of 0.1 s each: the last waits for twice the wait of an acknowledgement.
    broker, calls = await site.broker(shared, **DURABLE), []

    async def slow(_topic: str, message: Message) -> None:
        await asyncio.sleep(0.1)
        calls.append(int(message.headers["n"]))

    await broker.subscribe("jobs", slow, queue="workers")
    for number in range(20):
        await broker.publish("jobs", site.message(number))
    await site.until(lambda: 19 in calls)
    assert calls == list(range(20))
    await asyncio.sleep(0.2)
    assert len(calls) == 20


async def test_what_a_leaving_member_has_not_handled_goes_to_the_others_at_once(site: Any, shared: Any) -> None:
    publisher = await site.broker(shared, **DURABLE)
    words = {**DURABLE, "ack_wait_s": 60.0, "drain_timeout_s": 0.1}
    leaving, stuck, other = await site.broker(shared, **words), site.heard(), site.heard()
    stuck.gate.clear()
    await leaving.subscribe("jobs", stuck, queue="workers")
    for number in range(10):
        await publisher.publish("jobs", site.message(number))
    await site.until(lambda: stuck.calls == 1)
    await leaving.close()
    await (await site.broker(shared, **words)).subscribe("jobs", other, queue="workers")
    # The one that was being handled waits for its acknowledgement.
    await site.until(lambda: set(other.numbers) >= set(range(1, 10)))


async def test_after_so_many_deliveries_a_message_goes_to_the_dead_letters(site: Any, shared: Any) -> None:
    broker = await site.broker(shared, **DURABLE, max_deliveries=3)
    dead, calls = site.heard(), []

    async def fails_with_the_first(_topic: str, message: Message) -> None:
        calls.append(int(message.headers["n"]))
        if message.headers["n"] == "1":
            raise RuntimeError("on purpose")

    await broker.subscribe("dead-letters", dead, queue="undertaker")
    await broker.subscribe("jobs", fails_with_the_first, queue="workers")
    sent = site.message(1, b"body", trace="t")
    await broker.publish("jobs", sent)
    await broker.publish("jobs", site.message(2))
    await site.until(lambda: dead.messages and 2 in calls)
    assert sorted(calls) == [1, 1, 1, 2]
    letter = dead.messages[0]
    assert (letter.body, letter.content_type, letter.headers["trace"]) == (b"body", sent.content_type, "t")
    assert letter.headers["dead-letter-topic"] == "jobs"
    assert letter.headers["dead-letter-id"] == sent.id
    assert letter.headers["dead-letter-queue"] == "workers"
    assert letter.headers["dead-letter-deliveries"] == "3"
    assert letter.headers["dead-letter-reason"] == "RuntimeError: on purpose"
    assert site.counted(broker, "broker_nats_dead_letters") == 1


async def test_a_message_that_kills_its_handlers_is_buried_by_the_next(site: Any, shared: Any) -> None:
    publisher, dead = await site.broker(shared, **DURABLE), site.heard()
    await publisher.subscribe("dead-letters", dead)
    words = {**DURABLE, "max_deliveries": 2, "ack_wait_s": 0.2}
    for _ in range(2):
        victim, stuck = await site.broker(shared, **words), site.heard()
        stuck.gate.clear()
        await victim.subscribe("jobs", stuck, queue="workers")
        if not dead.calls and _ == 0:
            await publisher.publish("jobs", site.message(1))
        await site.until(lambda: stuck.calls == 1)  # noqa: B023 - called at once
        # It dies with the message in its hands.
        await victim._connection.close()
    survivor, unharmed = await site.broker(shared, **words), site.heard()
    await survivor.subscribe("jobs", unharmed, queue="workers")
    await site.until(lambda: dead.messages)
    assert unharmed.calls == 0
    assert dead.messages[0].headers["dead-letter-deliveries"] == "3"


async def test_a_dead_letter_that_cannot_be_handled_is_dropped_and_counted(site: Any, shared: Any) -> None:
    broker, failing = await site.broker(shared, **DURABLE, max_deliveries=2), site.heard()
    failing.failures = 100
    await broker.subscribe("dead-letters", failing)
    await broker.publish("dead-letters", site.message(1))
    await site.until(lambda: site.counted(broker, "broker_nats_dead_letters_dropped") == 1)
    assert failing.calls == 2


async def test_garbage_is_delivered_to_nobody_and_not_again(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared, **DURABLE), site.heard()
    await broker.subscribe("orders", heard, queue="q")
    client = await nats.connect(shared.url)
    subject = broker._subjects.of("orders")
    await client.publish(subject, b"no id")
    await client.publish(subject, b"", headers={"Status": "409", "Description": "Consumer Deleted"})
    await client.publish(subject, b"", headers={"Micro-Id": "%zz"})
    await client.flush()
    await client.close()
    await broker.publish("orders", site.message(1))
    await site.until(lambda: heard.numbers == [1])
    await asyncio.sleep(1.5 * DURABLE["ack_wait_s"])
    assert site.counted(broker, "broker_nats_garbage") == 3
    assert site.counted(broker, "broker_nats_streams_lost") == 0


# ------------------------------------------------------------------------------------------ replay


async def test_a_new_subscriber_may_begin_with_everything_or_with_a_time(site: Any, shared: Any) -> None:
    publisher = await site.broker(shared, **DURABLE)
    for number in range(3):
        await publisher.publish("orders", site.message(number))
    await asyncio.sleep(0.05)
    moment = dt.datetime.now(dt.UTC).isoformat()
    await asyncio.sleep(0.05)
    for number in range(3, 6):
        await publisher.publish("orders", site.message(number))
    everything, since, hour, fresh = (site.heard() for _ in range(4))
    for heard, begin in ((everything, "all"), (since, moment), (hour, "1h"), (fresh, "")):
        await (await site.broker(shared, **DURABLE, replay_from=begin)).subscribe("orders", heard)
    await publisher.publish("orders", site.message(6))
    await site.until(lambda: fresh.messages and all(6 in each.numbers for each in (everything, since, hour)))
    assert everything.numbers == hour.numbers == list(range(7))
    assert since.numbers == [3, 4, 5, 6]
    assert fresh.numbers == [6]


async def test_a_group_that_exists_is_not_replayed(site: Any, shared: Any) -> None:
    words = {**DURABLE, "replay_from": "all"}
    first, one, two = await site.broker(shared, **words), site.heard(), site.heard()
    await first.publish("jobs", site.message(1))
    await first.subscribe("jobs", one, queue="workers")
    await site.until(lambda: one.numbers == [1])
    await first.close()
    second = await site.broker(shared, **words)
    await second.subscribe("jobs", two, queue="workers")
    await second.publish("jobs", site.message(2))
    await site.until(lambda: two.messages)
    assert two.numbers == [2]


async def test_replay_without_durable_is_refused(site: Any, shared: Any) -> None:
    with pytest.raises(OptionError, match="requires durable"):
        await site.broker(shared, replay_from="all")
    with pytest.raises(OptionError, match="replay_from"):
        await site.broker(shared, durable=True, replay_from="yesterday")


# ------------------------------------------------------------------------------------------ faults


async def test_a_restart_with_its_store_loses_nothing(site: Any, server: Callable[..., Any]) -> None:
    one = server(jetstream=True)
    publisher, subscriber = await site.broker(one, **DURABLE), await site.broker(one, **DURABLE)
    plain, grouped = site.heard(), site.heard()
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
                    # The same message again: the stream takes an id once.
                    await asyncio.sleep(0.01)
            sent.append(number)

    publishing = asyncio.create_task(publish())
    await site.until(lambda: len(sent) > 30)
    one.kill()
    await asyncio.sleep(0.1)
    one.start()
    await publishing
    await site.until(lambda: set(plain.numbers) == set(grouped.numbers) == set(range(150)))
    # This process remembers what it handled.
    assert len(plain.numbers) == len(grouped.numbers) == 150


async def test_a_restart_without_its_store_loses_what_it_held_and_goes_on(
    site: Any, server: Callable[..., Any]
) -> None:
    one = server(jetstream=True)
    publisher, subscriber, late = (
        await site.broker(one, **DURABLE),
        await site.broker(one, **DURABLE),
        await site.broker(one, **DURABLE, subscribe_timeout_s=5.0),
    )
    plain, grouped = site.heard(), site.heard()
    await subscriber.subscribe("orders", plain)
    await subscriber.subscribe("orders", grouped, queue="q")
    for number in range(5):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: plain.numbers == grouped.numbers == list(range(5)))
    one.kill()
    one.wipe()
    one.start()
    # Whoever is back first may publish before the subscriber is: nothing of that is missed.
    await site.until_connected(publisher)
    for number in range(5, 10):
        await publisher.publish("orders", site.message(number))
    await site.until(lambda: plain.numbers == grouped.numbers == list(range(10)))
    assert (
        site.counted(subscriber, "broker_nats_streams_lost") + site.counted(publisher, "broker_nats_streams_lost") >= 1
    )
    # A new subscriber begins with now, as ever.
    await site.until_connected(late)
    fresh = site.heard()
    await late.subscribe("orders", fresh)
    await publisher.publish("orders", site.message(10))
    await site.until(lambda: fresh.messages)
    assert fresh.numbers == [10]


async def test_a_stream_or_consumer_that_is_deleted_is_made_again(site: Any, server: Callable[..., Any]) -> None:
    one = server(jetstream=True)
    broker, plain, grouped = await site.broker(one, **DURABLE), site.heard(), site.heard()
    await broker.subscribe("orders", plain)
    await broker.subscribe("orders", grouped, queue="q")
    await broker.publish("orders", site.message(1))
    await site.until(lambda: plain.numbers == grouped.numbers == [1])
    client = await nats.connect(one.url)
    manager = client.jetstream()
    for consumer in await manager.consumers_info(broker._subjects.stream):
        await manager.delete_consumer(broker._subjects.stream, consumer.name)
    await broker.publish("orders", site.message(2))
    await site.until(lambda: plain.numbers == grouped.numbers == [1, 2])
    await manager.delete_stream(broker._subjects.stream)
    await broker.publish("orders", site.message(3))
    await site.until(lambda: plain.numbers == grouped.numbers == [1, 2, 3])
    await client.close()


async def test_a_server_that_stands_still_loses_nothing(site: Any, server: Callable[..., Any]) -> None:
    one = server(jetstream=True)
    words = {**DURABLE, "answer_timeout_s": 0.5, "keepalive_s": 0.3, "connect_timeout_s": 0.5, "publish_timeout_s": 0.8}
    broker, heard = await site.broker(one, **words), site.heard()
    await broker.subscribe("orders", heard)
    await broker.publish("orders", site.message(1))
    # Else its delivery may be lost, and it comes again behind the second.
    await site.until(lambda: heard.numbers == [1])
    message = site.message(2)
    one.pause()
    with pytest.raises(Unreachable):
        await broker.publish("orders", message)
    await asyncio.sleep(STILL_S)
    one.resume()
    await site.until_connected(broker)
    await broker.publish("orders", message)
    await site.until(lambda: 2 in heard.numbers)
    await asyncio.sleep(0.1)
    assert heard.numbers == [1, 2]


async def test_a_publication_in_doubt_is_tried_again_and_stored_once(site: Any, server: Callable[..., Any]) -> None:
    one = server(jetstream=True)
    broker, heard = await site.broker(one, **DURABLE, publish_timeout_s=PATIENCE_S), site.heard()
    await broker.subscribe("orders", heard)
    publishing = [asyncio.create_task(broker.publish("orders", site.message(number))) for number in range(50)]
    await asyncio.sleep(0)
    one.kill()
    one.start()
    await asyncio.gather(*publishing)
    await site.until(lambda: set(heard.numbers) == set(range(50)))
    assert len(heard.numbers) == 50


async def test_a_server_without_jetstream_is_no_place_for_durable(site: Any, server: Callable[..., Any]) -> None:
    broker = await site.broker(server(), **DURABLE, subscribe_timeout_s=0.5)
    with pytest.raises(Unreachable, match="no JetStream"):
        await broker.publish("orders", site.message(1))


async def test_a_stream_that_does_not_fit_ends_the_start(site: Any, shared: Any) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        await site.broker(shared, durable=True, max_bytes=10**12)


async def test_what_a_stream_does_not_take_is_said(site: Any, shared: Any) -> None:
    broker = await site.broker(shared, **DURABLE)
    with pytest.raises(TooLarge):
        await broker.publish("orders", site.message(1, bytes(5_000_000)))
    client = await nats.connect(shared.url)
    manager = client.jetstream()
    config = (await manager.stream_info(broker._subjects.stream)).config
    await manager.update_stream(config.evolve(discard="new", max_msgs=1))
    await broker.publish("orders", site.message(2))
    with pytest.raises(Overloaded, match="maximum messages"):
        await broker.publish("orders", site.message(3))
    await client.close()


async def test_bounds_of_a_stream_that_stands_are_kept_and_said(
    site: Any, shared: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await site.broker(shared, **DURABLE)
    other = await site.broker(shared, **{**DURABLE, "max_bytes": 1_000_000})
    assert "limits of the existing stream differ" in caplog.text
    assert (await stream_of(shared, other)).config.max_bytes == 8_000_000


async def test_a_slow_subscriber_loses_nothing(site: Any, shared: Any) -> None:
    publisher, slow = await site.broker(shared, **DURABLE), site.heard()
    slow.gate.clear()
    subscriber = await site.broker(shared, **{**DURABLE, "ack_wait_s": 30.0}, max_waiting=5)
    await subscriber.subscribe("orders", slow)
    for number in range(200):
        await publisher.publish("orders", site.message(number))
    assert subscriber._connection.session is not None
    slow.gate.set()
    await site.until(lambda: slow.numbers == list(range(200)))


async def test_unsubscribing_leaves_nothing_at_the_server(site: Any, shared: Any) -> None:
    broker, heard = await site.broker(shared, **DURABLE), site.heard()
    subscriptions = [await broker.subscribe("orders", heard) for _ in range(3)]
    assert (await stream_of(shared, broker)).state.consumer_count == 3
    await subscriptions[1].close()
    await broker.subscribe("orders", heard)
    for each in subscriptions:
        await each.close()
    assert (await stream_of(shared, broker)).state.consumer_count == 1
