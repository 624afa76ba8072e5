"""Checks of the broker kit for the capability `durable`."""

from __future__ import annotations

from typing import ClassVar

from micro_core.contract import Broker, Message
from micro_core.testing.broker.support import TOPIC, BrokerKit, MessageRecorder, message
from micro_core.testing.kit.conformance import requires
from micro_core.testing.kit.faults import back_end_killed
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until


class BrokerDurableChecks(BrokerKit):
    """Checks of at-least-once delivery: every accepted message is handled, if necessary after several attempts."""

    redelivery_timeout_s: ClassVar[float] = 15.0
    """Seconds within which a message must be delivered again."""

    @requires(capability="durable")
    async def test_failed_message_is_redelivered(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        attempts: dict[int, int] = {}
        ids: set[str] = set()

        async def fails_at_first(_topic: str, received: Message) -> None:
            number = int(received.headers["n"])
            attempts[number] = attempts.get(number, 0) + 1
            ids.add(received.id)
            if number == 1 and attempts[number] == 1:
                raise RuntimeError("intentional failure of the first attempt")

        await self.subscribe(subscriber, fails_at_first, queue="workers")
        for number in range(3):
            await publisher.publish(TOPIC, message(number))
        clause = "a message whose handler failed is delivered again"
        await until(lambda: attempts.get(1, 0) >= 2 and {0, 2} <= set(attempts), self.redelivery_timeout_s, clause)
        assert len(ids) == 3, "a message that is delivered again keeps its id"

    @requires(capability="durable")
    async def test_message_is_kept_until_a_group_member_subscribes(self, harness: Harness[Broker]) -> None:
        publisher, member = await harness.open(), await harness.open()
        first, second = MessageRecorder(), MessageRecorder()
        await self.subscribe(member, first, queue="workers")
        await publisher.publish(TOPIC, message(0))
        await self.expect_messages(first, range(1))
        await harness.close(member)
        for number in range(1, 6):
            await publisher.publish(TOPIC, message(number))
        await self.subscribe(await harness.open(), second, queue="workers")
        clause = "messages published while a queue group has no member are kept for the next member"
        await until(lambda: {1, 2, 3, 4, 5} <= set(second.numbers), self.redelivery_timeout_s, clause)

    @requires(capability="durable", faults=("kill", "restart"))
    async def test_accepted_message_survives_a_back_end_restart(self, harness: Harness[Broker]) -> None:
        publisher, member, recorder = await harness.open(), await harness.open(), MessageRecorder()
        recorder.gate.clear()
        await self.subscribe(member, recorder, queue="workers")
        accepted = [number for number in range(20) if await self.try_publish(publisher, number)]
        assert accepted == list(range(20)), "publish returns when the broker has accepted the message"
        async with back_end_killed(self.faults(harness)):
            recorder.gate.set()
        clause = "accepted messages are handled even if the broker is restarted in between"
        await until(lambda: set(accepted) <= set(recorder.numbers), self.redelivery_timeout_s, clause)
