"""A node that starts asks another node of its site for the ids of the messages that the site has received."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

from micro_core.contract import CountersInMemory, Unreachable
from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.proxy.delivered_ids import DELIVERED, MAX_ATTEMPTS, MAX_IDS, DeliveredIds, DeliveredRequest
from micro_core.proxy.duplicate_filter import DuplicateFilter
from micro_core.wire import codec


def node_route(node: str, site: str = "eu") -> Route:
    return Route(
        service="go.micro.network",
        address="",
        gateway=node,
        network="n",
        router=node,
        link=NETWORK_LINK,
        metric=1,
        site=site,
    )


class Caller:
    """Answers with `answer`, or fails without one."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def call(self, route: Route, endpoint: str, body: bytes, *, timeout_s: float) -> bytes:
        assert (endpoint, codec.decode(body)) == (DELIVERED, {"limit": MAX_IDS})
        self.asked.append(route.router)
        if self.answer is None:
            raise Unreachable("no link")
        return codec.encode(self.answer)


class Node:
    def __init__(self, caller: Caller) -> None:
        self.counters = CountersInMemory()
        self.duplicates = DuplicateFilter()
        environment = Environment(
            node_id="me",
            clock=SystemClock(),
            random=random.Random(1),
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        untyped: Any = caller
        self.delivered = DeliveredIds(site="eu", caller=untyped, duplicates=self.duplicates, environment=environment)

    async def routes_changed(self, *routes: Route) -> None:
        self.delivered.nodes_changed(routes)
        await self.delivered._tasks.wait()


async def test_node_of_the_same_site_with_the_smallest_id_is_asked_once() -> None:
    caller = Caller({"ids": ["b", "a"]})
    node = Node(caller)
    await node.routes_changed(node_route("aa", site="us"))
    assert caller.asked == []
    await node.routes_changed(node_route("aa", site="us"), node_route("cc"), node_route("bb"))
    await node.routes_changed(node_route("cc"))
    assert caller.asked == ["bb"]
    assert node.duplicates.known("me", 10) == ["b", "a"], "the order is kept"
    assert not node.duplicates.is_first("a", "me", 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="no answer"),
        pytest.param([], id="list"),
        pytest.param({}, id="no ids"),
        pytest.param({"ids": "a"}, id="text"),
        pytest.param({"ids": [1]}, id="number"),
        pytest.param({"ids": ["x" * 65]}, id="long id"),
        pytest.param({"ids": ["x"] * (MAX_IDS + 1)}, id="many ids"),
    ],
)
async def test_failed_request_and_invalid_answer_are_counted_and_repeated_a_few_times(answer: object) -> None:
    caller = Caller(answer)
    node = Node(caller)
    for _ in range(10):
        await node.routes_changed(node_route("bb"))
    assert len(caller.asked) == MAX_ATTEMPTS
    assert node.counters.values["topics_delivered_ids_missing"] == MAX_ATTEMPTS
    assert node.duplicates.known("me", 10) == []


async def test_answer_contains_the_newest_ids_of_this_site_only() -> None:
    node = Node(Caller())
    for number in range(5):
        node.delivered.record(f"id-{number}")
    node.duplicates.is_first("passed on", "other", 0.0)
    assert await node.delivered.answer(DeliveredRequest(limit=2)) == {"ids": ["id-4", "id-3"]}
    assert await node.delivered.answer(DeliveredRequest(limit=-1)) == {"ids": []}
    assert len((await node.delivered.answer(DeliveredRequest()))["ids"]) == 5
