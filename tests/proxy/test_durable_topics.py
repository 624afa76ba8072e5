"""Messages of a durable broker: one group per interested site, at the leader only, and repeated until they arrive."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from micro_core.contract import CountersInMemory, InternalError, Message, MicroError, TooLarge, Unreachable
from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.proxy import durable_topics as module
from micro_core.proxy.durable_topics import DurableTopics


class Router:
    """The interest of some nodes, as (node id, site)."""

    def __init__(self) -> None:
        self.interest: list[tuple[str, str]] = []

    def lookup(self, service: str) -> list[Route]:
        return [
            Route(
                service=service,
                address="",
                gateway=node,
                network="net",
                router=node,
                link=NETWORK_LINK,
                metric=1,
                site=site,
            )
            for node, site in self.interest
        ]


class GroupBroker:
    """Records open groups and passes messages to their handlers."""

    is_durable = True

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def subscribe_group(self, topic: str, handler: Any, *, group: str, max_concurrent: int) -> Any:
        broker = self
        self.handlers[group] = handler

        class Subscription:
            async def close(self) -> None:
                del broker.handlers[group]
                await broker.may_close.wait()

        assert max_concurrent > 1
        return Subscription()


@pytest.fixture
def counters() -> CountersInMemory:
    return CountersInMemory()


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def broker() -> GroupBroker:
    return GroupBroker()


@pytest.fixture
def topics(router: Router, broker: GroupBroker, counters: CountersInMemory) -> DurableTopics:
    environment = Environment(
        node_id="me",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=counters,
    )
    caller: Any = None
    routes: Any = router
    return DurableTopics(site="eu", router=routes, caller=caller, broker=broker, environment=environment)


async def test_leader_has_one_group_per_interested_site(
    topics: DurableTopics, router: Router, broker: GroupBroker
) -> None:
    router.interest = [("a", "us"), ("b", "us"), ("c", "asia"), ("d", "eu")]
    await topics.reconcile("orders", is_leader=True)
    assert sorted(broker.handlers) == ["micro-site-asia", "micro-site-us"]
    router.interest = [("b", "us")]
    await topics.reconcile("orders", is_leader=True)
    await asyncio.sleep(0)
    assert (list(broker.handlers), topics.topics()) == (["micro-site-us"], ["orders"])
    await topics.close()
    assert broker.handlers == {}


async def test_other_nodes_of_the_site_have_no_group(
    topics: DurableTopics, router: Router, broker: GroupBroker
) -> None:
    router.interest = [("a", "us")]
    await topics.reconcile("orders", is_leader=False)
    assert (broker.handlers, topics.topics()) == ({}, [])
    await topics.reconcile("orders", is_leader=True)
    await topics.reconcile("orders", is_leader=False)
    await asyncio.sleep(0)
    assert (broker.handlers, topics.topics()) == ({}, [])


async def test_group_that_closes_slowly_does_not_delay_others(
    topics: DurableTopics, router: Router, broker: GroupBroker
) -> None:
    router.interest = [("a", "us")]
    await topics.reconcile("orders", is_leader=True)
    broker.may_close.clear()
    router.interest = [("c", "asia")]
    async with asyncio.timeout(5.0):
        await topics.reconcile("orders", is_leader=True)
    assert "micro-site-asia" in broker.handlers
    closing = asyncio.create_task(topics.close())
    await asyncio.sleep(0)
    assert not closing.done(), "`close` waits for it"
    broker.may_close.set()
    await closing
    assert broker.handlers == {}


async def deliver(
    topics: DurableTopics, router: Router, broker: GroupBroker, monkeypatch: pytest.MonkeyPatch, *errors: MicroError
) -> int:
    """Deliver a message to the site `us`, whose answers are `errors` and then success. Return the number of calls."""
    monkeypatch.setattr(module, "INITIAL_RETRY_S", 0.001)
    monkeypatch.setattr(module, "MAX_RETRY_S", 0.002)
    answers = list(errors)
    calls = 0

    async def call(site: str, topic: str, body: bytes) -> None:
        nonlocal calls
        calls += 1
        assert (site, topic) == ("us", "orders")
        if answers:
            raise answers.pop(0)

    monkeypatch.setattr(topics, "_call", call)
    router.interest = [("a", "us")]
    await topics.reconcile("orders", is_leader=True)
    await broker.handlers["micro-site-us"]("orders", Message(id="1", body=b"x"))
    return calls


async def test_message_is_repeated_until_the_site_has_it(
    topics: DurableTopics,
    router: Router,
    broker: GroupBroker,
    counters: CountersInMemory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await deliver(topics, router, broker, monkeypatch, Unreachable("1"), Unreachable("2")) == 3
    assert counters.values == {"topics_deliveries_retried": 2, "topics_messages_sent": 1}


async def test_message_that_the_site_refuses_is_not_repeated(
    topics: DurableTopics,
    router: Router,
    broker: GroupBroker,
    counters: CountersInMemory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TooLarge):
        await deliver(topics, router, broker, monkeypatch, TooLarge("more than 1 MiB"))
    assert counters.values == {"topics_messages_refused": 1}


async def test_message_that_causes_internal_errors_is_not_repeated_for_ever(
    topics: DurableTopics,
    router: Router,
    broker: GroupBroker,
    counters: CountersInMemory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [InternalError("bug")] * module.MAX_INTERNAL_ERRORS
    with pytest.raises(InternalError):
        await deliver(topics, router, broker, monkeypatch, *errors)
    assert counters.values == {
        "topics_deliveries_retried": module.MAX_INTERNAL_ERRORS - 1,
        "topics_messages_refused": 1,
    }


async def test_message_of_another_site_stays_on_this_site(
    topics: DurableTopics, router: Router, broker: GroupBroker
) -> None:
    router.interest = [("a", "us")]
    await topics.reconcile("orders", is_leader=True)
    await broker.handlers["micro-site-us"](
        "orders", Message(id="1", body=b"x", headers={"micro-delivered-by": "other"})
    )
