"""The kit of the broker role: topics, queue groups, subscribers that fail or are slow, faults."""

from __future__ import annotations

import itertools
import secrets

import pytest

from micro_core.contract import BadRequest, Broker, Message, TooLarge, Unreachable
from micro_core.testing.broker.durable import BrokerDurableParts
from micro_core.testing.broker.faults import BrokerFaultParts
from micro_core.testing.broker.support import TOPIC, Heard, message
from micro_core.testing.kit.comparing import assert_same_bytes
from micro_core.testing.kit.conformance import needs
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within


class BrokerConformance(BrokerFaultParts, BrokerDurableParts):
    """Inherit it, supply `driver_under_test`."""

    # ---------------------------------------------------------------------- topics

    async def test_every_subscriber_receives_every_message_once_and_in_order(self, harness: Harness[Broker]) -> None:
        publisher, one, two = await harness.open(), await harness.open(), await harness.open()
        heard = [Heard(), Heard(), Heard()]
        await self.subscribed(one, heard[0])
        await self.subscribed(two, heard[1])
        await self.subscribed(publisher, heard[2])
        sent = [message(number) for number in range(200)]
        for published in sent:
            await publisher.publish(TOPIC, published)
        for each in heard:
            await self.heard(each, range(200))
            assert each.messages == sent, "a message arrives as it was: id, body, content type, headers"
            assert set(each.topics) == {TOPIC}, "the handler is called with the topic"

    async def test_a_message_arrives_whole(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        heard = Heard()
        await self.subscribed(subscriber, heard)
        odd = [
            Message(id=secrets.token_hex(16), body=b"", headers={"n": "0"}),
            Message(
                id=secrets.token_hex(16), body=bytes(range(256)), content_type="application/json", headers={"n": "1"}
            ),
            Message(id=secrets.token_hex(16), body=b"x", headers={"n": "2", "micro-origin": "a", "Ünï": "x: y\tz"}),
            message(3, secrets.token_bytes(self.large_message_bytes)),
        ]
        for each in odd:
            await publisher.publish(TOPIC, each)
        await self.heard(heard, range(4))
        for sent, received in zip(odd, heard.messages, strict=True):
            assert_same_bytes(received.body, sent.body, "a body arrives as it was")
            assert (received.id, received.content_type) == (sent.id, sent.content_type), "id and content type too"
            own = {name: value for name, value in received.headers.items() if not name.startswith("micro-")}
            expected = {name: value for name, value in sent.headers.items() if not name.startswith("micro-")}
            assert own == expected, "headers arrive as they were"

    async def test_a_topic_is_heard_by_those_who_asked_for_it(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        heard, elsewhere = Heard(), Heard()
        await self.subscribed(broker, heard)
        await self.subscribed(broker, elsewhere, topic="orders")
        for number, topic in ((1, "orders.created.eu"), (2, "orders"), (3, TOPIC)):
            await broker.publish(topic, message(number))
        await until(lambda: heard.numbers and elsewhere.numbers, self.patience_s, "every subscriber receives its topic")
        assert (heard.numbers, elsewhere.numbers) == ([3], [2]), "a subscriber hears its own topic and no other"

    async def test_networks_do_not_hear_each_other(self, harness: Harness[Broker]) -> None:
        if harness.driver_under_test.registry is not None:
            pytest.skip("the driver meets the others through a registry, which is of one network")
        here, beyond = await harness.open(), await harness.open(network=f"{harness.network}.other")
        heard, heard_beyond = Heard(), Heard()
        await self.subscribed(here, heard)
        await self.subscribed(beyond, heard_beyond)
        await here.publish(TOPIC, message(1))
        await beyond.publish(TOPIC, message(2))
        await until(lambda: heard.numbers and heard_beyond.numbers, self.patience_s, "subscribers receive")
        assert (heard.numbers, heard_beyond.numbers) == ([1], [2]), "networks do not hear each other"

    async def test_several_subscriptions_of_one_topic_each_receive(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        heard = [Heard() for _ in range(3)]
        for each in heard:
            await self.subscribed(broker, each)
        for number in range(10):
            await broker.publish(TOPIC, message(number))
        for each in heard:
            await self.heard(each, range(10))

    async def test_nothing_comes_after_unsubscribing(self, harness: Harness[Broker]) -> None:
        broker, gone, stays = await harness.open(), Heard(), Heard()
        subscription = await self.subscribed(broker, gone)
        await self.subscribed(broker, stays)
        assert (subscription.topic, subscription.queue) == (TOPIC, ""), "a subscription knows its topic and queue"
        await within(self.patience_s, subscription.close(), "close of a subscription returns")
        for number in range(5):
            await broker.publish(TOPIC, message(number))
        await self.heard(stays, range(5))
        assert gone.messages == [], "nothing comes after unsubscribing"

    async def test_what_is_no_topic_is_refused(self, harness: Harness[Broker]) -> None:
        broker = await harness.open()
        for topic in ("", "a b", "a\n"):
            with pytest.raises(BadRequest):
                await broker.publish(topic, message(1))
            with pytest.raises(BadRequest):
                await broker.subscribe(topic, Heard())

    async def test_a_message_over_the_bound_is_refused_at_once(self, harness: Harness[Broker]) -> None:
        broker, heard = await harness.open(), Heard()
        await self.subscribed(broker, heard)
        with pytest.raises(TooLarge):
            await within(
                self.patience_s, broker.publish(TOPIC, message(1, bytes(self.too_large_message_bytes))), "publish"
            )
        await broker.publish(TOPIC, message(2))
        await until(lambda: heard.numbers, self.patience_s, "a message that was refused disturbs no other")
        assert heard.numbers == [2]

    @needs(capability="wildcards")
    async def test_a_pattern_hears_the_topics_that_fit(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        one_part, the_rest = Heard(), Heard()
        await self.subscribed(subscriber, one_part, topic="orders.*.eu")
        await self.subscribed(subscriber, the_rest, topic="orders.>")
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
        await until(
            lambda: 6 in one_part.numbers and 6 in the_rest.numbers, self.patience_s, "a pattern hears what fits"
        )
        assert one_part.topics == ["orders.created.eu", "orders.z.eu"], "`*` stands for one part between dots"
        assert the_rest.topics == [topics[number] for number in (1, 2, 3, 4, 6)], (
            "`>` stands for the rest, one part or more"
        )

    # ------------------------------------------------------------------ queue groups

    async def test_one_member_of_a_queue_group_receives_each_message(self, harness: Harness[Broker]) -> None:
        publisher, members, plain, others = await harness.open(), [Heard() for _ in range(3)], Heard(), Heard()
        for member in members:
            await self.subscribed(await harness.open(), member, queue="workers")
        await self.subscribed(await harness.open(), plain)
        await self.subscribed(await harness.open(), others, queue="others")
        for number in range(60):
            await publisher.publish(TOPIC, message(number))
        await self.heard(plain, range(60), "a subscriber without a queue receives every message")
        await self.heard(others, range(60), "each queue group receives every message")
        await until(
            lambda: sum(len(member.numbers) for member in members) >= 60,
            self.patience_s,
            "a member of the group receives each message",
        )
        got = sorted(number for member in members for number in member.numbers)
        assert got == list(range(60)), "of a queue group, exactly one member receives each message"

    @needs(capability="queue-groups")
    async def test_members_of_a_queue_group_share_the_work(self, harness: Harness[Broker]) -> None:
        publisher, members = await harness.open(), [Heard() for _ in range(3)]
        for member in members:
            await self.subscribed(await harness.open(), member, queue="workers")
        counter = itertools.count()

        async def all_have_some() -> bool:
            await publisher.publish(TOPIC, message(next(counter)))
            return all(member.messages for member in members)

        await until(all_have_some, self.patience_s, "no member of a queue group that keeps up is left out")

    async def test_a_member_that_leaves_its_group_takes_nothing_with_it(self, harness: Harness[Broker]) -> None:
        publisher, leaves, stays = await harness.open(), Heard(), Heard()
        subscription = await self.subscribed(await harness.open(), leaves, queue="workers")
        await self.subscribed(await harness.open(), stays, queue="workers")
        await within(self.patience_s, subscription.close(), "close of a subscription returns")
        for number in range(20):
            await publisher.publish(TOPIC, message(number))
        await self.heard(stays, range(20), "the members that stay receive what comes")
        assert leaves.messages == [], "nothing comes after unsubscribing"

    # ---------------------------------------------------------- subscribers that misbehave

    async def test_a_handler_that_fails_disturbs_nobody(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, heard = await harness.open(), await harness.open(), Heard()
        called: list[int] = []

        async def fails(_topic: str, received: Message) -> None:
            called.append(int(received.headers["n"]))
            raise RuntimeError("a handler that fails, on purpose")

        await self.subscribed(subscriber, fails)
        await self.subscribed(subscriber, heard)
        for number in range(3):
            await publisher.publish(TOPIC, message(number))
        await self.heard(heard, range(3), "a handler that fails disturbs nobody else")
        await until(lambda: {0, 1, 2} <= set(called), self.patience_s, "a handler that failed gets the next message")
        await until(lambda: harness.counted(subscriber), self.patience_s, "a handler that fails is counted")

    async def test_a_slow_subscriber_slows_nobody_else(self, harness: Harness[Broker]) -> None:
        publisher, quick = await harness.open(), Heard()
        slow, slow_beside = Heard(), Heard()
        for each in (slow, slow_beside):
            each.gate.clear()
        sharing = await harness.open()
        await self.subscribed(await harness.open(), slow)
        await self.subscribed(sharing, slow_beside)
        await self.subscribed(sharing, quick)
        clause = "a subscriber that does not keep up never slows another down"
        for number in range(300):
            await within(self.patience_s, publisher.publish(TOPIC, message(number)), clause)
        await self.heard(quick, range(300), clause)
        assert slow.messages == slow_beside.messages == []
        for each in (slow, slow_beside):
            each.gate.set()
        await until(
            lambda: slow.messages and slow_beside.messages, self.patience_s, "a slow subscriber gets what was kept"
        )
        for each in (slow, slow_beside):
            assert each.numbers == list(range(len(each.numbers))), (
                "a slow subscriber loses the newest, never the oldest"
            )

    # --------------------------------------------------------------------- closing

    async def test_a_closed_broker_hears_and_says_nothing(self, harness: Harness[Broker]) -> None:
        closed, stays, gone, heard = await harness.open(), await harness.open(), Heard(), Heard()
        await self.subscribed(closed, gone)
        await self.subscribed(stays, heard)
        await harness.close(closed)
        await stays.publish(TOPIC, message(0))
        await self.heard(heard, range(1))
        assert gone.messages == [], "a closed broker hears nothing"
        with pytest.raises(Unreachable):
            await within(self.patience_s, closed.publish(TOPIC, message(1)), "a closed broker answers at once")

    async def test_a_subscription_s_close_waits_a_second_for_its_handler_at_most(
        self, harness: Harness[Broker]
    ) -> None:
        broker, stuck = await harness.open(), Heard()
        stuck.gate.clear()
        subscription = await self.subscribed(broker, stuck)
        await broker.publish(TOPIC, message(1))
        await until(lambda: stuck.is_waiting, self.patience_s, "every subscriber receives every message")
        await within(3.0, subscription.close(), "close awaits running handlers for at most one second")
        stuck.gate.set()
