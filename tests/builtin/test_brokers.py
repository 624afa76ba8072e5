"""What the built-in brokers promise beyond the kit (test_conformance.py runs that): in memory, and hosted by a node."""

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
from micro_core.builtin.broker.mailbox import MAX_WAITING
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

PATIENCE_S = 10.0


def message(number: int, size: int = 1) -> Message:
    return Message(id=f"{number:032x}", body=bytes([number % 256]) * size, headers={"n": str(number)})


class Heard:
    """A handler that remembers."""

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
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Site:
    """Brokers of one site, and the host they meet at where there is one."""

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


def test_the_drivers_are_described() -> None:
    assert memory_broker.micro_broker().name == "memory"
    assert node_broker.micro_broker().name == "node"
    assert memory_registry.micro_registry().name == "memory"


async def test_one_member_of_a_queue_group_gets_each_message(site: Site) -> None:
    publisher = await site.broker()
    members, plain = [Heard() for _ in range(3)], Heard()
    for member in members:
        await (await site.broker()).subscribe("orders", member, queue="workers")
    await (await site.broker()).subscribe("orders", plain)
    for number in range(30):
        await publisher.publish("orders", message(number))
    await until(lambda: len(plain.messages) == 30 and sum(len(member.messages) for member in members) == 30)
    assert sorted(number for member in members for number in member.numbers) == list(range(30))
    assert all(len(member.messages) == 10 for member in members)


async def test_a_handler_that_fails_is_counted_and_gets_the_next_message(site: Site) -> None:
    broker, heard = await site.broker(), Heard()

    async def fails(topic: str, received: Message) -> None:
        await heard(topic, received)
        raise RuntimeError("no")

    await broker.subscribe("orders", fails)
    await broker.publish("orders", message(1))
    await broker.publish("orders", message(2))
    await until(lambda: heard.numbers == [1, 2])
    await until(lambda: site.counters.values.get("broker_handlers_failed") == 2)


async def test_a_slow_subscriber_loses_the_newest_and_slows_nobody_else(site: Site) -> None:
    publisher, slow, quick = await site.broker(), Heard(), Heard()
    slow.gate.clear()
    await (await site.broker()).subscribe("orders", slow)
    await (await site.broker()).subscribe("orders", quick)
    total = MAX_WAITING + 200
    for number in range(total):
        await publisher.publish("orders", message(number))
        if number % 50 == 0:
            await until(lambda number=number: len(quick.messages) > number)  # type: ignore[misc]
    await until(lambda: len(quick.messages) == total)
    # One is with the handler, a mailbox full waits: all the others must have been dropped before it goes on.
    counted = site.counters.values
    await until(lambda: counted.get("broker_messages_dropped_slow_subscriber", 0) >= total - MAX_WAITING - 1)
    slow.gate.set()
    dropped = counted["broker_messages_dropped_slow_subscriber"]
    await until(lambda: len(slow.messages) == total - dropped)
    assert 0 < dropped <= 200
    assert slow.numbers == list(range(total - dropped))


async def test_the_node_itself_publishes_and_hears_without_a_socket(hosted: Site) -> None:
    await hosted.start_host()
    assert hosted.host is not None
    local, remote = hosted.host.local_broker(), await hosted.broker()
    heard_here, heard_there = Heard(), Heard()
    await local.subscribe("orders", heard_here)
    await remote.subscribe("orders", heard_there)
    await local.publish("orders", message(1))
    await remote.publish("orders", message(2))
    await until(lambda: heard_here.numbers == heard_there.numbers == [1, 2])
    await local.close()


async def test_a_subscription_made_before_the_host_is_there_comes_into_force_with_it(hosted: Site) -> None:
    broker, heard = await hosted.broker(subscribe_timeout_s=0.05), Heard()
    await broker.subscribe("orders", heard)
    await hosted.start_host()
    await broker.publish("orders", message(1))
    await until(lambda: heard.numbers == [1])


async def test_subscriptions_are_made_again_when_the_host_comes_back_elsewhere(hosted: Site) -> None:
    await hosted.start_host()
    broker, heard = await hosted.broker(), Heard()
    await broker.subscribe("orders", heard)
    await broker.publish("orders", message(1))
    await until(lambda: heard.numbers == [1])
    assert hosted.host is not None
    first = hosted.host
    await hosted.registry.deregister(
        Instance(service="go.micro.broker", id="go.micro.broker-host", address=first.address)
    )
    await first.close()
    await hosted.start_host()
    assert hosted.host.address != first.address
    await broker.publish("orders", message(2))
    await until(lambda: heard.numbers == [1, 2])


async def test_a_publication_without_a_host_fails_in_time_and_says_what_to_do(hosted: Site) -> None:
    broker = await hosted.broker(publish_timeout_s=0.1)
    with pytest.raises(Unreachable) as caught:
        await broker.publish("orders", message(1))
    assert "micro run" in caught.value.hint
