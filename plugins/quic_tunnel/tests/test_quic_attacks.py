"""Tests of a listener with invalid peers, and of its behaviour under load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from micro_quic_tunnel import create
from micro_quic_tunnel import link as link_module
from micro_quic_tunnel.driver import QuicTunnel
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import CountersInMemory, DriverContext, Link, LinkLost, MicroError, Unreachable

TIMEOUT_S = 15.0


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


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
        driver = create(QuicOptions(**options), context)
        assert isinstance(driver, QuicTunnel)
        self.driver = driver
        self.accepted: asyncio.Queue[Link] = asyncio.Queue()
        self.address = ""

    async def listen(self) -> Node:
        self.address = (await self.driver.listen("127.0.0.1:0", self.accepted.put_nowait)).address
        return self

    def count_of(self, name: str) -> int:
        return self.counters.values.get(name, 0)

    @property
    def target(self) -> tuple[str, int]:
        host, _, port = self.address.removeprefix("quic://").rpartition(":")
        return host, int(port)


class Reader:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.received = bytearray()
        self.error: MicroError | None = None
        self.changed = asyncio.Event()
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def lane_writable(self, lane: int) -> None:
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


@contextlib.asynccontextmanager
async def nodes(**options: Any) -> AsyncIterator[tuple[Node, Node]]:
    here, there = Node(), await Node(**options).listen()
    try:
        yield here, there
    finally:
        await here.driver.close()
        await there.driver.close()


async def connect(here: Node, there: Node) -> tuple[Reader, Reader]:
    near = await here.driver.dial(there.address, timeout_s=5.0)
    return Reader(near), Reader(await asyncio.wait_for(there.accepted.get(), TIMEOUT_S))


async def check_new_link(here: Node, there: Node) -> None:
    near, far = await connect(here, there)
    near.link.write(1, b"fine")
    await far.until(lambda: far.received == b"fine")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true that no event reports, e.g. the value of a counter."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0)


def initial(alpn: str = "micro/1") -> bytes:
    """Return the first datagram of a valid handshake."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], verify_mode=ssl.CERT_NONE)
    connection = QuicConnection(configuration=configuration)
    connection.connect(("127.0.0.1", 1), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


@contextlib.contextmanager
def raw_socket() -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


async def test_dial_with_another_alpn_is_rejected() -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        other = Node()
        configuration = other.driver._configuration

        def altered(datagram_bytes: int, *, is_client: bool) -> QuicConfiguration:
            result = configuration(datagram_bytes, is_client=is_client)
            result.alpn_protocols = ["h3"]
            return result

        other.driver._configuration = altered  # type: ignore[method-assign]
        with pytest.raises(Unreachable, match="ALPN"):
            await other.driver.dial(there.address, timeout_s=5.0)
        near.link.write(1, b"fine")
        await far.until(lambda: far.received == b"fine")
        assert there.accepted.empty()


async def test_dialling_node_proves_its_address_under_load() -> None:
    async with nodes(retry_above=0) as (here, there):
        await check_new_link(here, there)
        assert there.count_of("quic_retries") == 1


async def test_silent_handshakes_are_limited_and_do_not_block_others() -> None:
    async with nodes(max_half_open=4, retry_above=100) as (here, there):
        with raw_socket() as silent:
            for _ in range(3):
                silent.sendto(initial(), there.target)
            await check_new_link(here, there)
            for _ in range(3):
                silent.sendto(initial(), there.target)
            await until(lambda: there.count_of("quic_handshakes_refused") == 2)
        near, far = Node(), there
        with pytest.raises(Unreachable):
            await near.driver.dial(far.address, timeout_s=0.3)
        await near.driver.close()


async def test_forged_token_is_rejected() -> None:
    async with nodes(retry_above=0) as (here, there):
        with raw_socket() as forger:
            configuration = QuicConfiguration(is_client=True, alpn_protocols=["micro/1"], verify_mode=ssl.CERT_NONE)
            configuration.token = b"forged" * 8
            connection = QuicConnection(configuration=configuration)
            connection.connect(there.target, now=0.0)
            forger.sendto(connection.datagrams_to_send(now=0.0)[0][0], there.target)
            await until(lambda: there.count_of("quic_tokens_refused") == 1)
        await check_new_link(here, there)


async def test_unknown_version_is_answered_if_the_datagram_is_large_enough() -> None:
    async with nodes() as (here, there):
        datagram = b"\xc0\xba\xba\xba\xba\x08destined\x08sourced!"
        with raw_socket() as sender:
            sender.sendto(datagram + bytes(100), there.target)
            await until(lambda: there.count_of("quic_datagrams_unknown") == 1)
            sender.sendto(datagram + bytes(1200), there.target)
            async with asyncio.timeout(TIMEOUT_S):
                answer = await asyncio.get_running_loop().sock_recv(sender, 2000)
        assert answer[1:5] == bytes(4)
        assert b"\x00\x00\x00\x01" in answer[5:]
        assert there.count_of("quic_versions_unknown") == 1
        await check_new_link(here, there)


async def test_undecryptable_initial_packet_leaves_no_link() -> None:
    async with nodes() as (here, there):
        broken = bytearray(initial())
        broken[100] ^= 1
        with raw_socket() as sender:
            sender.sendto(broken, there.target)
            await until(lambda: there.count_of("quic_datagrams_malformed") == 1)
        (endpoint,) = there.driver._endpoints
        assert not endpoint.links
        await check_new_link(here, there)


async def test_unfinished_handshake_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("micro_quic_tunnel.endpoint.HANDSHAKE_TIMEOUT_S", 0.05)
    async with nodes() as (here, there):
        with raw_socket() as silent:
            silent.sendto(initial(), there.target)
            await until(lambda: there.count_of("quic_handshakes_expired") == 1)
        await check_new_link(here, there)


@pytest.mark.parametrize("stream", [2, 16])
async def test_additional_stream_ends_the_link(stream: int) -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        quic: Any = near.link
        quic.quic.send_stream_data(stream, b"x")
        near.link.write(0, b"y")
        await far.until(lambda: far.error is not None)
        await near.until(lambda: near.error is not None)
        assert isinstance(far.error, LinkLost)
        assert isinstance(near.error, LinkLost)
        await check_new_link(here, there)


@pytest.mark.parametrize("how", ["ended", "reset"])
async def test_ended_or_reset_lane_ends_the_link(how: str) -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        link: Any = near.link
        if how == "ended":
            link.quic.send_stream_data(4, b"", end_stream=True)
        else:
            link.quic.reset_stream(4, 1)
        near.link.write(0, b"y")
        await far.until(lambda: far.error is not None)
        assert isinstance(far.error, LinkLost)


async def test_data_buffered_before_start_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_EARLY_BYTES", 1_000)
    async with nodes() as (here, there):
        near = Reader(await here.driver.dial(there.address, timeout_s=5.0))
        near.link.write(1, bytes(5_000))
        await near.until(lambda: near.error is not None)
        far = Reader(await asyncio.wait_for(there.accepted.get(), TIMEOUT_S))
        assert isinstance(far.error, LinkLost)
        assert not far.received


class DatagramLoss:
    """Drops the next `count` datagrams that a link sends."""

    def __init__(self, link: Any, count: int) -> None:
        self.count = count
        self._send = link._send
        link._send = self

    def __call__(self, data: bytes, address: Any) -> None:
        self.count -= 1
        if self.count < 0:
            self._send(data, address)


async def test_data_buffered_behind_a_gap_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_REASSEMBLY_BYTES", 50_000)
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        DatagramLoss(near.link, 1)
        near.link.write(3, bytes(120_000))
        await far.until(lambda: far.error is not None)
        assert isinstance(far.error, LinkLost)
        assert "gap" in str(far.error)


async def test_additional_stream_with_undeliverable_data_ends_the_link() -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        DatagramLoss(near.link, 1)
        link: Any = near.link
        link.quic.send_stream_data(16, bytes(60_000))
        near.link.write(0, b"y")
        await far.until(lambda: far.error is not None)
        assert "opened" in str(far.error)


async def test_lost_final_datagram_is_retransmitted() -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        link: Any = near.link
        # The first message completes the handshake. The second sets a timer that fires too early for the third.
        for count in (1, 2):
            near.link.write(1, b"x")
            await far.until(lambda count=count: len(far.received) == count)  # type: ignore[misc]
            await until(lambda: not link.quic.has_unacknowledged())
        loss = DatagramLoss(link, 1)
        near.link.write(1, b"y")
        await far.until(lambda: far.received == b"xxy")
        assert loss.count < 0


async def test_receiver_exception_ends_only_its_link() -> None:
    async with nodes() as (here, there):
        near, far = await connect(here, there)
        other_near, other_far = await connect(here, there)

        def broken(lane: int, data: bytes) -> None:
            raise RuntimeError("intentional failure")

        far.data_received = broken  # type: ignore[method-assign]
        near.link.write(1, b"x")
        await far.until(lambda: far.error is not None)
        assert there.count_of("quic_internal_errors") == 1
        other_near.link.write(1, b"fine")
        await other_far.until(lambda: other_far.received == b"fine")
