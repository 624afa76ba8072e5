"""Brokers that each violate one clause of the contract, derived from a correct one."""

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
        self.is_available = True
        self.keeps_subscriptions = True
        self.hubs: dict[str, Subscribers] = {}

    async def kill(self) -> None:
        self.is_available = False
        if not self.keeps_subscriptions:
            for hub in self.hubs.values():
                hub._topics.clear()

    async def restart(self) -> None:
        self.is_available = True


class Correct(HubBroker):
    """Fulfils the contract, without the capability `durable`."""

    def __init__(self, back_end: BackEnd, context: DriverContext) -> None:
        super().__init__(lambda: back_end.hubs.setdefault(context.network, Subscribers()), context.counters)
        self.back_end = back_end

    async def publish(self, topic: str, message: Message) -> None:
        if not self.back_end.is_available:
            raise Unreachable("the broker is not available")
        await super().publish(topic, message)


class DuplicatesMessages(Correct):
    async def publish(self, topic: str, message: Message) -> None:
        await super().publish(topic, message)
        await super().publish(topic, message)


class IgnoresQueueGroups(Correct):
    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        subscription = await super().subscribe(topic, handler)
        subscription.queue = queue
        return subscription


class FavoursOneMember(Correct):
    async def publish(self, topic: str, message: Message) -> None:
        await super().publish(topic, message)
        for entry in self._hub()._topics.values():
            for members in entry.queues.values():
                members.insert(0, members.pop())


class AwaitsHandlersInPublish(Correct):
    """`publish` waits for the handlers, one after the other."""

    handlers: dict[str, list[MessageHandler]] = {}  # noqa: RUF012 - shared by the drivers of a test on purpose

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        self.handlers.setdefault(self.hub_name(), []).append(handler)
        return await super().subscribe(f"{topic}.unused", handler, queue=queue)

    async def publish(self, topic: str, message: Message) -> None:
        for handler in self.handlers.get(self.hub_name(), []):
            await handler(topic, message)

    def hub_name(self) -> str:
        return next(iter(self.back_end.hubs), "")


class ReversesMessages(Correct):
    delayed: list[tuple[str, Message]]

    async def publish(self, topic: str, message: Message) -> None:
        delayed = self.__dict__.setdefault("delayed", [])
        delayed.append((topic, message))
        if len(delayed) == 2:
            for entry in reversed(delayed):
                await super().publish(*entry)
            delayed.clear()


class LosesHeaders(Correct):
    async def publish(self, topic: str, message: Message) -> None:
        kept = {name: value for name, value in message.headers.items() if name == "n"}
        await super().publish(topic, replace(message, headers=kept))


class DeliversAfterUnsubscribing(Correct):
    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        subscription = await super().subscribe(topic, handler, queue=queue)

        async def close() -> None:
            """Do nothing."""

        subscription.close = close  # type: ignore[method-assign]  # the violation: close has no effect
        return subscription


class AcceptsOversizedMessages(Correct):
    async def publish(self, topic: str, message: Message) -> None:
        if len(message.body) < 20_000_000:
            await super().publish(topic, message)


class HangsDuringOutage(Correct):
    async def publish(self, topic: str, message: Message) -> None:
        while not self.back_end.is_available:
            await asyncio.sleep(0.01)
        await super().publish(topic, message)


class LosesSubscriptionsInOutage(Correct):
    """Loses its subscriptions when the back end is killed."""

    def __init__(self, back_end: BackEnd, context: DriverContext) -> None:
        super().__init__(back_end, context)
        back_end.keeps_subscriptions = False


class Kit(BrokerConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    timeout_s = 1.0  # short, because broken drivers never do what is awaited
    redelivery_timeout_s = 1.0
    capabilities: frozenset[str] = frozenset({"queue-groups"})

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Broker]:
        back_end = BackEnd()

        def create(_options: NoOptions, context: DriverContext) -> Broker:
            return self.driver_class(back_end, context)

        driver: Driver[Broker] = Driver(
            name="broken", summary="A driver that violates the contract.", options=NoOptions, create=create
        )
        return DriverUnderTest(driver=driver, capabilities=self.capabilities, faults=back_end)


class TestCorrect(Kit):
    driver_class = Correct
    timeout_s = 10.0


class TestDuplicatesMessages(Kit):
    driver_class = DuplicatesMessages


class TestIgnoresQueueGroups(Kit):
    driver_class = IgnoresQueueGroups


class TestFavoursOneMember(Kit):
    driver_class = FavoursOneMember


class TestAwaitsHandlersInPublish(Kit):
    driver_class = AwaitsHandlersInPublish


class TestReversesMessages(Kit):
    driver_class = ReversesMessages


class TestLosesHeaders(Kit):
    driver_class = LosesHeaders


class TestDeliversAfterUnsubscribing(Kit):
    driver_class = DeliversAfterUnsubscribing


class TestAcceptsOversizedMessages(Kit):
    driver_class = AcceptsOversizedMessages


class TestHangsDuringOutage(Kit):
    driver_class = HangsDuringOutage


class TestLosesSubscriptionsInOutage(Kit):
    driver_class = LosesSubscriptionsInOutage


class TestOnlyDeclaresDurable(Kit):
    driver_class = Correct
    capabilities = frozenset({"durable"})


class TestOnlyDeclaresWildcards(Kit):
    driver_class = Correct
    capabilities = frozenset({"wildcards"})
