"""What the parts of the broker's kit share: numbered messages, handlers that remember."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest

from micro_core.contract import Broker, Message, Role, Subscription, Unreachable
from micro_core.testing.kit.conformance import Conformance
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import fail, until, within

TOPIC = "orders.created"


def message(number: int, body: bytes = b"") -> Message:
    """A message that carries its number."""
    return Message(id=secrets.token_hex(16), body=body or b"%d" % number, headers={"n": str(number), "trace": "ä b"})


class Heard:
    """A handler that remembers what came, in order; while `gate` is not set it takes for ever."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.topics: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_waiting = False

    async def __call__(self, topic: str, received: Message) -> None:
        self.is_waiting = True
        await self.gate.wait()
        self.is_waiting = False
        self.topics.append(topic)
        self.messages.append(received)

    @property
    def numbers(self) -> list[int]:
        return [int(received.headers["n"]) for received in self.messages]


class BrokerKit(Conformance[Broker]):
    """Attributes and helpers; the parts are in the classes that inherit it."""

    role = Role.BROKER

    large_message_bytes: ClassVar[int] = 256 * 1024
    """A message that must arrive."""

    too_large_message_bytes: ClassVar[int] = 32 * 1024 * 1024
    """A message that is over every broker's bound."""

    async def exercise(self, harness: Harness[Broker]) -> None:
        publisher, subscriber = await harness.open(), await harness.open()
        heard = Heard()
        subscription = await self.subscribed(subscriber, heard)
        for number in range(20):
            await publisher.publish(TOPIC, message(number))
        await self.heard(heard, range(20))
        await subscription.close()

    async def subscribed(
        self, broker: Broker, handler: Callable[[str, Message], Awaitable[None]], *, topic: str = TOPIC, queue: str = ""
    ) -> Subscription:
        """A subscription that is in force."""
        return await within(self.patience_s, broker.subscribe(topic, handler, queue=queue), "subscribe returns")

    async def heard(
        self, heard: Heard, numbers: range, clause: str = "every subscriber receives every message"
    ) -> None:
        """Wait until as many messages have come, and compare."""
        try:
            await until(lambda: len(heard.numbers) >= len(numbers), self.patience_s, clause)
        except pytest.fail.Exception:
            missing = sorted(set(numbers) - set(heard.numbers))
            fail(
                f"{clause}: {len(missing)} of {len(numbers)} did not come, the first is number {missing[0] if missing else '?'}"
            )
        assert heard.numbers == list(numbers), f"{clause}, each once, in order"

    async def published(self, broker: Broker, number: int) -> bool:
        """Publish; False when the broker says that it is away."""
        try:
            await within(
                self.patience_s, broker.publish(TOPIC, message(number)), "publish ends, well or with Unreachable"
            )
        except Unreachable:
            return False
        return True
