"""Shared code of the broker kit: numbered messages, handlers that record them, and assertions that wait for messages."""

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
    """Return a message with its number in the header `n`."""
    return Message(id=secrets.token_hex(16), body=body or b"%d" % number, headers={"n": str(number), "trace": "ä b"})


class MessageRecorder:
    """A message handler that records the received messages in order. It waits in each call while `gate` is not set."""

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
        """The numbers of the received messages in order."""
        return [int(received.headers["n"]) for received in self.messages]


class BrokerKit(Conformance[Broker]):
    """Class attributes and helper methods of the broker kit. The checks are in its subclasses."""

    role = Role.BROKER

    large_message_bytes: ClassVar[int] = 256 * 1024
    """Size of a message that must be delivered."""

    too_large_message_bytes: ClassVar[int] = 32 * 1024 * 1024
    """Size of a message that every broker rejects."""

    async def exercise(self, harness: Harness[Broker]) -> None:
        """Publish messages to one subscriber."""
        publisher, subscriber = await harness.open(), await harness.open()
        recorder = MessageRecorder()
        subscription = await self.subscribe(subscriber, recorder)
        for number in range(20):
            await publisher.publish(TOPIC, message(number))
        await self.expect_messages(recorder, range(20))
        await subscription.close()

    async def subscribe(
        self, broker: Broker, handler: Callable[[str, Message], Awaitable[None]], *, topic: str = TOPIC, queue: str = ""
    ) -> Subscription:
        """Subscribe and return when the subscription is active."""
        return await within(self.timeout_s, broker.subscribe(topic, handler, queue=queue), "subscribe returns")

    async def expect_messages(
        self, recorder: MessageRecorder, numbers: range, clause: str = "every subscriber receives every message"
    ) -> None:
        """Wait for the messages with these numbers and check that each arrives once, in order."""
        try:
            await until(lambda: len(recorder.numbers) >= len(numbers), self.timeout_s, clause)
        except pytest.fail.Exception:
            missing = sorted(set(numbers) - set(recorder.numbers))
            fail(
                f"{clause}: {len(missing)} of {len(numbers)} did not arrive, the first of them is "
                f"number {missing[0] if missing else '?'}"
            )
        assert recorder.numbers == list(numbers), f"{clause}, once and in order"

    async def try_publish(self, broker: Broker, number: int) -> bool:
        """Publish a message, and return False if that raises Unreachable."""
        try:
            await within(
                self.timeout_s, broker.publish(TOPIC, message(number)), "publish succeeds or raises Unreachable"
            )
        except Unreachable:
            return False
        return True
