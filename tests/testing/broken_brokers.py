"""Brokers that break one promise each, made from one that keeps them all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from micro_core.builtin.broker.hub import HubBroker
from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.contract import (
    Broker,
    Driver,
    DriverContext,
    Message,
    MessageHandler,
    NoOptions,
    Subscription,
    Unreachable,
)
from micro_core.testing import BrokerConformance, DriverUnderTest, Faults


class BackEnd(Faults):
    def __init__(self) -> None:
        self.is_away = False
        self.keeps_subscriptions = True
        self.hubs: dict[str, Subscribers] = {}

    async def kill(self) -> None:
        self.is_away = True
        if not self.keeps_subscriptions:
            for hub in self.hubs.values():
                hub._topics.clear()

    async def restart(self) -> None:
        self.is_away = False


class Sound(HubBroker):
    """Keeps every promise but `durable`."""

    def __init__(self, back_end: BackEnd, context: DriverContext) -> None:
        super().__init__(lambda: back_end.hubs.setdefault(context.network, Subscribers()), context.counters)
        self.back_end = back_end

    async def publish(self, topic: str, message: Message) -> None:
        if self.back_end.is_away:
            raise Unreachable("the broker is away")
        await super().publish(topic, message)


class Duplicates(Sound):
    async def publish(self, topic: str, message: Message) -> None:
        await super().publish(topic, message)
        await super().publish(topic, message)


class LosesQueueGroups(Sound):
    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        made = await super().subscribe(topic, handler)
        made.queue = queue
        return made


class FavoursOneMember(Sound):
    async def publish(self, topic: str, message: Message) -> None:
        await super().publish(topic, message)
        for entry in self._hub()._topics.values():
            for members in entry.queues.values():
                members.insert(0, members.pop())


class SlowsEverybody(Sound):
    """The publisher waits for the handlers, one after the other."""

    handlers: dict[str, list[MessageHandler]] = {}  # noqa: RUF012 - shared by all of a test on purpose

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        self.handlers.setdefault(self.hub_name(), []).append(handler)
        return await super().subscribe(f"{topic}.unused", handler, queue=queue)

    async def publish(self, topic: str, message: Message) -> None:
        for handler in self.handlers.get(self.hub_name(), []):
            await handler(topic, message)

    def hub_name(self) -> str:
        return next(iter(self.back_end.hubs), "")


class Reverses(Sound):
    held: list[tuple[str, Message]]

    async def publish(self, topic: str, message: Message) -> None:
        held = self.__dict__.setdefault("held", [])
        held.append((topic, message))
        if len(held) == 2:
            for entry in reversed(held):
                await super().publish(*entry)
            held.clear()


class LosesHeaders(Sound):
    async def publish(self, topic: str, message: Message) -> None:
        kept = {name: value for name, value in message.headers.items() if name == "n"}
        await super().publish(topic, replace(message, headers=kept))


class HearsAfterTheEnd(Sound):
    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        made = await super().subscribe(topic, handler, queue=queue)

        async def close() -> None:
            """Does nothing."""

        made.close = close  # type: ignore[method-assign]  # that it does nothing is the point
        return made


class TakesAnything(Sound):
    async def publish(self, topic: str, message: Message) -> None:
        if len(message.body) < 20_000_000:
            await super().publish(topic, message)


class HangsWhenAway(Sound):
    async def publish(self, topic: str, message: Message) -> None:
        while self.back_end.is_away:
            await asyncio.sleep(0.01)
        await super().publish(topic, message)


class ForgetsSubscriptions(Sound):
    """Loses them with the back end."""

    def __init__(self, back_end: BackEnd, context: DriverContext) -> None:
        super().__init__(back_end, context)
        back_end.keeps_subscriptions = False


class Kit(BrokerConformance):
    """The kit of one of them."""

    made: type[Sound]
    patience_s = 1.0  # what never comes is not waited for any longer
    redelivery_s = 1.0
    capabilities: frozenset[str] = frozenset({"queue-groups"})

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Broker]:
        back_end = BackEnd()

        def create(_options: NoOptions, context: DriverContext) -> Broker:
            return self.made(back_end, context)

        driver: Driver[Broker] = Driver(name="broken", summary="Breaks.", options=NoOptions, create=create)
        return DriverUnderTest(driver=driver, capabilities=self.capabilities, faults=back_end)


class TestSound(Kit):
    made = Sound
    patience_s = 10.0


class TestDuplicates(Kit):
    made = Duplicates


class TestLosesQueueGroups(Kit):
    made = LosesQueueGroups


class TestFavoursOneMember(Kit):
    made = FavoursOneMember


class TestSlowsEverybody(Kit):
    made = SlowsEverybody


class TestReverses(Kit):
    made = Reverses


class TestLosesHeaders(Kit):
    made = LosesHeaders


class TestHearsAfterTheEnd(Kit):
    made = HearsAfterTheEnd


class TestTakesAnything(Kit):
    made = TakesAnything


class TestHangsWhenAway(Kit):
    made = HangsWhenAway


class TestForgetsSubscriptions(Kit):
    made = ForgetsSubscriptions


class TestOnlySaysDurable(Kit):
    made = Sound
    capabilities = frozenset({"durable"})


class TestOnlySaysWildcards(Kit):
    made = Sound
    capabilities = frozenset({"wildcards"})
