"""A forwarded call between two ends of which one does not read, or sends what it has no credit for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from micro_core.contract.errors import Malformed, MicroError, Overloaded, error_from_wire
from micro_core.proxy.forwarded_call import CalleeEnd, CallerEnd, Pair
from micro_core.proxy.proxy import Proxy
from micro_core.rpc.connection import Connection
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, CallMode, decode_map

REQUEST = Frame(int(Kind.REQUEST), 0, 1, b"", b"")
PIECE = bytes(limits.MAX_FRAME_BODY_BYTES)


class FullSocket:
    """A socket whose peer reads nothing after the first bytes."""

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

    def read_on(self) -> list[Frame]:
        """Take all that waits, as a peer that reads again."""
        self.receiver.resume_writing()
        return list(FrameDecoder().receive_data(self.written))


class Calls:
    """What a pair tells its proxy."""

    at = "node a"

    def __init__(self) -> None:
        self.finished: list[Pair] = []
        self.clogged = lambda pair, where: pair.refuse(Overloaded(where, at=self.at))

    def as_proxy(self) -> Proxy:
        told = SimpleNamespace(at=self.at, clogged=self.clogged, finished=self.finished.append, answered=lambda _: None)
        return cast("Proxy", told)


def error_of(found: list[Frame]) -> MicroError:
    (error,) = [error_from_wire(decode_map(frame.header)) for frame in found if frame.kind == Kind.ERROR]
    return error


def new_pair(calls: Calls, caller: Connection) -> Pair:
    header = CallHeader("worker", "Do.It", CallMode.BIDIRECTIONAL, 60_000)
    pair = Pair(calls.as_proxy(), caller, REQUEST, header, 0.0)
    caller.attach(1, CallerEnd(pair))
    return pair


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_a_caller_sends_while_the_next_hop_is_dialled_is_bounded_by_its_credit() -> None:
    calls, socket = Calls(), FullSocket()
    pair = new_pair(calls, Connection(socket, dialed=False))
    for _ in range(3):
        pair.pass_on(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert sum(len(frame.body) for frame in pair.waiting) == 3 * len(PIECE)
    pair.pass_on(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert calls.finished == [pair]
    assert pair.waiting == []
    await settled()
    assert isinstance(error_of(socket.read_on()), Malformed)


@pytest.mark.parametrize("stops", ["caller", "next hop"])
async def test_a_call_whose_reader_has_stopped_ends_before_it_fills_the_memory(
    stops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNREAD_BYTES", 10 * len(PIECE))
    calls, near, far = Calls(), FullSocket(), FullSocket()
    caller, callee = Connection(near, dialed=False), Connection(far, dialed=True)
    await settled()
    pair = new_pair(calls, caller)
    pair.callee, pair.callee_stream = callee, callee.open_stream(CalleeEnd(pair))
    pass_on: Callable[[Frame], None] = pair.answer if stops == "caller" else pair.pass_on
    clogged = caller if stops == "caller" else callee
    for _ in range(12):
        if not calls.finished:
            pass_on(Frame(int(Kind.DATA), frames.MORE, 1, b"", PIECE))
    assert calls.finished == [pair]
    assert clogged.buffered_bytes < 13 * len(PIECE)
    await settled()
    assert isinstance(error_of(near.read_on()), Overloaded)
    assert [frame.kind for frame in far.read_on()][-1] == Kind.CANCEL, "the other side is told too"
