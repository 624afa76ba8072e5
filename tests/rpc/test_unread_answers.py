"""A caller that asks and does not read: what the serving side and a node may be made to hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from micro_core.contract.errors import Overloaded, error_from_wire
from micro_core.rpc.connection import Connection
from micro_core.rpc.server import Server
from micro_core.wire import codec, frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, CallMode, decode_map, encode_header, encode_hello

if TYPE_CHECKING:
    from tests.rpc.conftest import PairedSocket

Pair = tuple["PairedSocket", "PairedSocket"]
Until = Callable[[Callable[[], bool]], Awaitable[None]]
KIB = 1024


class Asker:
    """A peer that sends what it likes over its end of a pair of sockets."""

    def __init__(self, socket: PairedSocket) -> None:
        self.socket = socket
        self.received = bytearray()
        self.is_reading = True
        socket.start(self)
        socket.write(frames.encode(Kind.HELLO, 0, encode_hello()))

    def ask(self, stream: int, endpoint: str, mode: int = CallMode.UNARY, request: object = None) -> None:
        header = encode_header(CallHeader("worker", endpoint, mode, 60_000))
        self.socket.write(frames.encode(Kind.REQUEST, stream, header, codec.encode(request)))

    def stop_reading(self) -> None:
        self.socket.pause_reading()

    def frames(self) -> list[Frame]:
        return list(FrameDecoder().receive_data(bytes(self.received)))

    def refused(self) -> int:
        found = [frame for frame in self.frames() if frame.kind == Kind.ERROR]
        errors = [error_from_wire(decode_map(frame.header)) for frame in found]
        assert all(isinstance(error, Overloaded) for error in errors)
        return len(errors)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        """It takes no notice."""

    def resume_writing(self) -> None:
        """It takes no notice."""

    def socket_lost(self, error: object) -> None:
        """It does not care."""


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


async def test_answers_that_wait_for_credit_are_bounded_together_and_freed_when_their_callers_go(
    pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_ANSWER_BYTES", 3_100 * KIB)
    server = worker()
    asker = Asker(pair[0])
    Connection(pair[1], dialed=False, handler=server)
    # No CREDIT is ever sent: each answer of 1 MiB stays, but for its first window.
    for stream in range(1, 21, 2):
        asker.ask(stream, "Do.Big", request=1_000 * KIB)
    await until(lambda: asker.refused() == 7)
    assert server.in_flight == 3
    assert server.counters.values["answers_refused_overloaded"] == 7  # type: ignore[attr-defined]
    for stream in range(1, 21, 2):
        asker.socket.write(frames.encode(Kind.CANCEL, stream))
    await until(lambda: server.in_flight == 0)
    for stream in (21, 23, 25):
        asker.ask(stream, "Do.Big", request=1_000 * KIB)
    await until(lambda: server.in_flight == 3)
    assert asker.refused() == 7


async def test_a_connection_that_is_not_read_gets_no_more_answers(
    pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNREAD_BYTES", 1_000 * KIB)
    server = worker()
    asker = Asker(pair[0])
    connection = Connection(pair[1], dialed=False, handler=server)
    asker.stop_reading()
    # Each answer is within its call's credit: it is the sum that must not be.
    for stream in range(1, 201, 2):
        asker.ask(stream, "Do.Big", request=200 * KIB)
    await until(lambda: server.in_flight == 0 and server.stats(0.0, 0.0)["requests"] == 100)
    assert connection.buffered_bytes < 1_500 * KIB
    asker.socket.resume_reading()
    await until(lambda: sum(frame.kind in (Kind.RESPONSE, Kind.ERROR) for frame in asker.frames()) == 100)
    assert asker.refused() > 50
    assert connection.buffered_bytes == 0


async def test_streams_of_a_connection_that_is_not_read_wait(pair: Pair, until: Until) -> None:
    server = worker()
    asker = Asker(pair[0])
    connection = Connection(pair[1], dialed=False, handler=server)
    asker.stop_reading()
    for stream in range(1, 401, 2):
        asker.ask(stream, "Do.Items", CallMode.SERVER_STREAM, 250 * KIB)
    await until(lambda: server.in_flight == 200)
    for _ in range(200):
        await asyncio.sleep(0)
    # One window of the socket, and what was on its way when that was full; not 200 times 256 KiB.
    assert connection.buffered_bytes < 16 * 1024 * KIB
    await connection.close()
    await until(lambda: server.in_flight == 0)
