"""A forwarded call: two streams of two connections, and what may still be done about it.

    caller ── stream ──> CallerEnd ─ Pair ─ CalleeEnd <── stream ── next hop

Frames are passed on inside the callback that brought them: no task, no decoding. The pair keeps the request until
the first answer, so that a hop that refused unstarted work can be passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from micro_core.contract.errors import Malformed, MicroError, error_from_wire
from micro_core.contract.table import Route
from micro_core.rpc.calls import BEGUN
from micro_core.rpc.connection import Connection
from micro_core.rpc.credit import FRAME_COST_BYTES
from micro_core.rpc.waiting import Waiting
from micro_core.wire import limits
from micro_core.wire.frames import MORE, Frame, Kind, encode, restream
from micro_core.wire.header import CallHeader, decode_map

if TYPE_CHECKING:
    from micro_core.proxy.proxy import Proxy

_REQUEST, _RESPONSE, _ERROR, _DATA = int(Kind.REQUEST), int(Kind.RESPONSE), int(Kind.ERROR), int(Kind.DATA)
_END, _CANCEL = int(Kind.END), int(Kind.CANCEL)
_BREAKS_RETRY = frozenset({_DATA, _END})
_ANSWERS = frozenset({_RESPONSE, _DATA})


class RouteUsage:
    """The calls along one route: how many now, and how long they have been waiting."""

    __slots__ = ("outstanding", "waiting")

    def __init__(self) -> None:
        self.outstanding = 0
        self.waiting = Waiting()


class Pair:
    """One call passing through this node."""

    __slots__ = (
        "_answer_goes_on",
        "callee",
        "callee_stream",
        "caller",
        "caller_stream",
        "deadline",
        "header",
        "is_over",
        "proxy",
        "request",
        "route",
        "sent_at",
        "started_at",
        "tried",
        "usage",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, proxy: Proxy, caller: Connection, frame: Frame, header: CallHeader, started_at: float) -> None:
        self.proxy = proxy
        self.caller = caller
        self.caller_stream = frame.stream
        self.callee: Connection | None = None
        self.callee_stream = 0
        self.header = header
        self.request: Frame | None = frame
        """Kept while a refusal by the next hop could still be answered by trying another route."""
        self.route: Route | None = None
        self.usage: RouteUsage | None = None
        """That of `route`, while this call counts in it."""
        self.tried: list[Route] = []
        self.waiting: list[Frame] = []
        """What the caller sent while the next hop is being dialled: bounded by the stream's credit."""
        self.waiting_bytes = 0
        self.started_at = self.sent_at = started_at
        self.deadline = started_at + header.timeout_ms / 1000
        self.is_over = False
        self._answer_goes_on = False

    # ------------------------------------------------------- from the caller

    def pass_on(self, frame: Frame) -> None:
        """A frame of the caller, for the callee."""
        kind = frame.kind
        callee = self.callee
        if kind == _CANCEL:
            if callee is not None:
                callee.send(restream(frame, self.callee_stream))
            self.finish()
            return
        if callee is None:
            self._keep(frame)
            return
        if callee.is_unread:
            self.proxy.clogged(self, "the next hop")
            return
        if kind in _BREAKS_RETRY:
            # More than the request has gone out: another route would see only half of it.
            self.request = None
        callee.send(restream(frame, self.callee_stream))

    def _keep(self, frame: Frame) -> None:
        self.waiting_bytes += len(frame.body) + FRAME_COST_BYTES
        if self.waiting_bytes > limits.STREAM_WINDOW_BYTES:
            self.refuse(Malformed("the caller sent more than its credit", at=self.proxy.at))
            return
        self.waiting.append(frame)

    def caller_lost(self) -> None:
        if self.callee is not None:
            self.callee.send(encode(Kind.CANCEL, self.callee_stream))
        self.finish()

    # ------------------------------------------------------- from the callee

    def answer(self, frame: Frame) -> None:
        """A frame of the callee, for the caller."""
        kind = frame.kind
        if self.caller.is_unread:
            self.proxy.clogged(self, "the caller")
            return
        if kind == _ERROR:
            if self.request is not None and self._is_passed_over(frame):
                return
            self.caller.send(restream(frame, self.caller_stream))
            self.finish()
            return
        self.caller.send(restream(frame, self.caller_stream))
        if kind in _ANSWERS:
            if self.request is not None:
                self.proxy.answered(self)
            self.request = None
            if kind == _RESPONSE:
                self._answer_goes_on = True
            if self._answer_goes_on and not frame.flags & MORE:
                self.finish()
        elif kind == _END:
            # The serving side ends a stream when its handler has returned: nothing follows.
            self.finish()

    def _is_passed_over(self, frame: Frame) -> bool:
        wire = decode_map(frame.header)
        if isinstance(wire, dict) and wire.get(BEGUN):
            return False
        return self.proxy.passed_over(self, error_from_wire(wire))

    def callee_lost(self, error: MicroError) -> None:
        self.callee = None
        self.proxy.callee_lost(self, error)

    # ---------------------------------------------------------------- ends

    def refuse(self, error: MicroError) -> None:
        """End the call towards the caller with `error`, and cancel what runs beyond."""
        self.caller.refuse(self.caller_stream, error)
        if self.callee is not None:
            self.callee.send(encode(Kind.CANCEL, self.callee_stream))
        self.finish()

    def expire(self) -> None:
        self.proxy.expired(self)

    def detach_callee(self) -> None:
        if self.callee is not None:
            self.callee.close_stream(self.callee_stream)
            self.callee = None

    def finish(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.caller.close_stream(self.caller_stream)
        self.detach_callee()
        self.waiting.clear()
        self.request = None
        self.proxy.finished(self)


class CallerEnd:
    """Owner of the stream on the caller's connection."""

    __slots__ = ("frame_received", "pair")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.frame_received = pair.pass_on

    def connection_lost(self, error: MicroError) -> None:  # noqa: ARG002 - there is nobody left to tell
        self.pair.caller_lost()


class CalleeEnd:
    """Owner of the stream on the next hop's connection."""

    __slots__ = ("frame_received", "pair")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.frame_received = pair.answer

    def connection_lost(self, error: MicroError) -> None:
        self.pair.callee_lost(error)
