"""Drivers on loopback, and receivers that record data."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from micro_tls_tunnel import create
from micro_tls_tunnel.driver import TlsTunnel
from micro_tls_tunnel.link import TlsLink
from micro_tls_tunnel.options import TlsOptions

from micro_core.contract import CountersInMemory, DriverContext, Link, MicroError

TIMEOUT_S = 15.0


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Reader:
    """A receiver that records data and wakes up waiting tests."""

    def __init__(self, link: Link) -> None:
        assert isinstance(link, TlsLink)
        self.link = link
        self.received = bytearray()
        self.writable = 0
        self.error: MicroError | None = None
        self.changed = asyncio.Event()
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        assert lane == 0
        self.received += data
        self.changed.set()

    def lane_writable(self, lane: int) -> None:
        assert lane == 0
        self.writable += 1
        self.changed.set()

    def link_lost(self, error: MicroError) -> None:
        assert self.error is None, "link_lost was called twice"
        self.error = error
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Node:
    """A driver with its counters and accepted links."""

    def __init__(self, **options: Any) -> None:
        self.counters = CountersInMemory()
        context = DriverContext(
            node_id="test",
            network="go.micro",
            site="test",
            state_dir="",
            clock=SystemTime(),
            random=random.Random(1),
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        driver = create(TlsOptions(**options), context)
        assert isinstance(driver, TlsTunnel)
        self.driver = driver
        self.accepted: asyncio.Queue[Link] = asyncio.Queue()
        self.address = ""

    async def listen(self, address: str = "127.0.0.1:0") -> Node:
        self.address = (await self.driver.listen(address, self.accepted.put_nowait)).address
        return self

    async def dial(self, other: Node) -> tuple[Reader, Reader]:
        near = Reader(await self.driver.dial(other.address, timeout_s=TIMEOUT_S))
        return near, await other.reader()

    async def reader(self) -> Reader:
        """Return a reader of the next accepted link."""
        return Reader(await asyncio.wait_for(self.accepted.get(), TIMEOUT_S))

    def read(self, link: Link) -> Reader:
        return Reader(link)

    async def wait_for_count(self, name: str, at_least: int = 1) -> None:
        """Wait until a counter has at least this value."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.count_of(name) < at_least:
                await asyncio.sleep(0.01)

    def count_of(self, name: str) -> int:
        return self.counters.values.get(name, 0)

    @property
    def target(self) -> tuple[str, int]:
        host, _, port = self.address.removeprefix("tls://").rpartition(":")
        return host, int(port)


NodeMaker = Callable[..., Node]


@pytest.fixture
async def node() -> AsyncIterator[NodeMaker]:
    """Return a function that creates nodes. They are closed at the end of the test."""
    nodes: list[Node] = []

    def make(**options: Any) -> Node:
        nodes.append(Node(**options))
        return nodes[-1]

    yield make
    for each in nodes:
        with contextlib.suppress(MicroError):
            await each.driver.close()


@pytest.fixture
async def pair(node: NodeMaker) -> tuple[Node, Node]:
    """Return a node that dials and a node that listens."""
    return node(), await node().listen()
