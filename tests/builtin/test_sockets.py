"""Behaviour of memory, TCP and Unix sockets that the conformance kit does not test (see test_conformance.py)."""

from __future__ import annotations

import asyncio
import logging
import random
import socket as sockets
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from micro_core.builtin.transport import memory as memory_transport
from micro_core.builtin.transport import stream_socket
from micro_core.builtin.transport import tcp as tcp_transport
from micro_core.builtin.transport import unix as unix_transport
from micro_core.builtin.transport.joined import JoinedTransport
from micro_core.builtin.transport.memory import MemorySocket
from micro_core.builtin.transport.stream_socket import StreamSocket
from micro_core.contract import (
    BadRequest,
    Closed,
    Conflict,
    Counters,
    CountersInMemory,
    DriverContext,
    Ended,
    LinkLost,
    MicroError,
    NoOptions,
    OptionError,
    Socket,
    Transport,
    Unreachable,
)
from micro_core.contract.names import split_host_port
from micro_core.lifecycle.system_clock import SystemClock

TIMEOUT_S = 10.0


class Reader:
    """A receiver that records what it receives."""

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
        assert self.error is None, "socket_lost was called twice"
        self.error = error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


def make(kind: str, state_dir: Path, counters: Counters | None = None, **options: Any) -> Transport:
    context = DriverContext(
        node_id="test",
        network="go.micro",
        site="test",
        state_dir=str(state_dir),
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test"),
        counters=counters or CountersInMemory(),
    )
    match kind:
        case "tcp":
            return tcp_transport.create(tcp_transport.TcpOptions(**options), context)
        case "unix":
            return unix_transport.create(unix_transport.UnixOptions(**options), context)
    return memory_transport.create(NoOptions(), context)


class Pair:
    """A transport that listens, and the sockets dialled to it."""

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


async def test_slow_reader_pauses_the_writer_of_a_large_transfer(pair: Pair) -> None:
    near, far = await pair.connect()
    sent = random.Random(2).randbytes(20_000_000)
    position, max_in_flight = 0, 0
    async with asyncio.timeout(TIMEOUT_S):
        while position < len(sent):
            far.socket.pause_reading()
            while not near.is_paused and position < len(sent):
                near.socket.write(sent[position : position + 65_536])
                position += 65_536
                await asyncio.sleep(0)
            max_in_flight = max(max_in_flight, min(position, len(sent)) - len(far.data))
            far.socket.resume_reading()
            await until(lambda: not near.is_paused)
    await until(lambda: len(far.data) == len(sent))
    assert far.data == sent
    # The high-water mark, and the buffers of the system at both ends.
    assert max_in_flight < 14_000_000


async def test_broken_connection_is_reported_as_lost(pair: Pair) -> None:
    near, far = await pair.connect(start=False)
    near.socket.write(b"never read")
    # If a socket with unread bytes is closed, the system resets the connection.
    match far.socket:
        case StreamSocket():
            far.socket.abort()
        case MemorySocket():
            far.socket.cut()
    await until(lambda: near.error is not None)
    assert isinstance(near.error, LinkLost)


async def test_final_data_arrives_although_the_sender_has_unread_data(pair: Pair) -> None:
    near, far = await pair.connect()
    near.socket.pause_reading()
    far.socket.write(bytes(200_000))
    near.socket.write(b"final data")
    closing = asyncio.create_task(near.socket.close())
    await until(lambda: far.error is not None)
    await closing
    assert far.data == b"final data"
    assert isinstance(far.error, Ended)
    assert near.data == b""
    assert isinstance(near.error, Closed)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_close_with_a_peer_that_does_not_read_ends_after_its_timeout(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_socket, "CLOSE_TIMEOUT_S", 0.05)
    pair = Pair(make(kind, tmp_path))
    pair.address = (await pair.transport.listen("", pair.accepted.append)).address
    near, far = await pair.connect()
    far.socket.pause_reading()
    near.socket.write(bytes(20_000_000))
    async with asyncio.timeout(0.9):
        await near.socket.close()
    assert isinstance(near.error, Closed)
    await pair.transport.close()


async def test_closed_transport_has_closed_its_sockets_and_opens_no_more(pair: Pair) -> None:
    near, far = await pair.connect()
    _, unstarted = await pair.connect(start=False)
    await pair.transport.close()
    await until(lambda: near.error is not None and far.error is not None)
    unstarted.socket.start(unstarted)
    await until(lambda: unstarted.error is not None)
    with pytest.raises(Closed):
        await pair.transport.dial(pair.address, timeout_s=1.0)
    with pytest.raises(Closed):
        await pair.transport.listen("", pair.accepted.append)
    await pair.transport.close()


async def test_address_is_free_after_its_listener_is_closed_and_a_second_close_has_no_effect(pair: Pair) -> None:
    first = await pair.transport.listen("", pair.accepted.append)
    await first.close()
    pair.address = (await pair.transport.listen(first.address, pair.accepted.append)).address
    assert pair.address == first.address
    await first.close()
    near, far = await pair.connect()
    near.socket.write(b"data")
    await until(lambda: far.data == b"data")


def has_socket_file(address: str) -> bool:
    return Path(address.removeprefix("unix://")).exists()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_cancelled_listen_leaves_no_listener(kind: str, tmp_path: Path) -> None:
    transport = make(kind, tmp_path)
    await transport.start()
    for steps in range(1, 10):
        with sockets.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}" if kind == "tcp" else f"unix://{tmp_path}/s{steps}"
        listening = asyncio.get_running_loop().create_task(transport.listen(address, lambda socket: None))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not listening.cancel():
            continue
        with pytest.raises(asyncio.CancelledError):
            await listening
        with pytest.raises(Unreachable):
            await transport.dial(address, timeout_s=1)
        assert not has_socket_file(address)
    await transport.close()


async def test_dial_without_a_listener_is_unreachable_with_a_hint(pair: Pair) -> None:
    unused = {"memory": "memory://unused", "tcp": "tcp://127.0.0.1:1", "unix": "unix:///tmp/unused.sock"}
    with pytest.raises(Unreachable) as caught:
        await pair.transport.dial(unused[pair.transport.scheme], timeout_s=1.0)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_connections_over_the_limit_are_refused_and_counted(kind: str, tmp_path: Path) -> None:
    counters = CountersInMemory()
    transport = make(kind, tmp_path, counters, max_connections=2)
    accepted: list[Reader] = []
    address = (await transport.listen("", lambda socket: accepted.append(Reader(socket)))).address
    # Dialled by the same transport: only accepted connections count.
    readers = [Reader(await transport.dial(address, timeout_s=2.0)) for _ in range(3)]
    await until(lambda: sum(reader.error is not None for reader in readers) == 1)
    assert counters.values == {f"{kind}_connections_refused": 1}
    assert len(accepted) == 2
    open_readers = [reader for reader in readers if reader.error is None]
    for reader in open_readers:
        reader.socket.write(b"x")
    await until(lambda: all(reader.data == b"x" for reader in accepted))
    await open_readers[0].socket.close()
    again = Reader(await transport.dial(address, timeout_s=2.0))
    await until(lambda: len(accepted) == 3)
    assert again.error is None
    await transport.close()


@pytest.mark.parametrize(
    "address",
    ["tcp://", "tcp://nowhere", "tcp://127.0.0.1:99999", "tcp://::1:80", "tcp://a..b:80", "tcp://a\0b:80", "tcp://x:y"],
)
async def test_invalid_address_is_unreachable(address: str, tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        await make("tcp", tmp_path).dial(address, timeout_s=1.0)
    assert caught.value.hint
    with pytest.raises(Unreachable):
        await make("unix", tmp_path).dial("unix://not/absolute", timeout_s=1.0)


async def test_dial_without_an_answer_ends_after_its_timeout(tmp_path: Path) -> None:
    async def never() -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Unreachable, match=r"tcp://somewhere:1 did not answer within 0\.01 s"):
        await stream_socket.connect(never(), "tcp://somewhere:1", 0.01)


async def test_error_of_a_refused_dial_contains_address_and_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"cannot connect to tcp://127\.0\.0\.1:1: Connection refused"):
        await make("tcp", tmp_path).dial("tcp://127.0.0.1:1", timeout_s=1.0)


@pytest.mark.parametrize(
    ("advertise", "expected"),
    [
        ("gate.example:9000", "tcp://gate.example:9000"),
        ("tcp://10.0.0.7", "tcp://10.0.0.7:"),
        (":70", "tcp://127.0.0.1:70"),
    ],
)
async def test_advertised_address_replaces_the_bound_address(advertise: str, expected: str, tmp_path: Path) -> None:
    transport = make("tcp", tmp_path, advertise=advertise)
    listener = await transport.listen("", lambda socket: None)
    assert listener.address.startswith(expected)
    assert not listener.address.endswith(":0")
    await transport.close()


async def test_listener_on_all_interfaces_has_an_address_that_can_be_dialled(tmp_path: Path) -> None:
    transport = make("tcp", tmp_path, host="0.0.0.0")
    listener = await transport.listen("", lambda socket: None)
    host, port = split_host_port(listener.address.removeprefix("tcp://"))
    assert host not in ("", "0.0.0.0")
    assert port > 0
    await transport.close()


async def test_tcp_sockets_have_nodelay(tmp_path: Path) -> None:
    pair = Pair(make("tcp", tmp_path))
    pair.address = (await pair.transport.listen("", pair.accepted.append)).address
    for reader in await pair.connect():
        assert isinstance(reader.socket, StreamSocket)
        raw: Any = reader.socket.endpoint("socket")
        assert raw.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY)
    await pair.transport.close()


async def test_water_marks_are_configurable_and_checked(tmp_path: Path) -> None:
    pair = Pair(make("tcp", tmp_path, high_water_bytes=40_000_000, low_water_bytes=1_000))
    pair.address = (await pair.transport.listen("", pair.accepted.append)).address
    near, far = await pair.connect()
    far.socket.pause_reading()
    near.socket.write(bytes(30_000_000))
    assert not near.is_paused
    near.socket.write(bytes(30_000_000))
    assert near.is_paused
    far.socket.resume_reading()
    await until(lambda: len(far.data) == 60_000_000)
    await pair.transport.close()
    with pytest.raises(OptionError):
        make("tcp", tmp_path, high_water_bytes=1, low_water_bytes=2)


async def test_stale_socket_file_is_replaced_by_a_private_one(tmp_path: Path) -> None:
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


async def test_socket_file_of_another_listener_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    transport = make("unix", tmp_path)
    first = await transport.listen(f"unix://{path}", lambda socket: None)
    path.rename(tmp_path / "moved.sock")
    second = await transport.listen(f"unix://{path}", lambda socket: None)
    await first.close()
    assert path.is_socket()
    await second.close()
    assert not path.exists()
    await transport.close()


async def test_existing_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    transport = make("unix", tmp_path)
    file = tmp_path / "file"
    file.write_text("content")
    for path in (file, file / "below.sock", tmp_path / "missing" / "s.sock"):
        with pytest.raises(Conflict, match="cannot listen on"):
            await transport.listen(f"unix://{path}", lambda socket: None)
    assert file.read_text() == "content"


async def test_sockets_without_a_name_are_created_in_the_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    transport = make("unix", state)
    addresses = {(await transport.listen("", lambda socket: None)).address for _ in range(3)}
    assert {Path(address.removeprefix("unix://")).parent for address in addresses} == {state}
    assert len(addresses) == 3
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    await transport.close()
    assert list(state.iterdir()) == []


async def test_path_that_is_too_long_is_a_bad_request_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        await make("unix", tmp_path).listen("unix:///" + "x" * 120, lambda socket: None)
    assert "shorter" in caught.value.hint


async def test_joined_transport_selects_the_transport_by_scheme(tmp_path: Path) -> None:
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
        await joined.dial("unknown://x", timeout_s=1.0)
    await joined.close()
