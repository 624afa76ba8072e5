"""One suite for every socket of the house: memory, TCP, Unix."""

from __future__ import annotations

import asyncio
import logging
import random
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from micro_core.builtin import memory_transport, tcp_transport, unix_transport
from micro_core.builtin.joined_transport import JoinedTransport
from micro_core.builtin.system_clock import SystemClock
from micro_core.spec import (
    BadRequest,
    Closed,
    Conflict,
    CountersInMemory,
    DriverContext,
    Ended,
    MicroError,
    NoOptions,
    Socket,
    Transport,
    Unreachable,
)

PATIENCE_S = 10.0


class Reader:
    """A receiver that remembers."""

    def __init__(self, socket: Socket, *, start: bool = True) -> None:
        self.socket = socket
        self.data = bytearray()
        self.error: MicroError | None = None
        self.is_paused = False
        if start:
            socket.start(self)

    def data_received(self, data: bytes) -> None:
        assert self.error is None
        self.data += data

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False

    def socket_lost(self, error: MicroError) -> None:
        assert self.error is None, "told twice"
        self.error = error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def make(kind: str, state_dir: Path, **options: Any) -> Transport:
    context = DriverContext(
        node_id="test",
        network="go.micro",
        site="test",
        state_dir=str(state_dir),
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
    )
    match kind:
        case "tcp":
            return tcp_transport.create(tcp_transport.TcpOptions(**options), context)
        case "unix":
            return unix_transport.create(unix_transport.UnixOptions(**options), context)
    return memory_transport.create(NoOptions(), context)


class Pair:
    """A transport that listens, and sockets dialled to it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.accepted: list[Socket] = []
        self.address = ""

    async def connect(self, *, start: bool = True) -> tuple[Reader, Reader]:
        before = len(self.accepted)
        near = await self.transport.dial(self.address, timeout_s=5.0)
        await until(lambda: len(self.accepted) > before)
        return Reader(near), Reader(self.accepted[-1], start=start)


@pytest.fixture(params=["memory", "tcp", "unix"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(make(request.param, tmp_path))
    await made.transport.start()
    made.address = (await made.transport.listen("", made.accepted.append)).address
    yield made
    await made.transport.close()


async def test_bytes_arrive_whole_and_in_order_both_ways(pair: Pair) -> None:
    near, far = await pair.connect()
    sent = random.Random(1).randbytes(3_000_000)
    for start in range(0, len(sent), 100_000):
        near.socket.write(sent[start : start + 100_000])
        far.socket.write(sent[start : start + 100_000])
    await until(lambda: len(far.data) == len(sent) and len(near.data) == len(sent))
    assert far.data == sent
    assert near.data == sent


async def test_nothing_is_lost_that_comes_before_the_start(pair: Pair) -> None:
    near, far = await pair.connect(start=False)
    near.socket.write(b"early")
    await asyncio.sleep(0.01)
    far.socket.start(far)
    await until(lambda: far.data == b"early")


async def test_a_reader_that_pauses_makes_the_writer_pause_and_resume(pair: Pair) -> None:
    near, far = await pair.connect()
    far.socket.pause_reading()
    far.socket.pause_reading()
    written = 0
    while not near.is_paused and written < 200 * 65_536:
        near.socket.write(bytes(65_536))
        written += 65_536
        await asyncio.sleep(0)
    assert near.is_paused
    far.socket.resume_reading()
    await until(lambda: len(far.data) == written)
    assert not near.is_paused


async def test_each_end_hears_the_right_ending_once(pair: Pair) -> None:
    near, far = await pair.connect()
    near.socket.write(b"last words")
    await near.socket.close()
    await near.socket.close()
    await until(lambda: near.error is not None and far.error is not None)
    assert isinstance(near.error, Closed)
    assert isinstance(far.error, Ended)
    assert far.data == b"last words"
    near.socket.write(b"ignored")


async def test_a_dial_to_nobody_says_so(pair: Pair) -> None:
    nowhere = {"memory": "memory://nobody", "tcp": "tcp://127.0.0.1:1", "unix": "unix:///tmp/nobody.sock"}
    with pytest.raises(Unreachable) as caught:
        await pair.transport.dial(nowhere[pair.transport.scheme], timeout_s=1.0)
    assert caught.value.hint


async def test_a_place_is_listened_on_once(pair: Pair) -> None:
    with pytest.raises(Conflict):
        await pair.transport.listen(pair.address, pair.accepted.append)


async def test_sockets_outlive_the_listener_that_accepted_them(pair: Pair) -> None:
    near, far = await pair.connect()
    elsewhere = Pair(pair.transport)
    listener = await pair.transport.listen("", elsewhere.accepted.append)
    elsewhere.address = listener.address
    other, other_far = await elsewhere.connect()
    await listener.close()
    with pytest.raises(Unreachable):
        await pair.transport.dial(listener.address, timeout_s=1.0)
    for here, there in ((near, far), (other, other_far)):
        here.socket.write(b"still")
        await until(lambda there=there: there.data == b"still")  # type: ignore[misc]


async def test_more_connections_than_allowed_are_refused_and_the_others_live(tmp_path: Path) -> None:
    pair = Pair(make("tcp", tmp_path, max_connections=2))
    pair.address = (await pair.transport.listen("", pair.accepted.append)).address
    dialler = make("tcp", tmp_path)
    readers = [Reader(await dialler.dial(pair.address, timeout_s=2.0)) for _ in range(3)]
    await until(lambda: readers[2].error is not None)
    assert readers[0].error is None
    await dialler.close()
    await pair.transport.close()


async def test_a_stale_socket_file_is_replaced_and_the_new_one_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = make("unix", tmp_path)
    listener = await first.listen(f"unix://{path}", lambda socket: None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    copy = path.with_name("stale.sock")
    path.rename(copy)
    await listener.close()
    again = await first.listen(f"unix://{copy}", lambda socket: None)
    await again.close()
    assert not copy.exists()
    await first.close()


async def test_a_path_too_long_for_the_system_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        await make("unix", tmp_path).listen("unix:///" + "x" * 120, lambda socket: None)
    assert "shorter" in caught.value.hint


async def test_joined_transports_go_by_scheme(tmp_path: Path) -> None:
    joined = JoinedTransport([make("tcp", tmp_path), make("unix", tmp_path)])
    accepted: list[Socket] = []
    addresses = [
        (await joined.listen("", accepted.append)).address,
        (await joined.listen("unix://", accepted.append)).address,
    ]
    assert [address.partition("://")[0] for address in addresses] == ["tcp", "unix"]
    for address in addresses:
        await joined.dial(address, timeout_s=1.0)
    with pytest.raises(Unreachable, match="no transport"):
        await joined.dial("carrier-pigeon://x", timeout_s=1.0)
    await joined.close()
