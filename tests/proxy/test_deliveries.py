"""Messages of other sites that arrive as calls: each is published once, and answered when the broker has it."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from micro_core.contract import BadRequest, CountersInMemory, Message, MicroError, Overloaded, Unreachable
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.proxy import deliveries as module
from micro_core.proxy.deliveries import Deliveries, DeliverRequest
from micro_core.wire.header import EventHeader


class SlowBroker:
    """Accepts a message when `gate` is set, or raises `error`."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Message]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: MicroError | None = None

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, topic: str, message: Message) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.published.append((topic, message))

    async def subscribe(self, topic: str, handler: object, *, queue: str = "") -> object:
        raise AssertionError


def request(message_id: str = "1", topic: str = "orders") -> DeliverRequest:
    return DeliverRequest(topic=topic, id=message_id, body=b"x", headers={"n": "7"}, origin="far")


@pytest.fixture
def counters() -> CountersInMemory:
    return CountersInMemory()


@pytest.fixture
async def broker() -> SlowBroker:
    return SlowBroker()


@pytest.fixture
async def deliveries(broker: SlowBroker, counters: CountersInMemory) -> Deliveries:
    environment = Environment(
        node_id="me",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=counters,
    )
    return Deliveries(broker=broker, environment=environment)  # type: ignore[arg-type]


async def test_repeated_call_is_answered_and_published_once(
    deliveries: Deliveries, broker: SlowBroker, counters: CountersInMemory
) -> None:
    assert await deliveries.deliver(request()) == {"id": "1"}
    assert await deliveries.deliver(request()) == {"id": "1"}
    await deliveries.deliver(request(topic="other"))
    ((topic, message), (other, _)) = broker.published
    assert (topic, other, message.id, message.body) == ("orders", "other", "1", b"x")
    assert message.headers == {"n": "7", "micro-delivered-by": "me", "micro-origin": "far"}
    assert counters.values == {"topics_messages_delivered": 2, "topics_copies_dropped": 1}


async def test_call_repeated_during_the_publication_waits_for_it(deliveries: Deliveries, broker: SlowBroker) -> None:
    broker.gate.clear()
    first, second = (asyncio.create_task(deliveries.deliver(request())) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    # A caller that gives up does not undo the publication, which the other one still waits for.
    first.cancel()
    broker.gate.set()
    assert await second == {"id": "1"}
    assert len(broker.published) == 1


async def test_failed_publication_is_answered_with_the_error_and_can_be_repeated(
    deliveries: Deliveries, broker: SlowBroker
) -> None:
    broker.error = Unreachable("no server")
    with pytest.raises(Unreachable):
        await deliveries.deliver(request())
    broker.error = None
    await deliveries.deliver(request())
    assert len(broker.published) == 1


async def test_invalid_message_is_refused(deliveries: Deliveries) -> None:
    with pytest.raises(BadRequest):
        await deliveries.deliver(request(topic="a b"))
    with pytest.raises(BadRequest):
        await deliveries.deliver(request(message_id=""))


async def test_waiting_calls_and_messages_are_limited(
    deliveries: Deliveries, broker: SlowBroker, counters: CountersInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    broker.gate.clear()
    waiting = asyncio.create_task(deliveries.deliver(request()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await deliveries.deliver(request("2"))
    for number in range(2):
        deliveries.enqueue(EventHeader("orders", str(number)), b"")
    assert counters.values == {"topics_messages_dropped_slow_broker": 1}
    await deliveries.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
