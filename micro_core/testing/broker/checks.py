"""The kit of the broker role: topics, queue groups, subscribers that fail or are slow, faults."""

from __future__ import annotations

import itertools
import secrets

import pytest

from micro_core.contract import BadRequest, Broker, Message, TooLarge, Unreachable
from micro_core.testing.broker.durable import BrokerDurableChecks
from micro_core.testing.broker.faults import BrokerFaultChecks
from micro_core.testing.broker.support import TOPIC, MessageRecorder, message
from micro_core.testing.kit.comparison import assert_same_bytes
from micro_core.testing.kit.conformance import requires
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within


class BrokerConformance(BrokerFaultChecks, BrokerDurableChecks):
    """The kit of the broker role. Inherit it and supply the fixture `driver_under_test`."""

    # ---------------------------------------------------------------------- topics

    async def test_subscribers_receive_each_message_once_in_order(self, harness: Harness[Broker]) -> None:
        publisher, one, two = await harness.open(), await harness.open(), await harness.open()
        recorders = [MessageRecorder(), MessageRecorder(), MessageRecorder()]
        await self.subscribe(one, recorders[0])
        await self.subscribe(two, recorders[1])
        await self.subscribe(publisher, recorders[2])
        sent = [message(number) for number in range(200)]
        for sent_message in sent:
            await publisher.publish(TOPIC, sent_message)
        for each in recorders:
            await self.expect_messages(each, range(200))
            assert each.messages == sent, "a message arrives unchanged: id, body, content type, headers"
            assert set(each.topics) == {TOPIC}, "the handler is called with the topic"

    async def test_message_arrives_unchanged(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        recorder = MessageRecorder()
        await self.subscribe(subscriber, recorder)
        unusual = [
            Message(id=secrets.token_hex(16), body=b"", headers={"n": "0"}),
            Message(
                id=secrets.token_hex(16), body=bytes(range(256)), content_type="application/json", headers={"n": "1"}
            ),
            Message(id=secrets.token_hex(16), body=b"x", headers={"n": "2", "micro-origin": "a", "Ünï": "x: y\tz"}),
            message(3, secrets.token_bytes(self.large_message_bytes)),
        ]
        for each in unusual:
            await publisher.publish(TOPIC, each)
        await self.expect_messages(recorder, range(4))
        for sent, received in zip(unusual, recorder.messages, strict=True):
            assert_same_bytes(received.body, sent.body, "a body arrives unchanged")
            assert (received.id, received.content_type) == (sent.id, sent.content_type), (
                "id and content type arrive unchanged"
            )
            own = {name: value for name, value in received.headers.items() if not name.startswith("micro-")}
            expected = {name: value for name, value in sent.headers.items() if not name.startswith("micro-")}
            assert own == expected, "headers arrive unchanged"

    async def test_subscriber_receives_only_its_topic(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        recorder, elsewhere = MessageRecorder(), MessageRecorder()
        await self.subscribe(broker, recorder)
        await self.subscribe(broker, elsewhere, topic="orders")
        for number, topic in ((1, "orders.created.eu"), (2, "orders"), (3, TOPIC)):
            await broker.publish(topic, message(number))
        await until(
            lambda: recorder.numbers and elsewhere.numbers,
            self.timeout_s,
            "every subscriber receives the messages of its topic",
        )
        assert (recorder.numbers, elsewhere.numbers) == ([3], [2]), (
            "a subscriber receives only the messages of its topic"
        )

    async def test_networks_are_isolated(self, harness: Harness[Broker]) -> None:
        if harness.driver_under_test.registry is not None:
            pytest.skip("the driver finds other processes through a registry of one network")
        here, beyond = await harness.open(), await harness.open(network=f"{harness.network}.other")
        recorder, recorder_beyond = MessageRecorder(), MessageRecorder()
        await self.subscribe(here, recorder)
        await self.subscribe(beyond, recorder_beyond)
        await here.publish(TOPIC, message(1))
        await beyond.publish(TOPIC, message(2))
        await until(
            lambda: recorder.numbers and recorder_beyond.numbers,
            self.timeout_s,
            "every subscriber receives the messages of its network",
        )
        assert (recorder.numbers, recorder_beyond.numbers) == ([1], [2]), (
            "a subscriber receives only the messages of its network"
        )

    async def test_each_subscription_of_a_topic_receives_every_message(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        recorders = [MessageRecorder() for _ in range(3)]
        for each in recorders:
            await self.subscribe(broker, each)
        for number in range(10):
            await broker.publish(TOPIC, message(number))
        for each in recorders:
            await self.expect_messages(each, range(10))

    async def test_closed_subscription_receives_nothing(self, harness: Harness[Broker]) -> None:
        broker, closed, active = await harness.open(), MessageRecorder(), MessageRecorder()
        subscription = await self.subscribe(broker, closed)
        await self.subscribe(broker, active)
        assert (subscription.topic, subscription.queue) == (TOPIC, ""), "a subscription has its topic and queue"
        await within(self.timeout_s, subscription.close(), "close of a subscription returns")
        for number in range(5):
            await broker.publish(TOPIC, message(number))
        await self.expect_messages(active, range(5))
        assert closed.messages == [], "a closed subscription receives no messages"

    async def test_invalid_topic_is_rejected(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        for topic in ("", "a b", "a\n"):
            with pytest.raises(BadRequest):
                await broker.publish(topic, message(1))
            with pytest.raises(BadRequest):
                await broker.subscribe(topic, MessageRecorder())

    async def test_oversized_message_is_rejected(self, harness: Harness[Broker]) -> None:
        broker, recorder = await harness.open(), MessageRecorder()
        await self.subscribe(broker, recorder)
        with pytest.raises(TooLarge):
            await within(
                self.timeout_s, broker.publish(TOPIC, message(1, bytes(self.too_large_message_bytes))), "publish"
            )
        await broker.publish(TOPIC, message(2))
        await until(lambda: recorder.numbers, self.timeout_s, "a rejected message does not affect later messages")
        assert recorder.numbers == [2]

    @requires(capability="wildcards")
    async def test_pattern_receives_matching_topics(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        star, rest = MessageRecorder(), MessageRecorder()
        await self.subscribe(subscriber, star, topic="orders.*.eu")
        await self.subscribe(subscriber, rest, topic="orders.>")
        topics = [
            "orders",
            "orders.created",
            "orders.created.eu",
            "orders.created.us",
            "orders.a.b.eu",
            "other.x.eu",
            "orders.z.eu",
        ]
        for number, topic in enumerate(topics):
            await publisher.publish(topic, message(number))
        clause = "a pattern receives the messages of all matching topics"
        await until(lambda: 6 in star.numbers and 6 in rest.numbers, self.timeout_s, clause)
        assert star.topics == ["orders.created.eu", "orders.z.eu"], "`*` matches exactly one dot-separated part"
        assert rest.topics == [topics[number] for number in (1, 2, 3, 4, 6)], "`>` matches one or more parts"

    # ------------------------------------------------------------------ queue groups

    async def test_queue_group_delivers_each_message_to_one_member(self, harness: Harness[Broker]) -> None:
        publisher, members, plain, others = (
            await harness.open(),
            [MessageRecorder() for _ in range(3)],
            MessageRecorder(),
            MessageRecorder(),
        )
        for member in members:
            await self.subscribe(await harness.open(), member, queue="workers")
        await self.subscribe(await harness.open(), plain)
        await self.subscribe(await harness.open(), others, queue="others")
        for number in range(60):
            await publisher.publish(TOPIC, message(number))
        await self.expect_messages(plain, range(60), "a subscriber without a queue receives every message")
        await self.expect_messages(others, range(60), "each queue group receives every message")
        await until(
            lambda: sum(len(member.numbers) for member in members) >= 60,
            self.timeout_s,
            "a member of the group receives each message",
        )
        numbers = sorted(number for member in members for number in member.numbers)
        assert numbers == list(range(60)), "exactly one member of a queue group receives each message"

    @requires(capability="queue-groups")
    async def test_queue_group_members_share_the_work(self, harness: Harness[Broker]) -> None:
        publisher, members = await harness.open(), [MessageRecorder() for _ in range(3)]
        for member in members:
            await self.subscribe(await harness.open(), member, queue="workers")
        counter = itertools.count()

        async def all_received() -> bool:
            await publisher.publish(TOPIC, message(next(counter)))
            return all(member.messages for member in members)

        await until(all_received, self.timeout_s, "every member of a queue group that keeps up receives messages")

    async def test_leaving_queue_group_member_loses_no_message(self, harness: Harness[Broker]) -> None:
        publisher, leaving, staying = await harness.open(), MessageRecorder(), MessageRecorder()
        subscription = await self.subscribe(await harness.open(), leaving, queue="workers")
        await self.subscribe(await harness.open(), staying, queue="workers")
        await within(self.timeout_s, subscription.close(), "close of a subscription returns")
        for number in range(20):
            await publisher.publish(TOPIC, message(number))
        await self.expect_messages(staying, range(20), "the remaining members receive every message")
        assert leaving.messages == [], "a closed subscription receives no messages"

    # -------------------------------------------------------- failing and slow subscribers

    async def test_failing_handler_does_not_affect_others(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, recorder = await harness.open(), await harness.open(), MessageRecorder()
        called: list[int] = []

        async def fails(_topic: str, received: Message) -> None:
            called.append(int(received.headers["n"]))
            raise RuntimeError("intentional failure")

        await self.subscribe(subscriber, fails)
        await self.subscribe(subscriber, recorder)
        for number in range(3):
            await publisher.publish(TOPIC, message(number))
        await self.expect_messages(recorder, range(3), "a failing handler does not affect other subscribers")
        await until(lambda: {0, 1, 2} <= set(called), self.timeout_s, "a handler that failed receives the next message")
        await until(lambda: harness.counters_of(subscriber), self.timeout_s, "a failure of a handler is counted")

    async def test_slow_subscriber_does_not_delay_others(self, harness: Harness[Broker]) -> None:
        publisher, fast = await harness.open(), MessageRecorder()
        slow, slow_sharing = MessageRecorder(), MessageRecorder()  # slow_sharing shares a driver with fast
        for each in (slow, slow_sharing):
            each.gate.clear()
        sharing = await harness.open()
        await self.subscribe(await harness.open(), slow)
        await self.subscribe(sharing, slow_sharing)
        await self.subscribe(sharing, fast)
        clause = "a slow subscriber never delays another one"
        for number in range(300):
            await within(self.timeout_s, publisher.publish(TOPIC, message(number)), clause)
        await self.expect_messages(fast, range(300), clause)
        assert slow.messages == slow_sharing.messages == []
        for each in (slow, slow_sharing):
            each.gate.set()
        await until(
            lambda: slow.messages and slow_sharing.messages,
            self.timeout_s,
            "a slow subscriber receives the queued messages",
        )
        for each in (slow, slow_sharing):
            assert each.numbers == list(range(len(each.numbers))), (
                "a slow subscriber loses the newest messages, never the oldest"
            )

    # --------------------------------------------------------------------- closing

    async def test_closed_broker_neither_sends_nor_receives(self, harness: Harness[Broker]) -> None:
        closed, open_broker = await harness.open(), await harness.open()
        recorder_of_closed, recorder = MessageRecorder(), MessageRecorder()
        await self.subscribe(closed, recorder_of_closed)
        await self.subscribe(open_broker, recorder)
        await harness.close(closed)
        await open_broker.publish(TOPIC, message(0))
        await self.expect_messages(recorder, range(1))
        assert recorder_of_closed.messages == [], "a closed broker receives no messages"
        with pytest.raises(Unreachable):
            await within(
                self.timeout_s, closed.publish(TOPIC, message(1)), "a closed broker raises Unreachable immediately"
            )

    async def test_subscription_close_waits_at_most_one_second_for_handlers(self, harness: Harness[Broker]) -> None:
        broker, blocked = await harness.open(), MessageRecorder()
        blocked.gate.clear()
        subscription = await self.subscribe(broker, blocked)
        await broker.publish(TOPIC, message(1))
        await until(lambda: blocked.is_waiting, self.timeout_s, "every subscriber receives every message")
        await within(3.0, subscription.close(), "close waits at most one second for running handlers")
        blocked.gate.set()
