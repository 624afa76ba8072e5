"""Parts of the broker's kit: what `durable` adds."""

from __future__ import annotations

from typing import ClassVar

from micro_core.contract import Broker, Message
from micro_core.testing.broker.support import TOPIC, BrokerKit, Heard, message
from micro_core.testing.kit.conformance import needs
from micro_core.testing.kit.faults import away
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until


class BrokerDurableParts(BrokerKit):
    """At least once: what was taken is handled, however often that must be tried."""

    redelivery_s: ClassVar[float] = 15.0
    """How long a message may take to come again."""

    @needs(capability="durable")
    async def test_a_message_whose_handler_failed_comes_again(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        tries: dict[int, int] = {}
        ids: set[str] = set()

        async def fails_at_first(_topic: str, received: Message) -> None:
            number = int(received.headers["n"])
            tries[number] = tries.get(number, 0) + 1
            ids.add(received.id)
            if number == 1 and tries[number] == 1:
                raise RuntimeError("a handler that fails once, on purpose")

        await self.subscribed(subscriber, fails_at_first, queue="workers")
        for number in range(3):
            await publisher.publish(TOPIC, message(number))
        clause = "a message whose handler failed comes again"
        await until(lambda: tries.get(1, 0) >= 2 and {0, 2} <= set(tries), self.redelivery_s, clause)
        assert len(ids) == 3, "a message that comes again has the id it had"

    @needs(capability="durable")
    async def test_what_is_published_while_no_member_is_there_waits_for_the_next(
        self, harness: Harness[Broker]
    ) -> None:
        publisher, member = await harness.open(), await harness.open()
        first, second = Heard(), Heard()
        await self.subscribed(member, first, queue="workers")
        await publisher.publish(TOPIC, message(0))
        await self.heard(first, range(1))
        await harness.close(member)
        for number in range(1, 6):
            await publisher.publish(TOPIC, message(number))
        await self.subscribed(await harness.open(), second, queue="workers")
        clause = "what is published while no member of a queue group is there waits for the next"
        await until(lambda: {1, 2, 3, 4, 5} <= set(second.numbers), self.redelivery_s, clause)

    @needs(capability="durable", faults=("kill", "restart"))
    async def test_what_was_taken_is_not_lost_with_the_back_end(self, harness: Harness[Broker]) -> None:
        publisher, member, heard = await harness.open(), await harness.open(), Heard()
        heard.gate.clear()
        await self.subscribed(member, heard, queue="workers")
        taken = [number for number in range(20) if await self.published(publisher, number)]
        assert taken == list(range(20)), "publish returns when the broker has taken the message"
        async with away(self.faults(harness)):
            heard.gate.set()
        clause = "what the broker has taken is handled, also when it was restarted meanwhile"
        await until(lambda: set(taken) <= set(heard.numbers), self.redelivery_s, clause)
