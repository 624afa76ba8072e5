"""QUIC links over real sockets and a relay that loses datagrams: the measured loss, and a path whose MTU shrinks."""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from micro_quic_tunnel import create
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import CountersInMemory, DriverContext, Link, MicroError

TIMEOUT_S = 15.0


class SystemTime:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Relay(asyncio.DatagramProtocol):
    """Forwards datagrams between one dialling node and `target`, except those that `drops` selects."""

    def __init__(self) -> None:
        self.drops: Callable[[bytes], bool] = lambda data: False
        self.target: Any = None
        self.dialing: Any = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if address != self.target:
            self.dialing = address
        if not self.drops(data):
            self.transport.sendto(data, self.dialing if address == self.target else self.target)


class Reader:
    """A receiver that counts bytes by lane."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.counts = [0] * 4
        self.error: MicroError | None = None
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        self.counts[lane] += len(data)

    def lane_writable(self, lane: int) -> None:
        pass

    def link_lost(self, error: MicroError) -> None:
        self.error = error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


class Ends:
    """A link through the relay: its two ends, and the counters of the driver that dialled."""

    def __init__(self, relay: Relay, near: Reader, far: Reader, counters: CountersInMemory) -> None:
        self.relay, self.near, self.far, self.counters = relay, near, far, counters


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    def driver(counters: CountersInMemory) -> Any:
        context = DriverContext(
            node_id="test",
            network="go.micro",
            site="test",
            state_dir="",
            clock=SystemTime(),
            random=random.Random(1),
            logger=logging.getLogger("test"),
            counters=counters,
        )
        return create(QuicOptions(max_datagram_bytes=1_452), context)

    counters = CountersInMemory()
    here, there = driver(counters), driver(CountersInMemory())
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await there.listen("127.0.0.1:0", accepted.put_nowait)
    transport, relay = await asyncio.get_running_loop().create_datagram_endpoint(Relay, local_addr=("127.0.0.1", 0))
    relay.target = ("127.0.0.1", int(listener.address.rpartition(":")[2]))
    port = transport.get_extra_info("sockname")[1]
    near = Reader(await here.dial(f"127.0.0.1:{port}", timeout_s=10.0))
    far = Reader(await asyncio.wait_for(accepted.get(), TIMEOUT_S))
    yield Ends(relay, near, far, counters)
    await here.close()
    await there.close()
    transport.close()


async def test_link_continues_when_the_path_stops_carrying_large_datagrams(ends: Ends) -> None:
    ends.near.link.write(1, bytes(5_000))
    await until(lambda: ends.far.counts[1] == 5_000)
    ends.relay.drops = lambda data: len(data) > 1_252
    ends.near.link.write(3, bytes(300_000))
    for number in range(1, 11):
        ends.near.link.write(1, bytes(100))
        await until(lambda number=number: ends.far.counts[1] == 5_000 + 100 * number)  # type: ignore[misc]
    await until(lambda: ends.far.counts[3] == 300_000)
    assert ends.near.error is None
    assert ends.far.error is None
    assert ends.counters.values["quic_datagram_fallbacks"] == 1


async def test_link_shows_the_new_port_of_the_peer_after_its_nat_was_rebound(ends: Ends) -> None:
    old = ends.far.link.remote
    rebound, relay = await asyncio.get_running_loop().create_datagram_endpoint(Relay, local_addr=("127.0.0.1", 0))
    relay.target = ends.relay.target
    # The dialling node still sends to the first port of the relay, which forwards from the second one.
    dialing, first = ends.relay.dialing, ends.relay.transport
    relay.datagram_received = lambda data, address: first.sendto(data, dialing)  # type: ignore[method-assign]
    ends.relay.datagram_received = lambda data, address: rebound.sendto(data, relay.target)  # type: ignore[method-assign]
    ends.near.link.write(1, bytes(100))
    await until(lambda: ends.far.counts[1] == 100)
    ends.far.link.write(1, bytes(100))
    await until(lambda: ends.near.counts[1] == 100)
    port = rebound.get_extra_info("sockname")[1]
    assert ends.far.link.remote == f"quic://127.0.0.1:{port}" != old
    rebound.close()


async def test_loss_of_a_fifth_of_the_datagrams_is_measured(ends: Ends) -> None:
    source = random.Random(7)
    ends.relay.drops = lambda data: source.random() < 0.20
    near: Any = ends.near.link
    for _ in range(150):
        near.write(0, bytes(20))
        await asyncio.sleep(0.01)
    assert 0.08 < near.transport_loss() < 0.35
    assert ends.near.error is None


async def test_path_that_loses_all_datagrams_is_reported_before_the_probes_give_up(ends: Ends) -> None:
    reports: list[tuple[float, bool]] = []
    clock = asyncio.get_running_loop().time
    near: Any = ends.near.link
    near.write(0, bytes(20))
    await until(lambda: ends.far.counts[0] == 20 and not near.quic.has_unacknowledged())
    near.watch_silence(lambda is_silent: reports.append((clock(), is_silent)))
    ends.relay.drops = lambda data: True
    cut_at, wrote = clock(), 20
    while not reports:
        # Traffic that continues starts the probe timeout again and again.
        near.write(0, bytes(20))
        wrote += 20
        await asyncio.sleep(0.02)
        assert clock() - cut_at < TIMEOUT_S
    assert reports[0][1] is True
    assert reports[0][0] - cut_at >= 0.3
    ends.relay.drops = lambda data: False
    await until(lambda: len(reports) == 2)
    assert reports[1][1] is False
    await until(lambda: ends.far.counts[0] == wrote)
    await asyncio.sleep(0.5)
    assert len(reports) == 2, "an idle link is not silent"


async def test_question_and_answer_on_a_quiet_link_take_three_datagrams_and_few_timers(ends: Ends) -> None:
    datagrams: list[bytes] = []

    def count(data: bytes) -> bool:
        datagrams.append(data)
        return False

    far: Any = ends.far.link
    ends.far.data_received = lambda lane, data: far.write(lane, data)  # type: ignore[method-assign]
    await asyncio.sleep(0.5)
    ends.relay.drops = count
    numbers = []
    for number in range(1, 8):
        datagrams.clear()
        ends.near.link.write(0, bytes(20))
        await until(lambda: ends.near.counts[0] == 20 * number)  # noqa: B023 - called in this iteration
        await asyncio.sleep(0.3)
        numbers.append(len(datagrams))
    # The answer carries the acknowledgement of the question, and only the answer is acknowledged on its own. On a busy machine,
    # data may be sent again because its acknowledgement is late.
    assert statistics.median(numbers) == 3, numbers


async def test_ping_on_a_quiet_link_takes_two_datagrams(ends: Ends) -> None:
    datagrams: list[bytes] = []
    reports: list[float] = []

    def count(data: bytes) -> bool:
        datagrams.append(data)
        return False

    near: Any = ends.near.link
    await asyncio.sleep(0.5)
    ends.relay.drops = count
    numbers = []
    for number in range(1, 8):
        datagrams.clear()
        near.watch_acknowledgement(reports.append)
        near.write(0, bytes(20))
        await until(lambda: len(reports) == number)  # noqa: B023 - called in this iteration
        await asyncio.sleep(0.3)
        numbers.append(len(datagrams))
    assert ends.far.counts[0] == 7 * 20
    assert statistics.median(numbers) == 2, numbers
    assert len(reports) == 7, "each once"
    assert statistics.median(reports) < 0.1


async def test_acknowledgement_of_earlier_data_is_not_reported(ends: Ends) -> None:
    near: Any = ends.near.link
    await asyncio.sleep(0.5)
    held: list[Callable[[], None]] = []
    forward = ends.relay.datagram_received

    def hold(data: bytes, address: Any) -> None:
        held.append(lambda: forward(data, address))

    reports: list[float] = []
    ends.relay.datagram_received = hold  # type: ignore[method-assign]
    near.write(0, bytes(20))
    await until(lambda: len(held) == 1)
    near.watch_acknowledgement(reports.append)
    ends.relay.datagram_received = forward  # type: ignore[method-assign]
    held[0]()
    await until(lambda: not near.quic.has_unacknowledged())
    assert reports == []
    near.write(0, bytes(20))
    await until(lambda: len(reports) == 1)


async def test_connection_without_anything_to_send_is_recognised(ends: Ends) -> None:
    ends.relay.drops = random_drops(0.05)
    wrong, checks = [], [0, 0]
    for link in (ends.near.link, ends.far.link):
        quic: Any = link.quic  # type: ignore[attr-defined]

        def checked(now: float, quic: Any = quic, is_empty: Any = quic.has_nothing_to_send) -> bool:
            result = bool(is_empty(now))
            checks[result] += 1
            if result:
                # The result is what aioquic itself would send now.
                sent = type(quic).datagrams_to_send(quic, now)
                wrong.extend(sent)
            return result

        quic.has_nothing_to_send = checked
    far: Any = ends.far.link
    ends.far.data_received = lambda lane, data: far.write(lane, data)  # type: ignore[method-assign]
    for number in range(120):
        ends.near.link.write(number % 4, bytes(20 if number % 7 else 60_000))
        await asyncio.sleep(0.002 if number % 5 else 0.06)
    await until(lambda: sum(ends.near.counts) == sum(20 if number % 7 else 60_000 for number in range(120)))
    assert not wrong
    assert min(checks) > 20, "both outcomes occurred"


def random_drops(share: float) -> Callable[[bytes], bool]:
    source = random.Random(3)
    return lambda data: source.random() < share
