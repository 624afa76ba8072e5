"""Links within one process keep the promises that real ones make."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import pytest

from micro_core.builtin.tunnel import memory as memory_tunnel
from micro_core.builtin.tunnel.memory import LOW_MARK_BYTES, MemoryLink, MemoryTunnel, MemoryTunnelOptions
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

PATIENCE_S = 10.0


class Reader:
    """A receiver that remembers."""

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
        assert self.error is None, "told twice"
        self.error = error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
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


async def test_a_network_that_takes_nothing_fills_the_lane_and_tells_when_it_has_room(pair: Pair) -> None:
    near, far = await pair.connect()
    memory(near).hold()
    near.link.write(0, bytes(LOW_MARK_BYTES))
    near.link.write(0, b"x")
    await asyncio.sleep(0)
    assert near.link.buffered_bytes(0) == LOW_MARK_BYTES + 1
    assert near.writable == []
    memory(near).release()
    await until(lambda: near.writable == [0])
    assert near.link.buffered_bytes(0) == 0
    assert far.data[0] == bytes(LOW_MARK_BYTES) + b"x"


async def test_a_close_waits_for_a_clogged_network_no_longer_than_its_bound(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_tunnel, "CLOSE_TIMEOUT_S", 0.01)
    near, far = await pair.connect()
    memory(near).hold()
    near.link.write(0, b"never")
    async with asyncio.timeout(PATIENCE_S):
        await near.link.close()
    assert far.data == {}
    assert isinstance(far.error, Ended)


async def test_address_has_one_listener_and_is_free_after_close(pair: Pair) -> None:
    with pytest.raises(Conflict):
        await pair.here.listen("there", pair.accepted.append)
    first = await pair.here.listen("inn", pair.accepted.append)
    await first.close()
    await pair.there.listen("inn", pair.accepted.append)
    await first.close()
    await pair.here.dial("inn", timeout_s=1.0)


async def test_links_have_the_lanes_of_the_end_with_fewer() -> None:
    pair = Pair(make("here", 4), make("there", 1))
    await pair.there.listen("there", pair.accepted.append)
    near, far = await pair.connect()
    assert near.link.lane_count == far.link.lane_count == 1
    await pair.here.close()
    await pair.there.close()


def test_other_numbers_of_lanes_are_refused() -> None:
    with pytest.raises(OptionError):
        make("here", 3)
