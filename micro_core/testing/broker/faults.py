"""Parts of the broker's kit: what must hold while the back end is hurt. They need a fault handle."""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar

import pytest

from micro_core.contract import Broker, Unreachable
from micro_core.testing.broker.support import TOPIC, BrokerKit, Heard, message
from micro_core.testing.kit.conformance import needs
from micro_core.testing.kit.faults import away, beating, slowed
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within


class BrokerFaultParts(BrokerKit):
    """Nothing hangs, subscriptions outlive their back end, and everything is well again when it is."""

    pause_s: ClassVar[float] = 2.0
    """How long the back end is paused."""

    async def hears_again(self, publisher: Broker, *all_heard: Heard) -> None:
        """Publish, as often as it takes, until every one of these subscribers has heard something new."""
        before = [len(heard.messages) for heard in all_heard]
        numbers = itertools.count(1_000)

        async def all_heard_something() -> bool:
            await self.published(publisher, next(numbers))
            await asyncio.sleep(0.02)
            return all(len(heard.messages) > count for heard, count in zip(all_heard, before, strict=True))

        await until(all_heard_something, self.patience_s, "a subscription survives reconnects: it hears again")

    @needs(faults=("kill", "restart"))
    async def test_a_back_end_that_is_away_is_told_in_time(self, harness: Harness[Broker]) -> None:
        broker, heard = await harness.open(), Heard()
        await self.subscribed(broker, heard)
        async with away(self.faults(harness)):
            clause = "publish raises Unreachable in time when the broker is away"
            with pytest.raises(Unreachable) as caught:
                await within(self.patience_s, broker.publish(TOPIC, message(1)), clause)
            assert caught.value.detail.strip(), "Unreachable tells why"

    @needs(faults=("kill", "restart"))
    async def test_subscriptions_survive_a_back_end_that_was_away(self, harness: Harness[Broker]) -> None:
        await self._survive(harness, empty=False)

    @needs(faults=("kill", "wipe"))
    async def test_subscriptions_survive_a_back_end_that_comes_back_empty(self, harness: Harness[Broker]) -> None:
        await self._survive(harness, empty=True)

    async def _survive(self, harness: Harness[Broker], *, empty: bool) -> None:
        publisher, plain, members = await harness.open(), [Heard(), Heard()], [Heard(), Heard()]
        for heard in plain:
            await self.subscribed(await harness.open(), heard)
        for member in members:
            await self.subscribed(await harness.open(), member, queue="workers")
        await publisher.publish(TOPIC, message(0))
        for heard in plain:
            await self.heard(heard, range(1))
        async with away(self.faults(harness), empty=empty):
            await asyncio.sleep(0.1)
        await self.hears_again(publisher, *plain, *members)
        # Everybody is back: from here on it is as if nothing had been.
        for number in range(2_000_000, 2_000_020):
            assert await self.published(publisher, number), "a broker that is there again is found again"

        def new(heards: list[Heard]) -> list[int]:
            return sorted(number for heard in heards for number in heard.numbers if number >= 2_000_000)

        await until(
            lambda: len(new(plain)) >= 40 and len(new(members)) >= 20, self.patience_s, "subscribers receive again"
        )
        assert new(plain[:1]) == new(plain[1:]) == list(range(2_000_000, 2_000_020)), "subscriptions are in force once"
        assert new(members) == list(range(2_000_000, 2_000_020)), "queue groups are queue groups still"

    @needs(faults=("kill", "restart"))
    async def test_closing_does_not_wait_for_a_back_end_that_is_away(self, harness: Harness[Broker]) -> None:
        broker, heard = await harness.open(), Heard()
        await self.subscribed(broker, heard)
        async with away(self.faults(harness)):
            await within(self.patience_s, harness.close(broker), "close returns though the back end is away")

    @needs(faults=("pause", "resume"))
    async def test_a_back_end_that_stands_still_stops_nobody_s_loop(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, heard = await harness.open(), await harness.open(), Heard()
        await self.subscribed(subscriber, heard)
        await self.faults(harness).pause()
        try:
            async with beating(
                self.pause_s / 2, "the event loop is never blocked, least of all by a back end that is still"
            ):
                calls = [asyncio.create_task(self.published(publisher, number)) for number in range(5)]
                await asyncio.sleep(self.pause_s)
        finally:
            await self.faults(harness).resume()
        await within(self.patience_s, asyncio.gather(*calls), "publish ends, well or with Unreachable")
        await self.hears_again(publisher, heard)

    @needs(faults=("pause", "resume"))
    async def test_a_slow_back_end_only_makes_things_slow(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, heard = await harness.open(), await harness.open(), Heard()
        await self.subscribed(subscriber, heard)
        async with slowed(self.faults(harness)):
            for number in range(30):
                await within(
                    self.patience_s, publisher.publish(TOPIC, message(number)), "publish ends on a slow back end"
                )
            await self.heard(heard, range(30), "a slow back end loses nothing and changes no order")

    @needs(faults=("garbage",))
    async def test_garbage_reaches_no_handler_and_stops_no_subscription(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, heard = await harness.open(), await harness.open(), Heard()
        await self.subscribed(subscriber, heard)
        await publisher.publish(TOPIC, message(0))
        await self.heard(heard, range(1))
        await self.faults(harness).garbage(harness.context())
        for number in range(1, 10):
            await publisher.publish(TOPIC, message(number))
        await self.heard(heard, range(10), "garbage reaches no handler, and the messages after it do")
        assert harness.counted(subscriber), "what is dropped is counted (context.counters)"
