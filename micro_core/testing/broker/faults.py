"""Checks of the broker kit that inject faults into the back end. They need a fault handle."""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar

import pytest

from micro_core.contract import Broker, Unreachable
from micro_core.testing.broker.support import TOPIC, BrokerKit, MessageRecorder, message
from micro_core.testing.kit.conformance import requires
from micro_core.testing.kit.faults import back_end_killed, back_end_slowed, loop_not_blocked
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within


class BrokerFaultChecks(BrokerKit):
    """Checks that calls end in time during a fault, and that subscriptions recover after it."""

    pause_s: ClassVar[float] = 2.0
    """Seconds for which the back end is paused."""

    async def expect_recovery(self, publisher: Broker, *recorders: MessageRecorder) -> None:
        """Publish messages repeatedly until each of these subscribers has received a new one."""
        before = [len(recorder.messages) for recorder in recorders]
        numbers = itertools.count(1_000)

        async def all_received() -> bool:
            await self.try_publish(publisher, next(numbers))
            await asyncio.sleep(0.02)
            return all(len(recorder.messages) > count for recorder, count in zip(recorders, before, strict=True))

        await until(all_received, self.timeout_s, "a subscription survives reconnects and receives again")

    @requires(faults=("kill", "restart"))
    async def test_unavailable_back_end_raises_unreachable_in_time(self, harness: Harness[Broker]) -> None:
        broker, recorder = await harness.open(), MessageRecorder()
        await self.subscribe(broker, recorder)
        async with back_end_killed(self.faults(harness)):
            clause = "publish raises Unreachable in time if the broker is not available"
            with pytest.raises(Unreachable) as caught:
                await within(self.timeout_s, broker.publish(TOPIC, message(1)), clause)
            assert caught.value.detail.strip(), "Unreachable contains the reason"

    @requires(faults=("kill", "restart"))
    async def test_subscriptions_survive_a_back_end_outage(self, harness: Harness[Broker]) -> None:
        await self._check_recovery(harness, empty=False)

    @requires(faults=("kill", "wipe"))
    async def test_subscriptions_survive_back_end_data_loss(self, harness: Harness[Broker]) -> None:
        await self._check_recovery(harness, empty=True)

    async def _check_recovery(self, harness: Harness[Broker], *, empty: bool) -> None:
        publisher, plain, members = (
            await harness.open(),
            [MessageRecorder(), MessageRecorder()],
            [MessageRecorder(), MessageRecorder()],
        )
        for recorder in plain:
            await self.subscribe(await harness.open(), recorder)
        for member in members:
            await self.subscribe(await harness.open(), member, queue="workers")
        await publisher.publish(TOPIC, message(0))
        for recorder in plain:
            await self.expect_messages(recorder, range(1))
        async with back_end_killed(self.faults(harness), empty=empty):
            await asyncio.sleep(0.1)
        await self.expect_recovery(publisher, *plain, *members)
        # All drivers have reconnected, so delivery is complete again from here on.
        for number in range(2_000_000, 2_000_020):
            assert await self.try_publish(publisher, number), "the driver reconnects to an available broker"

        def new(recorders: list[MessageRecorder]) -> list[int]:
            return sorted(number for recorder in recorders for number in recorder.numbers if number >= 2_000_000)

        await until(
            lambda: len(new(plain)) >= 40 and len(new(members)) >= 20, self.timeout_s, "subscribers receive again"
        )
        assert new(plain[:1]) == new(plain[1:]) == list(range(2_000_000, 2_000_020)), (
            "after a reconnect each subscription is active exactly once"
        )
        assert new(members) == list(range(2_000_000, 2_000_020)), (
            "after a reconnect one member of a queue group receives each message"
        )

    @requires(faults=("kill", "restart"))
    async def test_close_does_not_wait_for_an_unavailable_back_end(self, harness: Harness[Broker]) -> None:
        broker, recorder = await harness.open(), MessageRecorder()
        await self.subscribe(broker, recorder)
        async with back_end_killed(self.faults(harness)):
            await within(self.timeout_s, harness.close(broker), "close returns although the back end is not available")

    @requires(faults=("pause", "resume"))
    async def test_paused_back_end_does_not_block_the_event_loop(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, recorder = await harness.open(), await harness.open(), MessageRecorder()
        await self.subscribe(subscriber, recorder)
        await self.faults(harness).pause()
        try:
            async with loop_not_blocked(self.pause_s / 2, "a paused back end does not block the event loop"):
                calls = [asyncio.create_task(self.try_publish(publisher, number)) for number in range(5)]
                await asyncio.sleep(self.pause_s)
        finally:
            await self.faults(harness).resume()
        await within(self.timeout_s, asyncio.gather(*calls), "publish succeeds or raises Unreachable")
        await self.expect_recovery(publisher, recorder)

    @requires(faults=("pause", "resume"))
    async def test_slow_back_end_only_delays_operations(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, recorder = await harness.open(), await harness.open(), MessageRecorder()
        await self.subscribe(subscriber, recorder)
        async with back_end_slowed(self.faults(harness)):
            for number in range(30):
                await within(
                    self.timeout_s, publisher.publish(TOPIC, message(number)), "publish completes on a slow back end"
                )
            await self.expect_messages(recorder, range(30), "a slow back end loses no message and keeps the order")

    @requires(faults=("garbage",))
    async def test_garbage_is_counted_and_reaches_no_handler(self, harness: Harness[Broker]) -> None:
        publisher, subscriber, recorder = await harness.open(), await harness.open(), MessageRecorder()
        await self.subscribe(subscriber, recorder)
        await publisher.publish(TOPIC, message(0))
        await self.expect_messages(recorder, range(1))
        await self.faults(harness).garbage(harness.context())
        for number in range(1, 10):
            await publisher.publish(TOPIC, message(number))
        await self.expect_messages(recorder, range(10), "garbage reaches no handler, and later messages do")
        assert harness.counters_of(subscriber), "dropped garbage is counted (context.counters)"
