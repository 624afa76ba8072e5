"""Behaviour of the built-in brokers that the conformance kit does not test (see test_conformance.py)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from micro_core.builtin.broker import memory as memory_broker
from micro_core.builtin.broker import node as node_broker
from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.mailbox import MAX_QUEUED, Mailbox
from micro_core.builtin.broker.node import NodeBrokerOptions
from micro_core.builtin.registry import memory as memory_registry
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.transport import memory as memory_transport
from micro_core.contract import (
    Broker,
    CountersInMemory,
    DriverContext,
    Instance,
    Message,
    NoOptions,
    Unreachable,
)
from micro_core.lifecycle.system_clock import SystemClock

TIMEOUT_S = 10.0


def message(number: int, size: int = 1) -> Message:
    return Message(id=f"{number:032x}", body=bytes([number % 256]) * size, headers={"n": str(number)})


class RecordingHandler:
    """Records the messages that it receives. It waits while `gate` is not set."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, topic: str, received: Message) -> None:
        await self.gate.wait()
        self.messages.append(received)

    @property
    def numbers(self) -> list[int]:
        return [int(received.headers["n"]) for received in self.messages]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


class Site:
    """The brokers of one site, and the host of `broker:node`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.counters = CountersInMemory()
        self.context = DriverContext(
            node_id="test",
            network=f"net-{random.random()}",
            site="test",
            state_dir="",
            clock=SystemClock(),
            random=random.Random(1),
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        self.registry = MemoryRegistry(self.context)
        self.transport = memory_transport.create(NoOptions(), self.context)
        self.context = replace(self.context, registry=self.registry, transport=self.transport)
        self.brokers: list[Broker] = []
        self.host: BrokerHost | None = None

    async def start_host(self) -> None:
        self.host = BrokerHost(node_id="host", counters=self.counters, logger=logging.getLogger("test"))
        await self.host.start(self.transport)
        record = Instance(service="go.micro.broker", id="go.micro.broker-host", address=self.host.address)
        await self.registry.register(record, lease_s=60)

    async def broker(self, **options: Any) -> Broker:
        if self.kind == "memory":
            made = memory_broker.create(NoOptions(), self.context)
        else:
            made = node_broker.create(NodeBrokerOptions(retry_s=0.02, **options), self.context)
        await made.start()
        self.brokers.append(made)
        return made

    async def close(self) -> None:
        for broker in self.brokers:
            await broker.close()
        if self.host is not None:
            await self.host.close()
        await self.transport.close()
        await self.registry.close()


@pytest.fixture(params=["memory", "node"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    made = Site(request.param)
    await made.registry.start()
    if request.param == "node":
        await made.start_host()
    yield made
    await made.close()


@pytest.fixture
async def hosted() -> AsyncIterator[Site]:
    made = Site("node")
    await made.registry.start()
    yield made
    await made.close()


def test_drivers_have_their_names() -> None:
    assert memory_broker.micro_broker().name == "memory"
    assert node_broker.micro_broker().name == "node"
    assert memory_registry.micro_registry().name == "memory"


async def test_one_member_of_a_queue_group_receives_each_message(site: Site) -> None:
    publisher = await site.broker()
    members, plain = [RecordingHandler() for _ in range(3)], RecordingHandler()
    for member in members:
        await (await site.broker()).subscribe("orders", member, queue="workers")
    await (await site.broker()).subscribe("orders", plain)
    for number in range(30):
        await publisher.publish("orders", message(number))
    await until(lambda: len(plain.messages) == 30 and sum(len(member.messages) for member in members) == 30)
    assert sorted(number for member in members for number in member.numbers) == list(range(30))
    assert all(len(member.messages) == 10 for member in members)


async def test_failing_handler_is_counted_and_receives_the_next_message(site: Site) -> None:
    broker, handler = await site.broker(), RecordingHandler()

    async def fail(topic: str, received: Message) -> None:
        await handler(topic, received)
        raise RuntimeError("no")

    await broker.subscribe("orders", fail)
    await broker.publish("orders", message(1))
    await broker.publish("orders", message(2))
    await until(lambda: handler.numbers == [1, 2])
    await until(lambda: site.counters.values.get("broker_handlers_failed") == 2)


async def test_slow_subscriber_loses_the_newest_messages_and_does_not_delay_others(site: Site) -> None:
    publisher, slow, fast = await site.broker(), RecordingHandler(), RecordingHandler()
    slow.gate.clear()
    await (await site.broker()).subscribe("orders", slow)
    await (await site.broker()).subscribe("orders", fast)
    total = MAX_QUEUED + 200
    for number in range(total):
        await publisher.publish("orders", message(number))
        if number % 50 == 0:
            await until(lambda number=number: len(fast.messages) > number)  # type: ignore[misc]
    await until(lambda: len(fast.messages) == total)
    # One message is in the handler and MAX_QUEUED are queued. All others must be dropped before the handler continues.
    counts = site.counters.values
    await until(lambda: counts.get("broker_messages_dropped_slow_subscriber", 0) >= total - MAX_QUEUED - 1)
    slow.gate.set()
    dropped = counts["broker_messages_dropped_slow_subscriber"]
    await until(lambda: len(slow.messages) == total - dropped)
    assert 0 < dropped <= 200
    assert slow.numbers == list(range(total - dropped))


async def test_local_broker_of_the_host_publishes_and_receives(hosted: Site) -> None:
    await hosted.start_host()
    assert hosted.host is not None
    local, remote = hosted.host.local_broker(), await hosted.broker()
    local_handler, remote_handler = RecordingHandler(), RecordingHandler()
    await local.subscribe("orders", local_handler)
    await remote.subscribe("orders", remote_handler)
    await local.publish("orders", message(1))
    await remote.publish("orders", message(2))
    await until(lambda: local_handler.numbers == remote_handler.numbers == [1, 2])
    await local.close()


async def test_subscription_without_a_host_is_active_when_the_host_has_started(hosted: Site) -> None:
    broker, handler = await hosted.broker(subscribe_timeout_s=0.05), RecordingHandler()
    await broker.subscribe("orders", handler)
    await hosted.start_host()
    await broker.publish("orders", message(1))
    await until(lambda: handler.numbers == [1])


async def test_subscriptions_are_restored_at_a_host_with_another_address(hosted: Site) -> None:
    await hosted.start_host()
    broker, handler = await hosted.broker(), RecordingHandler()
    await broker.subscribe("orders", handler)
    await broker.publish("orders", message(1))
    await until(lambda: handler.numbers == [1])
    assert hosted.host is not None
    first = hosted.host
    await hosted.registry.deregister(
        Instance(service="go.micro.broker", id="go.micro.broker-host", address=first.address)
    )
    await first.close()
    await hosted.start_host()
    assert hosted.host.address != first.address
    await broker.publish("orders", message(2))
    await until(lambda: handler.numbers == [1, 2])


async def test_publish_without_a_host_is_unreachable_with_a_hint(hosted: Site) -> None:
    broker = await hosted.broker(publish_timeout_s=0.1)
    with pytest.raises(Unreachable) as caught:
        await broker.publish("orders", message(1))
    assert "micro run" in caught.value.hint


async def test_handler_that_was_cancelled_elsewhere_does_not_end_the_subscription() -> None:
    counters, received = CountersInMemory(), RecordingHandler()
    calls = 0

    async def handle(topic: str, one: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        await received(topic, one)

    mailbox = Mailbox("orders", "", handle, counters, lambda _: None)
    for number in range(2):
        mailbox.offer(message(number))
    await until(lambda: received.numbers == [1])
    assert counters.values["broker_handlers_failed"] == 1
    await mailbox.close()
