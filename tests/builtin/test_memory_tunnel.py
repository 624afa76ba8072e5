"""Links within one process behave like links over a network."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import pytest

from micro_core.builtin.tunnel import memory as memory_tunnel
from micro_core.builtin.tunnel.memory import LOW_WATER_BYTES, MemoryLink, MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import (
    Conflict,
    CountersInMemory,
    DriverContext,
    Ended,
    Link,
    MicroError,
    OptionError,
)
from micro_core.lifecycle.system_clock import SystemClock

TIMEOUT_S = 10.0


class Reader:
    """A receiver that records what it receives."""

    def __init__(self, link: Link, *, start: bool = True) -> None:
        self.link = link
        self.data: dict[int, bytes] = {}
        self.writable: list[int] = []
        self.error: MicroError | None = None
        if start:
            link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        assert self.error is None
        self.data[lane] = self.data.get(lane, b"") + data

    def lane_writable(self, lane: int) -> None:
        self.writable.append(lane)

    def link_lost(self, error: MicroError) -> None:
        assert self.error is None, "link_lost was called twice"
        self.error = error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0)


def make(name: str, lanes: int = 4) -> MemoryTunnel:
    context = DriverContext(
        node_id=name,
        network="go.micro",
        site="test",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(name),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    return MemoryTunnel(MemoryTunnelOptions(lanes=lanes), context)


class Pair:
    """Two drivers and the links between them."""

    def __init__(self, here: MemoryTunnel, there: MemoryTunnel) -> None:
        self.here = here
        self.there = there
        self.accepted: list[Link] = []

    async def connect(self, *, start: bool = True) -> tuple[Reader, Reader]:
        near = await self.here.dial("memory://there", timeout_s=1.0)
        return Reader(near), Reader(self.accepted[-1], start=start)


@pytest.fixture(params=[4, 1], ids=["four-lanes", "one-lane"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    made = Pair(make("here", request.param), make("there", request.param))
    assert (await made.there.listen("", made.accepted.append)).address == "memory://there"
    yield made
    await made.here.close()
    await made.there.close()


def memory(reader: Reader) -> MemoryLink:
    assert isinstance(reader.link, MemoryLink)
    return reader.link


async def test_held_link_buffers_data_and_reports_when_the_lane_is_writable(pair: Pair) -> None:
    near, far = await pair.connect()
    memory(near).hold()
    near.link.write(0, bytes(LOW_WATER_BYTES))
    near.link.write(0, b"x")
    await asyncio.sleep(0)
    assert near.link.buffered_bytes(0) == LOW_WATER_BYTES + 1
    assert near.writable == []
    memory(near).release()
    await until(lambda: near.writable == [0])
    assert near.link.buffered_bytes(0) == 0
    assert far.data[0] == bytes(LOW_WATER_BYTES) + b"x"


async def test_close_of_a_held_link_ends_after_its_timeout(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_tunnel, "CLOSE_TIMEOUT_S", 0.01)
    near, far = await pair.connect()
    memory(near).hold()
    near.link.write(0, b"never")
    async with asyncio.timeout(TIMEOUT_S):
        await near.link.close()
    assert far.data == {}
    assert isinstance(far.error, Ended)


async def test_address_has_one_listener_and_is_free_after_close(pair: Pair) -> None:
    with pytest.raises(Conflict):
        await pair.here.listen("there", pair.accepted.append)
    first = await pair.here.listen("other", pair.accepted.append)
    await first.close()
    await pair.there.listen("other", pair.accepted.append)
    await first.close()
    await pair.here.dial("other", timeout_s=1.0)


async def test_link_has_the_smaller_number_of_lanes_of_both_ends() -> None:
    pair = Pair(make("here", 4), make("there", 1))
    await pair.there.listen("there", pair.accepted.append)
    near, far = await pair.connect()
    assert near.link.lane_count == far.link.lane_count == 1
    await pair.here.close()
    await pair.there.close()


def test_invalid_number_of_lanes_is_an_option_error() -> None:
    with pytest.raises(OptionError):
        make("here", 3)
