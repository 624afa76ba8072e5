"""Tests of QUIC links over UDP sockets on loopback."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from micro_quic_tunnel import create
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import (
    Closed,
    Conflict,
    CountersInMemory,
    DriverContext,
    Ended,
    Link,
    LinkDriver,
    LinkLost,
    MicroError,
    OptionError,
    Unreachable,
)

TIMEOUT_S = 15.0
LANES = range(4)


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def driver(**options: Any) -> Any:
    context = DriverContext(
        node_id="test",
        network="go.micro",
        site="test",
        state_dir="",
        clock=SystemTime(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    return create(QuicOptions(**options), context)


class Reader:
    """A receiver that records data and wakes up waiting tests."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.lanes: list[bytearray] = [bytearray() for _ in LANES]
        self.writable: list[int] = []
        self.error: MicroError | None = None
        self.changed = asyncio.Event()
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        self.lanes[lane] += data
        self.changed.set()

    def lane_writable(self, lane: int) -> None:
        self.writable.append(lane)
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


class Pair:
    """A driver that dials (`here`) and one that listens (`there`)."""

    def __init__(self, here: LinkDriver, there: LinkDriver) -> None:
        self.here = here
        self.there = there
        self.accepted: asyncio.Queue[Link] = asyncio.Queue()
        self.address = ""

    async def connect(self, address: str = "") -> tuple[Reader, Reader]:
        near = await self.here.dial(address or self.address, timeout_s=5.0)
        far = await asyncio.wait_for(self.accepted.get(), TIMEOUT_S)
        return Reader(near), Reader(far)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair(driver(), driver())
    pair.address = (await pair.there.listen("127.0.0.1:0", pair.accepted.put_nowait)).address
    yield pair
    await pair.here.close()
    await pair.there.close()


async def test_lanes_carry_data_in_order_both_ways(pair: Pair) -> None:
    near, far = await pair.connect()
    sent = [random.Random(lane).randbytes(300_000) for lane in LANES]
    for start in range(0, 300_000, 10_000):
        for lane in LANES:
            near.link.write(lane, sent[lane][start : start + 10_000])
            far.link.write(lane, sent[lane][start : start + 10_000])
    await far.until(lambda: all(len(far.lanes[lane]) == 300_000 for lane in LANES))
    await near.until(lambda: all(len(near.lanes[lane]) == 300_000 for lane in LANES))
    assert [bytes(lane) for lane in far.lanes] == sent
    assert [bytes(lane) for lane in near.lanes] == sent


async def test_channel_binding_is_shared_by_both_ends_and_unique_per_listener(pair: Pair) -> None:
    near, far = await pair.connect()
    assert near.link.channel_binding == far.link.channel_binding
    assert len(near.link.channel_binding) == 32
    other = Pair(pair.here, driver())
    other.address = (await other.there.listen("127.0.0.1:0", other.accepted.put_nowait)).address
    elsewhere, _ = await other.connect()
    assert elsewhere.link.channel_binding != near.link.channel_binding
    await other.there.close()


async def test_data_received_before_start_is_delivered(pair: Pair) -> None:
    near = await pair.here.dial(pair.address, timeout_s=5.0)
    near.write(1, b"early")
    far_link = await asyncio.wait_for(pair.accepted.get(), TIMEOUT_S)
    probe = Reader(near)
    far_link.write(0, b"x")
    await probe.until(lambda: probe.lanes[0] == b"x")
    far = Reader(far_link)
    await far.until(lambda: far.lanes[1] == b"early")


async def test_lane_reports_buffered_bytes_and_writability(pair: Pair) -> None:
    near, far = await pair.connect()
    near.link.write(3, bytes(2_000_000))
    assert near.link.buffered_bytes(3) > 1_000_000
    await near.until(lambda: 3 in near.writable)
    assert near.link.buffered_bytes(3) <= 64_000
    await far.until(lambda: len(far.lanes[3]) == 2_000_000)


async def test_close_is_reported_as_closed_locally_and_as_ended_remotely(pair: Pair) -> None:
    near, far = await pair.connect()
    near.link.write(1, b"final data")
    closed = time.monotonic()
    await near.link.close()
    await near.link.close()
    await far.until(lambda: far.error is not None)
    assert isinstance(near.error, Closed)
    assert isinstance(far.error, Ended)
    # The end is reported with the datagram that closes the connection, not when QUIC has finished closing.
    assert time.monotonic() - closed < 0.5
    assert far.lanes[1] == b"final data"


async def test_concurrent_dials_are_all_accepted(pair: Pair) -> None:
    links = await asyncio.gather(*(pair.here.dial(pair.address, timeout_s=10.0) for _ in range(20)))
    far = [await asyncio.wait_for(pair.accepted.get(), TIMEOUT_S) for _ in links]
    assert len({link.remote for link in far}) == 20


async def test_dial_without_answer_fails_in_time_with_a_hint() -> None:
    here = driver()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(Unreachable, match="UDP port"):
            await here.dial(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.6)
        assert time.monotonic() - started < 3.0
    await here.close()


async def test_occupied_port_raises_conflict(pair: Pair) -> None:
    with pytest.raises(Conflict, match="another port"):
        await pair.there.listen(pair.address, pair.accepted.put_nowait)


async def test_garbage_packets_do_not_affect_links(pair: Pair) -> None:
    near, far = await pair.connect()
    host, _, port = pair.address.removeprefix("quic://").rpartition(":")
    source = random.Random(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in [0, 1, 8, 20, 1200, 1500] * 20:
            sender.sendto(source.randbytes(size), (host, int(port)))
            sender.sendto(b"\xc0\x00\x00\x00\x01\x08" + source.randbytes(size), (host, int(port)))
    near.link.write(1, b"still here")
    await far.until(lambda: far.lanes[1] == b"still here")


async def test_additional_stream_ends_only_its_link(pair: Pair) -> None:
    near, far = await pair.connect()
    other_near, other_far = await pair.connect()
    near.link.quic.send_stream_data(16, b"x")  # type: ignore[attr-defined]
    near.link.write(0, b"y")
    await far.until(lambda: far.error is not None)
    await near.until(lambda: near.error is not None)
    other_near.link.write(1, b"fine")
    await other_far.until(lambda: other_far.lanes[1] == b"fine")


KILLED = """
import asyncio, sys
sys.path.insert(0, {here!r})
from test_quic_links import Reader, driver

async def main():
    link = await driver().dial({address!r}, timeout_s=5.0)
    reader = Reader(link)
    link.write(1, b"alive")
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killed_peer_is_detected_after_the_idle_timeout() -> None:
    there = driver(idle_timeout_s=1.0)
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await there.listen("127.0.0.1:0", accepted.put_nowait)
    here = __file__.rpartition("/")[0]
    # The process is killed, so its end is not awaited.
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", KILLED.format(here=here, address=listener.address)]
    )
    try:
        far = Reader(await asyncio.wait_for(accepted.get(), TIMEOUT_S))
        await far.until(lambda: far.lanes[1] == b"alive")
        child.kill()
        await far.until(lambda: far.error is not None)
        assert isinstance(far.error, LinkLost)
    finally:
        child.kill()
        child.wait()
        await there.close()


class Relay:
    """A path between two UDP sockets that drops large datagrams and a fraction of the others."""

    def __init__(self, target: tuple[str, int], *, max_bytes: int = 65_535, loss: float = 0.0) -> None:
        self.target = target
        self.max_bytes = max_bytes
        self.loss = loss
        self.random = random.Random(5)
        self.dropped = 0
        self.sizes: set[int] = set()
        self._back: dict[tuple[str, int], socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._front = self._socket()
        self._loop.add_reader(self._front, self._from_dialler)
        self.address = f"127.0.0.1:{self._front.getsockname()[1]}"

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def _passes(self, data: bytes) -> bool:
        self.sizes.add(len(data))
        if len(data) > self.max_bytes or self.random.random() < self.loss:
            self.dropped += 1
            return False
        return True

    def _from_dialler(self) -> None:
        data, dialler = self._front.recvfrom(65_535)
        if dialler not in self._back:
            back = self._back[dialler] = self._socket()
            self._loop.add_reader(back, self._to_dialler, back, dialler)
        if self._passes(data):
            self._back[dialler].sendto(data, self.target)

    def _to_dialler(self, back: socket.socket, dialler: tuple[str, int]) -> None:
        data = back.recv(65_535)
        if self._passes(data):
            self._front.sendto(data, dialler)

    def close(self) -> None:
        for sock in (self._front, *self._back.values()):
            self._loop.remove_reader(sock)
            sock.close()


def target_of(pair: Pair) -> tuple[str, int]:
    host, _, port = pair.address.removeprefix("quic://").rpartition(":")
    return host, int(port)


async def test_path_that_drops_large_datagrams_is_used_with_small_ones(pair: Pair) -> None:
    relay = Relay(target_of(pair), max_bytes=1_300)
    near, far = await pair.connect(relay.address)
    near.link.write(1, bytes(100_000))
    far.link.write(1, bytes(100_000))
    await far.until(lambda: len(far.lanes[1]) == 100_000)
    await near.until(lambda: len(near.lanes[1]) == 100_000)
    assert relay.dropped > 0
    await near.link.close()
    await far.until(lambda: far.error is not None)
    relay.close()


async def test_datagrams_have_the_size_of_the_route_at_both_ends(pair: Pair) -> None:
    relay = Relay(target_of(pair))
    near, far = await pair.connect(relay.address)
    far.link.write(1, bytes(300_000))
    await near.until(lambda: len(near.lanes[1]) == 300_000)
    assert max(relay.sizes) > 8_192
    await near.link.close()
    await far.until(lambda: far.error is not None)
    relay.close()


async def test_configured_datagram_size_is_kept(pair: Pair) -> None:
    exact = driver(max_datagram_bytes=1_400)
    relay = Relay(target_of(pair), max_bytes=1_400)
    link = Reader(await exact.dial(relay.address, timeout_s=5.0))
    far = Reader(await asyncio.wait_for(pair.accepted.get(), TIMEOUT_S))
    far.link.write(1, bytes(100_000))
    await link.until(lambda: len(link.lanes[1]) == 100_000)
    assert max(relay.sizes) == 1_400
    assert relay.dropped == 0
    relay.max_bytes = 1_300
    with pytest.raises(Unreachable, match="no answer"):
        await exact.dial(relay.address, timeout_s=0.5)
    await exact.close()
    relay.close()


async def test_lossy_path_delivers_all_data_in_order() -> None:
    pair = Pair(driver(max_datagram_bytes=1200), driver(max_datagram_bytes=1200))
    pair.address = (await pair.there.listen("127.0.0.1:0", pair.accepted.put_nowait)).address
    relay = Relay(target_of(pair), loss=0.05)
    near, far = await pair.connect(relay.address)
    sent = random.Random(9).randbytes(200_000)
    for start in range(0, len(sent), 5_000):
        near.link.write(1, sent[start : start + 5_000])
    await far.until(lambda: len(far.lanes[1]) == len(sent))
    assert bytes(far.lanes[1]) == sent
    assert relay.dropped > 0
    await pair.here.close()
    await pair.there.close()
    relay.close()


def test_invalid_options_are_rejected_by_name() -> None:
    for options in ({"congestion": "bbr"}, {"max_datagram_bytes": 100}):
        with pytest.raises(OptionError, match=next(iter(options))):
            driver(**options)
