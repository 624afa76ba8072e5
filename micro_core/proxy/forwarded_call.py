"""A call that passes through this node: two streams on two connections, and what can still be done if it fails.

    caller ── stream ──> CallerEnd ─ ForwardedCall ─ CalleeEnd <── stream ── next hop

Frames are passed on within the callback that delivers them: no task, no decoding. The call keeps its request until the
first answer, so that it can be rerouted if a next hop refuses it before any work was started.
"""

from __future__ import annotations

from typing import Protocol

from micro_core.contract.errors import Malformed, MicroError, error_from_wire
from micro_core.contract.table import RouteKey
from micro_core.proxy.call_wait import Wait
from micro_core.proxy.route_usage import RouteUsage
from micro_core.rpc.calls import HANDLER_STARTED
from micro_core.rpc.connection import Connection
from micro_core.rpc.credit import FRAME_COST_BYTES
from micro_core.wire import limits
from micro_core.wire.frames import MORE, Frame, Kind, encode, restream
from micro_core.wire.header import CallHeader, decode_map

_REQUEST, _RESPONSE, _ERROR, _DATA = int(Kind.REQUEST), int(Kind.RESPONSE), int(Kind.ERROR), int(Kind.DATA)
_END, _CANCEL = int(Kind.END), int(Kind.CANCEL)
_PREVENTS_REROUTING = frozenset({_DATA, _END})
_ANSWERS = frozenset({_RESPONSE, _DATA})


class CallForwarder(Protocol):
    """What a call needs of the proxy that forwards it."""

    at: str
    """Where errors of this node occur, e.g. `node n1 (abcd1234)`."""

    def reroute(self, call: ForwardedCall, error: MicroError) -> bool:
        """Try another route after the next hop refused the call with `error`. Return False when that is not possible."""
        ...

    def answered(self, call: ForwardedCall) -> None:
        """Note the first frame of the answer."""
        ...

    def refuse_unread(self, call: ForwardedCall, receiver: str) -> None:
        """End a call because `receiver` does not read, and its unread data exceeds the limit."""
        ...

    def caller_sent(self, call: ForwardedCall, size_bytes: int) -> None:
        """Note that data of the caller waits for the connection to the next hop. This may end the call."""
        ...

    def callee_lost(self, call: ForwardedCall, error: MicroError) -> None:
        """Handle the end of the connection to the next hop during the call."""
        ...

    def expired(self, call: ForwardedCall) -> None:
        """Handle the deadline of the call."""
        ...

    def finished(self, call: ForwardedCall) -> None:
        """Forget the call."""
        ...


class ForwardedCall:
    """One call that passes through this node."""

    __slots__ = (
        "_is_answer_continued",
        "callee",
        "callee_stream",
        "caller",
        "caller_stream",
        "deadline",
        "forwarder",
        "header",
        "is_answered",
        "is_finished",
        "request",
        "sent_at",
        "started_at",
        "tried",
        "usage",
        "wait",
        "waiting",
        "waiting_bytes",
    )

    def __init__(
        self, forwarder: CallForwarder, caller: Connection, frame: Frame, header: CallHeader, started_at: float
    ) -> None:
        self.forwarder = forwarder
        self.caller = caller
        self.caller_stream = frame.stream
        self.callee: Connection | None = None
        self.callee_stream = 0
        self.header = header
        self.request: Frame | None = frame
        """Kept for as long as the call can be rerouted."""
        self.usage: RouteUsage | None = None
        """The route along which the call was sent, while this call is counted there."""
        self.tried: list[RouteKey] = []
        """The routes along which the call was sent so far."""
        self.wait: Wait | None = None
        """Set if the call waits for a route, or has waited for one."""
        self.waiting: list[Frame] = []
        """Frames of the caller that wait for the connection to the next hop. Bounded by the credit of the stream."""
        self.waiting_bytes = 0
        self.started_at = self.sent_at = started_at
        self.deadline = started_at + header.timeout_ms / 1000
        self.is_answered = False
        self.is_finished = False
        self._is_answer_continued = False

    # ------------------------------------------------------- from the caller

    def forward_to_callee(self, frame: Frame) -> None:
        """Pass a frame of the caller on to the next hop."""
        kind = frame.kind
        callee = self.callee
        if kind == _CANCEL:
            if callee is not None:
                callee.send(restream(frame, self.callee_stream))
            self.finish()
            return
        if callee is None:
            self._wait_for_callee(frame)
            return
        if callee.is_hard_limit_exceeded:
            self.forwarder.refuse_unread(self, "the next hop")
            return
        if kind in _PREVENTS_REROUTING:
            # More than the request was sent: another route would receive only part of the call.
            self.request = None
        callee.send(restream(frame, self.callee_stream))

    def _wait_for_callee(self, frame: Frame) -> None:
        self.waiting_bytes += len(frame.body) + FRAME_COST_BYTES
        if self.waiting_bytes > limits.STREAM_WINDOW_BYTES:
            self.refuse(Malformed("the caller sent more than its credit allows", at=self.forwarder.at))
            return
        self.waiting.append(frame)
        self.forwarder.caller_sent(self, len(frame.body) + FRAME_COST_BYTES)

    def caller_lost(self) -> None:
        """Cancel the call: the connection of the caller ended."""
        if self.callee is not None:
            self.callee.send(encode(Kind.CANCEL, self.callee_stream))
        self.finish()

    # ------------------------------------------------------- from the callee

    def forward_to_caller(self, frame: Frame) -> None:
        """Pass a frame of the next hop on to the caller."""
        kind = frame.kind
        if self.caller.is_hard_limit_exceeded:
            self.forwarder.refuse_unread(self, "the caller")
            return
        if kind == _ERROR:
            if self.request is not None and self._is_rerouted(frame):
                return
            self.caller.send(restream(frame, self.caller_stream))
            self.finish()
            return
        self.caller.send(restream(frame, self.caller_stream))
        if kind in _ANSWERS:
            if not self.is_answered:
                self.is_answered = True
                self.forwarder.answered(self)
            self.request = None
            if kind == _RESPONSE:
                self._is_answer_continued = True
            if self._is_answer_continued and not frame.flags & MORE:
                self.finish()
        elif kind == _END:
            # The server ends a stream when its handler has returned, so no frame follows.
            self.finish()

    def _is_rerouted(self, frame: Frame) -> bool:
        wire = decode_map(frame.header)
        if isinstance(wire, dict) and wire.get(HANDLER_STARTED):
            return False
        return self.forwarder.reroute(self, error_from_wire(wire))

    def callee_lost(self, error: MicroError) -> None:
        """Handle the end of the connection to the next hop."""
        self.callee = None
        self.forwarder.callee_lost(self, error)

    # --------------------------------------------------------------------- end

    def refuse(self, error: MicroError) -> None:
        """Answer the caller with `error` and cancel the call at the next hop."""
        self.caller.refuse(self.caller_stream, error)
        if self.callee is not None:
            self.callee.send(encode(Kind.CANCEL, self.callee_stream))
        self.finish()

    def expire(self) -> None:
        """Handle the deadline of the call."""
        self.forwarder.expired(self)

    def detach_callee(self) -> None:
        """Stop using the stream to the next hop."""
        if self.callee is not None:
            self.callee.close_stream(self.callee_stream)
            self.callee = None

    def finish(self) -> None:
        """Release both streams. Safe to call twice."""
        if self.is_finished:
            return
        self.is_finished = True
        self.caller.close_stream(self.caller_stream)
        self.detach_callee()
        self.waiting.clear()
        self.request = None
        self.forwarder.finished(self)


class CallerEnd:
    """Owns the stream on the connection of the caller."""

    __slots__ = ("call", "frame_received")

    def __init__(self, call: ForwardedCall) -> None:
        self.call = call
        self.frame_received = call.forward_to_callee

    def connection_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the caller can no longer be answered
        """Cancel the call."""
        self.call.caller_lost()


class CalleeEnd:
    """Owns the stream on the connection to the next hop."""

    __slots__ = ("call", "frame_received")

    def __init__(self, call: ForwardedCall) -> None:
        self.call = call
        self.frame_received = call.forward_to_caller

    def connection_lost(self, error: MicroError) -> None:
        """Reroute the call, or end it with an error."""
        self.call.callee_lost(error)
