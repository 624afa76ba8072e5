"""Connections over a pair of sockets: dispatch of frames, batching of writes, draining, and peers that violate the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from micro_core.contract import CountersInMemory
from micro_core.contract.errors import (
    Closed,
    Conflict,
    Draining,
    Ended,
    LinkLost,
    MicroError,
    Overloaded,
    ServiceNotFound,
    error_from_wire,
)
from micro_core.rpc.connection import EAGER_FRAMES, Connection
from micro_core.rpc.connection_protocol import MAX_STREAM_ID, MAX_UNREAD_REFUSALS
from micro_core.rpc.graceful_shutdown import send_goaway_and_flush
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import EventHeader, decode_map, encode_header, encode_hello

if TYPE_CHECKING:
    from tests.rpc.conftest import PairedSocket

Connect = Callable[..., tuple[Connection, Connection]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Owner:
    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.errors: list[MicroError] = []

    def frame_received(self, frame: Frame) -> None:
        self.frames.append(frame)

    def connection_lost(self, error: MicroError) -> None:
        self.errors.append(error)


class Handler(Owner):
    """Attaches an owner to each request if `attaches` is true."""

    attaches = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Frame] = []
        self.owners: list[Owner] = []
        self.events: list[tuple[EventHeader, bytes]] = []

    def request_received(self, connection: Connection, frame: Frame) -> None:
        self.requests.append(frame)
        if self.attaches:
            self.owners.append(Owner())
            connection.attach(frame.stream, self.owners[-1])

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:
        self.events.append((header, body))

    def connection_lost(self, connection: Connection, error: MicroError) -> None:  # type: ignore[override]
        self.errors.append(error)


def counted(connection: Connection) -> dict[str, int]:
    assert isinstance(connection._counters, CountersInMemory)
    return connection._counters.values


def answers(socket: PairedSocket) -> list[Frame]:
    return list(FrameDecoder().receive_data(bytes(socket.sent)))


async def test_frames_reach_the_owner_of_their_stream(connect: Connect, until: Until) -> None:
    handler, owner = Handler(), Owner()
    near, far = connect(None, handler)
    stream = near.open_stream(owner)
    near.send(frames.encode(Kind.REQUEST, stream, b"header", b"body"))
    await until(lambda: bool(handler.requests))
    far.send(frames.encode(Kind.RESPONSE, stream, b"", b"answer"))
    await until(lambda: bool(owner.frames))
    assert handler.requests[0].body == b"body"
    assert owner.frames[0].body == b"answer"


async def test_dialling_side_uses_odd_stream_ids_and_other_side_even_ones(connect: Connect) -> None:
    near, far = connect()
    assert [near.open_stream(Owner()) for _ in range(3)] == [1, 3, 5]
    assert [far.open_stream(Owner()) for _ in range(3)] == [2, 4, 6]


async def test_hello_transfers_the_node_id(pair: tuple[PairedSocket, PairedSocket], until: Until) -> None:
    near = Connection(pair[0], dialed=True, node_id="left")
    far = Connection(pair[1], dialed=False, node_id="right")
    await until(lambda: near.wire_version == far.wire_version == 1)
    assert (near.peer_id, far.peer_id) == ("right", "left")


async def test_frames_of_one_loop_iteration_are_written_once(
    pair: tuple[PairedSocket, PairedSocket], until: Until
) -> None:
    handler = Handler()
    near = Connection(pair[0], dialed=True)
    Connection(pair[1], dialed=False, handler=handler)
    for _ in range(20):
        near.send(frames.encode(Kind.REQUEST, near.open_stream(Owner()), b"h", b"b"))
    assert pair[0].sent == b""
    await until(lambda: len(handler.requests) == 20)
    assert len(pair[1]._inbox) == 0


async def test_many_frames_are_written_before_the_loop_iteration_ends(
    pair: tuple[PairedSocket, PairedSocket], until: Until
) -> None:
    handler = Handler()
    near = Connection(pair[0], dialed=True)
    Connection(pair[1], dialed=False, handler=handler)
    for _ in range(EAGER_FRAMES):
        near.send(frames.encode(Kind.REQUEST, near.open_stream(Owner()), b"h", b"b"))
    assert pair[0].sent != b""
    await until(lambda: len(handler.requests) == EAGER_FRAMES)


async def test_frame_for_a_closed_stream_is_dropped_and_counted(connect: Connect, until: Until) -> None:
    near, far = connect(None, Handler())
    stream = near.open_stream(Owner())
    near.close_stream(stream)
    far.send(frames.encode(Kind.RESPONSE, stream, b"", b"late"))
    await until(lambda: counted(near).get("frames_for_closed_stream") == 1)
    assert near.error is None


async def test_owners_and_handler_are_notified_of_the_end_once(
    pair: tuple[PairedSocket, PairedSocket],
) -> None:
    handler = Handler()
    near = Connection(pair[0], dialed=True, handler=handler)
    owners = [Owner() for _ in range(3)]
    for owner in owners:
        near.open_stream(owner)
    pair[0].lose(LinkLost("cut"))
    near.socket_lost(LinkLost("again"))
    assert [[error.detail for error in owner.errors] for owner in owners] == [["cut"]] * 3
    assert [error.detail for error in handler.errors] == ["cut"]
    assert near.open_streams == 0
    with pytest.raises(LinkLost):
        near.open_stream(Owner())


async def test_close_ends_streams_with_closed_here_and_with_ended_at_the_peer(connect: Connect, until: Until) -> None:
    handler, owner = Handler(), Owner()
    near, far = connect(None, handler)
    near.send(frames.encode(Kind.REQUEST, near.open_stream(owner), b"h"))
    await until(lambda: bool(handler.owners))
    await near.close()
    await far.wait_closed()
    assert isinstance(owner.errors[0], Closed)
    assert isinstance(handler.owners[0].errors[0], Ended)


async def test_failing_owner_does_not_prevent_the_notification_of_others(
    pair: tuple[PairedSocket, PairedSocket], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Owner):
        def connection_lost(self, error: MicroError) -> None:
            raise RuntimeError("bug")

    near, owner = Connection(pair[0], dialed=True), Owner()
    near.open_stream(Faulty())
    near.open_stream(owner)
    pair[0].lose(LinkLost("cut"))
    assert len(owner.errors) == 1
    assert "an owner failed" in caplog.text


async def test_lost_handler_is_called_once_before_the_connection_handler(
    pair: tuple[PairedSocket, PairedSocket],
) -> None:
    order: list[str] = []

    class Ordered(Handler):
        def connection_lost(self, connection: Connection, error: MicroError) -> None:  # type: ignore[override]
            order.append("connection handler")

    near = Connection(pair[0], dialed=True, handler=Ordered())
    near.set_lost_handler(lambda connection, error: order.append("lost handler"))
    with pytest.raises(Conflict):
        near.set_lost_handler(lambda connection, error: None)
    pair[0].lose(LinkLost("cut"))
    await near.close()
    assert order == ["lost handler", "connection handler"]


async def test_lost_handler_of_an_ended_connection_is_called_at_once(pair: tuple[PairedSocket, PairedSocket]) -> None:
    near = Connection(pair[0], dialed=True)
    pair[0].lose(LinkLost("cut"))
    errors: list[str] = []
    near.set_lost_handler(lambda connection, error: errors.append(error.detail))
    assert errors == ["cut"]


async def test_failing_handler_closes_the_connection_and_is_counted(
    connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Handler):
        def request_received(self, connection: Connection, frame: Frame) -> None:
            raise RuntimeError("bug")

    handler, owner, other = Faulty(), Owner(), Owner()
    near, far = connect(None, handler)
    stream = near.open_stream(owner)
    far.open_stream(other)
    message = frames.encode(Kind.EVENT, 0, encode_header(EventHeader("orders", "1" * 32)))
    near.send(frames.encode(Kind.REQUEST, stream, b"h") + message)
    await until(lambda: bool(owner.errors))
    assert isinstance(far.error, LinkLost)
    assert len(other.errors) == len(handler.errors) == 1
    assert handler.events == []
    assert counted(far)["connection_bugs"] == 1
    assert "processing a frame failed" in caplog.text


@pytest.mark.parametrize("end", ["lost", "aborted", "closed"])
async def test_end_of_the_connection_ends_round_trips_and_the_wait_for_hello(
    pair: tuple[PairedSocket, PairedSocket], end: str
) -> None:
    near = Connection(pair[0], dialed=True)
    waiting = asyncio.get_running_loop().create_task(near.round_trip())
    await asyncio.sleep(0)
    match end:
        case "lost":
            pair[0].lose(LinkLost("cut"))
        case "aborted":
            near.abort(LinkLost("cut"))
        case _:
            await near.close()
    async with asyncio.timeout(1.0):
        await waiting
        await near.round_trip()
    assert near._hello_timer.cancelled()


async def test_failure_of_a_socket_that_is_closed_in_the_background_is_counted(
    pair: tuple[PairedSocket, PairedSocket], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(pair[0], "close", fail)
    near = Connection(pair[0], dialed=True)
    near.abort(LinkLost("cut"))
    await until(lambda: counted(near).get("connection_bugs") == 1)


# Violations of the protocol. Each one closes its own connection and no other.

HELLO = frames.encode(Kind.HELLO, 0, encode_hello("peer"))
REQUEST = frames.encode(Kind.REQUEST, 1, b"h")
VIOLATIONS = {
    "no hello": REQUEST,
    "two hellos": HELLO + HELLO,
    "endless frame": HELLO + b"\xff\xff\xff\xff" + bytes(16),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_violation_closes_only_its_own_connection(
    violation: bytes, pair: tuple[PairedSocket, PairedSocket], connect: Connect, until: Until
) -> None:
    handler = Handler()
    handler.attaches = False
    other_near, other_far = connect(None, handler)
    victim = Connection(pair[1], dialed=False, handler=handler, counters=CountersInMemory())
    pair[0].start(_Ignore())
    pair[0].write(violation)
    await until(lambda: victim.error is not None)
    assert isinstance(victim.error, LinkLost)
    assert counted(victim)["protocol_violations"] == 1
    assert other_near.error is None
    assert other_far.error is None
    await until(lambda: pair[0].error is not None)


class _Ignore:
    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def socket_lost(self, error: MicroError) -> None: ...


async def test_oversized_event_closes_the_connection(pair: tuple[PairedSocket, PairedSocket], until: Until) -> None:
    handler = Handler()
    victim = Connection(pair[1], dialed=False, handler=handler, counters=CountersInMemory())
    pair[0].start(_Ignore())
    header = encode_header(EventHeader("topic", "0" * 32))
    piece = bytes(limits.MAX_FRAME_BODY_BYTES)
    pair[0].write(HELLO + frames.encode(Kind.EVENT, 0, header, piece, frames.MORE))
    for _ in range(limits.MAX_BODY_BYTES // len(piece)):
        pair[0].write(frames.encode(Kind.EVENT, 0, b"", piece, frames.MORE))
    await until(lambda: victim.error is not None)
    assert handler.events == []


async def test_event_in_several_frames_arrives_complete(connect: Connect, until: Until) -> None:
    handler = Handler()
    near, _ = connect(None, handler)
    body = bytes(range(256)) * 1024
    for size in (0, 10, len(body)):
        header = encode_header(EventHeader("orders", "1" * 32))
        near.send(b"".join(frames.encode_message(Kind.EVENT, 0, header, body[:size])))
    await until(lambda: len(handler.events) == 3)
    assert [event for _, event in handler.events] == [b"", body[:10], body]
    assert handler.events[2][0].topic == "orders"


async def test_number_of_streams_per_side_is_limited(
    connect: Connect, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_STREAMS_PER_CONNECTION", 3)
    handler, owner = Handler(), Owner()
    near, far = connect(None, handler)
    for stream in (1, 3, 5):
        near._protocol.streams[stream] = Owner()
        near.send(frames.encode(Kind.REQUEST, stream, b"h"))
    near._protocol.streams[7] = owner
    near.send(frames.encode(Kind.REQUEST, 7, b"h"))
    await until(lambda: bool(owner.frames))
    assert isinstance(error_from_wire(decode_map(owner.frames[0].header)), Overloaded)
    assert len(handler.requests) == 3
    with pytest.raises(Overloaded):
        near.open_stream(owner)
    assert far.open_stream(owner) == 2, "streams of the peer do not count for this side"
    far.close_stream(5)
    near._protocol.streams[9] = Owner()
    near.send(frames.encode(Kind.REQUEST, 9, b"h"))
    await until(lambda: len(handler.requests) == 4)


async def test_requests_are_refused_without_a_handler(connect: Connect, until: Until) -> None:
    owner = Owner()
    near, _ = connect(None, None)
    near.send(frames.encode(Kind.REQUEST, near.open_stream(owner), b"h"))
    await until(lambda: bool(owner.frames))
    assert isinstance(error_from_wire(decode_map(owner.frames[0].header)), ServiceNotFound)


async def test_requests_after_goaway_are_refused_with_draining(connect: Connect, until: Until) -> None:
    owner = Owner()
    near, far = connect(None, Handler())
    far.send_goaway()
    near.send(frames.encode(Kind.REQUEST, near.open_stream(owner), b"h"))
    await until(lambda: bool(owner.frames) and not near.can_open_streams)
    assert isinstance(error_from_wire(decode_map(owner.frames[0].header)), Draining)
    with pytest.raises(Draining):
        near.open_stream(Owner())
    assert far.open_stream(Owner()), "a draining side may still open streams"


async def test_ping_is_answered_with_its_body(pair: tuple[PairedSocket, PairedSocket], until: Until) -> None:
    Connection(pair[1], dialed=False)
    pair[0].start(_Ignore())
    pair[0].write(HELLO + frames.encode(Kind.PING, 0, b"", b"12345678"))
    await until(lambda: len(answers(pair[1])) == 2)
    assert answers(pair[1])[1] == Frame(Kind.PONG, 0, 0, b"", b"12345678")


async def test_data_is_queued_and_counted_while_the_socket_is_full(
    pair: tuple[PairedSocket, PairedSocket], until: Until
) -> None:
    near = Connection(pair[0], dialed=True)
    handler = Handler()
    far = Connection(pair[1], dialed=False, handler=handler)
    await until(lambda: far.wire_version == 1)
    pair[1].pause_reading()
    stream = near.open_stream(Owner())
    piece = bytes(limits.MAX_FRAME_BODY_BYTES)
    near.send(frames.encode(Kind.REQUEST, stream, b"h", piece))
    while not near.is_paused:
        near.send(frames.encode(Kind.DATA, stream, b"", piece))
        await until(lambda: near.buffered_bytes == 0 or near.is_paused)
    assert not near.is_send_buffer_full
    writing = asyncio.get_running_loop().create_task(near.writable())
    while not near.is_send_buffer_full:
        near.send(frames.encode(Kind.DATA, stream, b"", piece))
    assert near.buffered_bytes > limits.MAX_CONNECTION_BUFFER_BYTES
    written = len(pair[0].sent)
    assert written < 1024 * 1024, "data was written to a full socket"
    pair[1].resume_reading()
    await writing
    assert near.buffered_bytes == 0


async def test_end_of_the_connection_wakes_waiting_writers(
    pair: tuple[PairedSocket, PairedSocket],
) -> None:
    near = Connection(pair[0], dialed=True)
    near.pause_writing()
    writers = [asyncio.get_running_loop().create_task(near.writable()) for _ in range(2)]
    await asyncio.sleep(0)
    pair[0].lose(LinkLost("cut"))
    for ended in await asyncio.gather(*writers, return_exceptions=True):
        assert isinstance(ended, LinkLost)
    with pytest.raises(LinkLost):
        await near.writable()


async def test_peer_that_sends_requests_but_reads_no_refusals_is_disconnected(
    pair: tuple[PairedSocket, PairedSocket], until: Until
) -> None:
    victim = Connection(pair[1], dialed=False, counters=CountersInMemory())
    victim.pause_writing()
    pair[0].start(_Ignore())
    pair[0].write(HELLO)
    pair[0].write(
        b"".join(frames.encode(Kind.REQUEST, 1 + 2 * number, b"h") for number in range(MAX_UNREAD_REFUSALS + 1))
    )
    await until(lambda: victim.error is not None)
    assert victim.buffered_bytes == 0


async def test_connection_without_stream_ids_opens_no_more_streams(connect: Connect) -> None:
    near, _ = connect()
    near._protocol._next_stream = MAX_STREAM_ID
    assert not near.is_out_of_stream_ids
    assert near.open_stream(Owner()) == MAX_STREAM_ID
    assert not near.can_open_streams
    assert near.is_out_of_stream_ids
    with pytest.raises(Draining):
        near.open_stream(Owner())


async def test_closing_connection_opens_no_more_streams(connect: Connect) -> None:
    near, _ = connect()
    closing = asyncio.ensure_future(near.close())
    await asyncio.sleep(0)
    with pytest.raises(MicroError):
        near.open_stream(Owner())
    assert not near.can_open_streams
    await closing


async def test_peer_that_sends_no_hello_is_disconnected(
    pair: tuple[PairedSocket, PairedSocket], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.01)
    victim = Connection(pair[1], dialed=False)
    await until(lambda: victim.error is not None)
    assert victim.error is not None
    assert "no HELLO" in victim.error.detail


async def test_request_that_crosses_a_goaway_is_refused_before_the_flush_ends(connect: Connect, until: Until) -> None:
    owner = Owner()
    near, far = connect(None, Handler())
    await until(lambda: near.wire_version == far.wire_version == 1)
    flush = asyncio.ensure_future(send_goaway_and_flush([far]))
    await asyncio.sleep(0)
    # The peer has not read the GOAWAY yet.
    near.send(frames.encode(Kind.REQUEST, near.open_stream(owner), b"header", b"body"))
    await flush
    await until(lambda: bool(owner.frames))
    error = error_from_wire(decode_map(owner.frames[0].header))
    assert isinstance(error, Draining)
    assert error.retry_is_safe


async def test_flush_does_not_wait_for_a_peer_that_does_not_read(
    pair: tuple[PairedSocket, PairedSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_core.rpc.graceful_shutdown.FLUSH_TIMEOUT_S", 0.01)
    unread = Connection(pair[0], dialed=False)
    await asyncio.wait_for(send_goaway_and_flush([unread]), 5.0)


async def test_flush_ends_with_the_connection(connect: Connect) -> None:
    _, far = connect()
    flush = asyncio.ensure_future(send_goaway_and_flush([far]))
    await asyncio.sleep(0)
    far.abort(LinkLost("broken"))
    await asyncio.wait_for(flush, 0.5)


async def test_round_trip_ends_when_the_peer_has_read_all_earlier_data(
    pair: tuple[PairedSocket, PairedSocket], until: Until
) -> None:
    owner = Owner()
    near, far = Connection(pair[0], dialed=True), Connection(pair[1], dialed=False)
    await until(lambda: near.wire_version == far.wire_version == 1)
    stream = near.open_stream(owner)
    pair[0].pause_reading()
    far.send(frames.encode(Kind.RESPONSE, stream, b"", b"answer"))
    round_trip = asyncio.ensure_future(far.round_trip())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not round_trip.done()
    pair[0].resume_reading()
    await round_trip
    assert [frame.body for frame in owner.frames] == [b"answer"]
