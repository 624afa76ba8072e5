"""A forwarded call of which one end does not read, or sends more than its credit allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from micro_core.contract.errors import Malformed, MicroError, Overloaded, error_from_wire
from micro_core.proxy.forwarded_call import CalleeEnd, CallerEnd, ForwardedCall
from micro_core.rpc.connection import Connection
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, CallMode, decode_map

REQUEST = Frame(int(Kind.REQUEST), 0, 1, b"", b"")
PIECE = bytes(limits.MAX_FRAME_BODY_BYTES)


class FullSocket:
    """A socket whose peer stops reading after the first bytes."""

    local, remote = "memory://here", "memory://there"

    def __init__(self) -> None:
        self.written = b""
        self.receiver: Any = None

    def start(self, receiver: Any) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> None:
        self.written += data
        self.receiver.pause_writing()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    async def close(self) -> None: ...

    def read_all(self) -> list[Frame]:
        """Return everything that was written, as a peer that starts reading again."""
        self.receiver.resume_writing()
        return list(FrameDecoder().receive_data(self.written))


class RecordingForwarder:
    """Implements `CallForwarder` and records the calls that have finished."""

    at = "node a"

    def __init__(self) -> None:
        self.finished_calls: list[ForwardedCall] = []

    def reroute(self, call: ForwardedCall, error: MicroError) -> bool:
        return False

    def answered(self, call: ForwardedCall) -> None: ...

    def refuse_unread(self, call: ForwardedCall, receiver: str) -> None:
        call.refuse(Overloaded(receiver, at=self.at))

    def caller_sent(self, call: ForwardedCall, size_bytes: int) -> None: ...

    def callee_lost(self, call: ForwardedCall, error: MicroError) -> None: ...

    def expired(self, call: ForwardedCall) -> None: ...

    def finished(self, call: ForwardedCall) -> None:
        self.finished_calls.append(call)


def error_of(found: list[Frame]) -> MicroError:
    (error,) = [error_from_wire(decode_map(frame.header)) for frame in found if frame.kind == Kind.ERROR]
    return error


def new_call(forwarder: RecordingForwarder, caller: Connection) -> ForwardedCall:
    header = CallHeader("worker", "Do.It", CallMode.BIDIRECTIONAL, 60_000)
    call = ForwardedCall(forwarder, caller, REQUEST, header, 0.0)
    caller.attach(1, CallerEnd(call))
    return call


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_frames_waiting_for_the_next_hop_are_bounded_by_the_credit_of_the_caller() -> None:
    forwarder, socket = RecordingForwarder(), FullSocket()
    call = new_call(forwarder, Connection(socket, dialed=False))
    for _ in range(3):
        call.forward_to_callee(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert sum(len(frame.body) for frame in call.waiting) == 3 * len(PIECE)
    call.forward_to_callee(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert forwarder.finished_calls == [call]
    assert call.waiting == []
    await settled()
    assert isinstance(error_of(socket.read_all()), Malformed)


@pytest.mark.parametrize("stops", ["caller", "next hop"])
async def test_call_ends_with_overloaded_when_one_end_stops_reading(
    stops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNREAD_BYTES", 10 * len(PIECE))
    forwarder, near, far = RecordingForwarder(), FullSocket(), FullSocket()
    caller, callee = Connection(near, dialed=False), Connection(far, dialed=True)
    await settled()
    call = new_call(forwarder, caller)
    call.callee, call.callee_stream = callee, callee.open_stream(CalleeEnd(call))
    forward: Callable[[Frame], None] = call.forward_to_caller if stops == "caller" else call.forward_to_callee
    full = caller if stops == "caller" else callee
    for _ in range(12):
        if not forwarder.finished_calls:
            forward(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert forwarder.finished_calls == [call]
    assert full.buffered_bytes < 13 * len(PIECE)
    await settled()
    assert isinstance(error_of(near.read_all()), Overloaded)
    assert [frame.kind for frame in far.read_all()][-1] == Kind.CANCEL, "the call is cancelled at the next hop"
