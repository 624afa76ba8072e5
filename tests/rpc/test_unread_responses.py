"""Peers that do not read: limits on the memory that they use at a server, and the end of sends that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from micro_core.contract.errors import DeadlineExceeded, LinkLost, Overloaded, error_from_wire
from micro_core.rpc.client_call import ClientStream
from micro_core.rpc.connection import Connection
from micro_core.rpc.server import Server
from micro_core.wire import codec, frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, CallMode, decode_map, encode_header, encode_hello, encode_map

if TYPE_CHECKING:
    from tests.rpc.conftest import PairedSocket

Pair = tuple["PairedSocket", "PairedSocket"]
Until = Callable[[Callable[[], bool]], Awaitable[None]]
KIB = 1024


class SlowClient:
    """A client that writes frames directly to its end of a pair of sockets, and grants no credit."""

    def __init__(self, socket: PairedSocket) -> None:
        self.socket = socket
        self.received = bytearray()
        socket.start(self)
        socket.write(frames.encode(Kind.HELLO, 0, encode_hello()))

    def request(self, stream: int, endpoint: str, mode: int = CallMode.UNARY, body: object = None) -> None:
        header = encode_header(CallHeader("worker", endpoint, mode, 60_000))
        self.socket.write(frames.encode(Kind.REQUEST, stream, header, codec.encode(body)))

    def stop_reading(self) -> None:
        self.socket.pause_reading()

    def frames(self) -> list[Frame]:
        return list(FrameDecoder().receive_data(bytes(self.received)))

    def refusals(self) -> int:
        found = [frame for frame in self.frames() if frame.kind == Kind.ERROR]
        errors = [error_from_wire(decode_map(frame.header)) for frame in found]
        assert all(isinstance(error, Overloaded) for error in errors)
        return len(errors)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        """Ignored."""

    def resume_writing(self) -> None:
        """Ignored."""

    def socket_lost(self, error: object) -> None:
        """Ignored."""


def new_stream(connection: Connection, *, timeout_s: float) -> ClientStream:
    async def open_call() -> tuple[Connection, bytes, float]:
        return connection, b"", connection.loop.time() + timeout_s

    return ClientStream(
        open_call,
        on_ended=lambda error: None,
        mode=CallMode.CLIENT_STREAM,
        content_type=codec.BYTES,
        convert=None,
        initial_items=(),
        at="",
    )


def worker() -> Server:
    server = Server("worker", at="worker-1")

    async def big(size: int) -> bytes:
        return bytes(size)

    async def items(size: int) -> AsyncIterator[bytes]:
        while True:
            yield bytes(size)

    server.add("Do.Big", big)
    server.add("Do.Items", items)
    return server


async def test_responses_that_wait_for_credit_are_limited_in_total_and_freed_by_cancellation(
    pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_ANSWER_BYTES", 3_100 * KIB)
    server = worker()
    client = SlowClient(pair[0])
    Connection(pair[1], dialed=False, handler=server)
    # The client never sends CREDIT: of each response of 1 MiB, only the first window is sent.
    for stream in range(1, 21, 2):
        client.request(stream, "Do.Big", body=1_000 * KIB)
    await until(lambda: client.refusals() == 7)
    assert server.in_flight == 3
    assert server.counters.values["answers_refused_overloaded"] == 7  # type: ignore[attr-defined]
    for stream in range(1, 21, 2):
        client.socket.write(frames.encode(Kind.CANCEL, stream))
    await until(lambda: server.in_flight == 0)
    for stream in (21, 23, 25):
        client.request(stream, "Do.Big", body=1_000 * KIB)
    await until(lambda: server.in_flight == 3)
    assert client.refusals() == 7


async def test_server_sends_no_more_responses_over_a_connection_that_is_not_read(
    pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNREAD_BYTES", 1_000 * KIB)
    server = worker()
    client = SlowClient(pair[0])
    connection = Connection(pair[1], dialed=False, handler=server)
    client.stop_reading()
    # Each response is within the credit of its call, but their sum exceeds the limit.
    for stream in range(1, 201, 2):
        client.request(stream, "Do.Big", body=200 * KIB)
    await until(lambda: server.in_flight == 0 and server.stats(0.0, 0.0)["requests"] == 100)
    assert connection.buffered_bytes < 1_500 * KIB
    client.socket.resume_reading()
    await until(lambda: sum(frame.kind in (Kind.RESPONSE, Kind.ERROR) for frame in client.frames()) == 100)
    assert client.refusals() > 50
    assert connection.buffered_bytes == 0


async def test_streams_pause_while_the_connection_is_not_read(pair: Pair, until: Until) -> None:
    server = worker()
    client = SlowClient(pair[0])
    connection = Connection(pair[1], dialed=False, handler=server)
    client.stop_reading()
    for stream in range(1, 401, 2):
        client.request(stream, "Do.Items", CallMode.SERVER_STREAM, 250 * KIB)
    await until(lambda: server.in_flight == 200)
    for _ in range(200):
        await asyncio.sleep(0)
    # The buffer of the socket and the items in flight when it was full, not 200 times 256 KiB.
    assert connection.buffered_bytes < 16 * 1024 * KIB
    await connection.close()
    await until(lambda: server.in_flight == 0)


async def test_deadline_ends_a_send_that_waits_until_the_connection_is_read(pair: Pair) -> None:
    connection = Connection(pair[0], dialed=True)
    stream = new_stream(connection, timeout_s=0.05)
    async with asyncio.timeout(2.0), stream:
        connection.pause_writing()
        with pytest.raises(DeadlineExceeded):
            await stream.send(b"item")


async def test_error_of_the_server_ends_a_send_that_waits_until_the_connection_is_read(pair: Pair) -> None:
    connection = Connection(pair[0], dialed=True)
    stream = new_stream(connection, timeout_s=60.0)
    async with asyncio.timeout(2.0), stream:
        connection.pause_writing()
        sending = asyncio.get_running_loop().create_task(stream.send(b"item"))
        await asyncio.sleep(0)
        assert not sending.done()
        error = frames.encode(Kind.ERROR, 1, encode_map(Overloaded("full").to_wire()))
        connection.data_received(frames.encode(Kind.HELLO, 0, encode_hello()) + error)
        with pytest.raises(Overloaded):
            await sending


async def test_loss_of_the_connection_ends_a_send_that_waits_until_it_is_read(pair: Pair) -> None:
    connection = Connection(pair[0], dialed=True)
    stream = new_stream(connection, timeout_s=60.0)
    async with asyncio.timeout(2.0), stream:
        connection.pause_writing()
        sending = asyncio.get_running_loop().create_task(stream.send(b"item"))
        await asyncio.sleep(0)
        pair[0].lose(LinkLost("cut"))
        with pytest.raises(LinkLost):
            await sending
