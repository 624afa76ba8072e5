"""One call, as two state machines: the caller's (`ClientCall`) and the serving side's (`ServerCall`).

    OPEN ──REQUESTED──> ANSWERING ──RESPONSE_BEGUN──> RESPONDING
      │                     │                             │
      └───── RESPONDED, REPLY_ENDED, FAILED, CANCELLED ───┴──> ENDED

OPEN: the caller is still sending (the request's pieces, or its items). ANSWERING: it has sent all. RESPONDING: the
first piece of a RESPONSE is out, the rest follows as DATA. The serving side's answer, END or ERROR ends the call,
whether the caller has finished or not. Where the caller streams, the REQUEST's body is empty and each item is a
message of DATA frames; its END half-closes. A caller that does not know the kind of an endpoint opens BIDIRECTIONAL:
the serving side takes the first item for the request where it wants one, and answers as the endpoint does. The first
DATA of the serving side may carry a response header.

Each direction has its own credit (credit.py).

Pure: frames in, effects out; bytes to send are an effect or a return value. No I/O, clock or randomness.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from micro_core.contract.errors import Malformed, MicroError, error_from_wire
from micro_core.rpc.credit import Incoming, Outgoing
from micro_core.wire import frames
from micro_core.wire.frames import MORE, Frame, Kind
from micro_core.wire.header import CallMode, decode_map, encode_map

HANDLER_STARTED = "begun"
"""Key in an ERROR's map: the handler had begun when it raised. Then not even an error whose class promises
`retry_is_safe` (a handler may pass on the Overloaded of somebody it called) allows a second send."""

_REQUEST, _RESPONSE, _ERROR, _DATA, _END, _CANCEL, _CREDIT = (
    int(kind) for kind in (Kind.REQUEST, Kind.RESPONSE, Kind.ERROR, Kind.DATA, Kind.END, Kind.CANCEL, Kind.CREDIT)
)
_CALLER_STREAMS = (CallMode.CLIENT_STREAM, CallMode.BIDIRECTIONAL)
_SERVER_STREAMS = (CallMode.SERVER_STREAM, CallMode.BIDIRECTIONAL)


class CallState(enum.Enum):
    """How far a call has come; the same word means the same at both ends."""

    OPEN = "open"
    """The caller is sending its request or its items."""
    ANSWERING = "answering"
    """The caller has sent all; the serving side sends items, or nothing yet."""
    RESPONDING = "responding"
    """A RESPONSE has begun and goes on."""
    ENDED = "ended"
    """Over: nothing more is sent or believed."""

    __hash__ = object.__hash__  # the table is looked up several times a call; Enum's own hash is interpreted


class CallEvent(enum.Enum):
    """What moves a call on."""

    REQUESTED = "requested"
    """The request is whole, or the caller half-closed."""
    REPLY_ITEM = "reply item"
    """A frame of an item from the serving side."""
    RESPONSE_BEGUN = "response begun"
    RESPONDED = "responded"
    """The RESPONSE is whole."""
    REPLY_ENDED = "reply ended"
    """The serving side's stream of items has ended well."""
    FAILED = "failed"
    """ERROR, a violation, a lost connection."""
    CANCELLED = "cancelled"
    """The caller gave up."""

    __hash__ = object.__hash__


_ENDINGS = {CallEvent.FAILED: CallState.ENDED, CallEvent.CANCELLED: CallState.ENDED}

TRANSITIONS: Mapping[CallState, Mapping[CallEvent, CallState]] = {
    CallState.OPEN: {
        CallEvent.REQUESTED: CallState.ANSWERING,
        CallEvent.REPLY_ITEM: CallState.OPEN,
        CallEvent.RESPONSE_BEGUN: CallState.RESPONDING,
        CallEvent.RESPONDED: CallState.ENDED,
        CallEvent.REPLY_ENDED: CallState.ENDED,
        **_ENDINGS,
    },
    CallState.ANSWERING: {
        CallEvent.REPLY_ITEM: CallState.ANSWERING,
        CallEvent.RESPONSE_BEGUN: CallState.RESPONDING,
        CallEvent.RESPONDED: CallState.ENDED,
        CallEvent.REPLY_ENDED: CallState.ENDED,
        **_ENDINGS,
    },
    CallState.RESPONDING: {
        CallEvent.RESPONDED: CallState.ENDED,
        # The caller may end its items while the answer is on its way.
        CallEvent.REQUESTED: CallState.RESPONDING,
        **_ENDINGS,
    },
    CallState.ENDED: {CallEvent.FAILED: CallState.ENDED, CallEvent.CANCELLED: CallState.ENDED},
}


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendQueueDrained:
    """All that was queued has been handed out: the next message may come."""


class ResponseReceived(NamedTuple):
    """Client: the answer, whole. The call is over."""

    header: bytes
    body: bytes


class RequestReceived(NamedTuple):
    """Server: the request, whole."""

    body: bytes


@dataclass(frozen=True, slots=True)
class ItemsReceived:
    """At least one item waits in `incoming`."""


@dataclass(frozen=True, slots=True)
class ItemsEnded:
    """The peer sends no more items. At the client, the call is over."""


class Failed(NamedTuple):
    """The call is over with `error`; `begun` when a handler had begun to work on it."""

    error: MicroError
    handler_started: bool = True


@dataclass(frozen=True, slots=True)
class CancelledByClient:
    """Server: the caller gave up. The call is over."""


Effect = (
    Send
    | SendQueueDrained
    | ResponseReceived
    | RequestReceived
    | ItemsReceived
    | ItemsEnded
    | Failed
    | CancelledByClient
)
_NOTHING: list[Effect] = []


class _Call:
    """What both ends of a call share."""

    __slots__ = ("incoming", "mode", "outgoing", "state", "stream")

    def __init__(self, stream: int, mode: int) -> None:
        self.stream = stream
        self.mode = mode
        self.state = CallState.OPEN
        self.incoming = Incoming()
        self.outgoing = Outgoing()

    @property
    def is_finished(self) -> bool:
        """Nothing more will be sent or received."""
        return self.state is CallState.ENDED and self.outgoing.is_empty

    def take_item(self) -> tuple[bytes, bytes]:
        """The oldest item and the bytes to send for it (a grant, or nothing)."""
        item = self.incoming.take()
        return item, self._due_credit()

    def connection_lost(self) -> None:
        """The connection is gone."""
        self._move(CallEvent.FAILED)
        self.outgoing.clear()

    def _move(self, event: CallEvent) -> None:
        to = TRANSITIONS[self.state].get(event)
        if to is None:
            raise Malformed(f"a call that is {self.state.value} cannot have its {event.value}")
        self.state = to

    def _due_credit(self) -> bytes:
        if self.state is CallState.ENDED:
            return b""
        granted = self.incoming.due_grant()
        return frames.encode_credit(self.stream, granted) if granted else b""

    def _receive_credit(self, frame: Frame) -> list[Effect]:
        outgoing = self.outgoing
        was_waiting = not outgoing.is_empty
        data = outgoing.grant(frames.decode_credit(frame.body))
        effects: list[Effect] = [Send(data)] if data else []
        if was_waiting and outgoing.is_empty:
            effects.append(SendQueueDrained())
        return effects

    def _receive_item(self, frame: Frame) -> list[Effect]:
        item = self.incoming.receive(frame)
        if item is None:
            return self._credit_effect()
        self.incoming.keep(item)
        return [ItemsReceived()]

    def _credit_effect(self) -> list[Effect]:
        data = self._due_credit()
        return [Send(data)] if data else _NOTHING


class ClientCall(_Call):
    """The caller's end."""

    __slots__ = ("response_header",)

    def __init__(self, stream: int, mode: int) -> None:
        super().__init__(stream, mode)
        self.response_header = b""

    def begin(self, header: bytes, body: bytes) -> bytes:
        """The bytes that open the call. `body` is the request; empty where the caller streams. Raises TooLarge."""
        data = self.outgoing.push(_REQUEST, self.stream, header, body)
        if self.mode not in _CALLER_STREAMS:
            self.state = CallState.ANSWERING
        return data

    def send_item(self, body: bytes) -> bytes:
        """Queue an item; bytes to send now. Legal while OPEN. Raises TooLarge."""
        return self.outgoing.push(_DATA, self.stream, b"", body)

    def end(self) -> bytes:
        """Half-close; bytes to send now."""
        if self.state is not CallState.OPEN:
            return b""
        self._move(CallEvent.REQUESTED)
        return self.outgoing.push_last(frames.encode(_END, self.stream))

    def cancel(self) -> bytes:
        """Give up; bytes to send now, none when the call is over."""
        if self.state is CallState.ENDED:
            return b""
        self._finish(CallEvent.CANCELLED)
        return frames.encode(_CANCEL, self.stream)

    def receive(self, frame: Frame) -> list[Effect]:
        """What a frame of the serving side means. Never raises: a violation fails this call, and cancels it there."""
        if self.state is CallState.ENDED:
            return _NOTHING
        try:
            return self._receive(frame)
        except MicroError as violation:
            return [Send(self.cancel()), Failed(violation)]

    def _receive(self, frame: Frame) -> list[Effect]:
        kind = frame.kind
        if kind == _RESPONSE:
            if self.mode == CallMode.SERVER_STREAM or self.state is CallState.RESPONDING:
                raise Malformed("a RESPONSE where none belongs")
            self.response_header = frame.header
            return self._receive_response(frame)
        if kind == _DATA:
            if self.state is CallState.RESPONDING:
                return self._receive_response(frame)
            if self.mode not in _SERVER_STREAMS:
                raise Malformed("an item in answer to a call that expects one response")
            self._move(CallEvent.REPLY_ITEM)
            if frame.header:
                self.response_header = frame.header
            return self._receive_item(frame)
        if kind == _CREDIT:
            return self._receive_credit(frame)
        if kind == _END:
            if self.mode not in _SERVER_STREAMS or not self.incoming.is_between_messages:
                raise Malformed("an END before the answer is whole")
            self._finish(CallEvent.REPLY_ENDED)
            return [ItemsEnded()]
        if kind == _ERROR:
            wire = decode_map(frame.header)
            self._finish(CallEvent.FAILED)
            handler_started = not isinstance(wire, dict) or bool(wire.get(HANDLER_STARTED))
            return [Failed(error_from_wire(wire), handler_started)]
        raise Malformed(f"a {Kind(kind).name} frame from the serving side")

    def _receive_response(self, frame: Frame) -> list[Effect]:
        body = self.incoming.receive(frame)
        if body is None:
            self.state = CallState.RESPONDING
            return self._credit_effect()
        self._finish(CallEvent.RESPONDED)
        return [ResponseReceived(self.response_header, body)]

    def _finish(self, event: CallEvent) -> None:
        self._move(event)
        self.outgoing.clear()


class ServerCall(_Call):
    """The serving side's end. After its last word it lives on until all of it has been sent (`is_over`).

    `at` is the place in the errors made here.
    """

    __slots__ = ("_has_request", "at")

    def __init__(self, stream: int, mode: int, at: str = "") -> None:
        super().__init__(stream, mode)
        self.at = at
        self._has_request = False

    def receive(self, frame: Frame) -> list[Effect]:
        """What a frame of the caller means, its REQUEST first. Never raises: a violation is answered with ERROR."""
        if self.is_finished:
            return _NOTHING
        try:
            return self._receive(frame)
        except MicroError as violation:
            if self.state is CallState.ENDED:
                return _NOTHING
            violation.at = violation.at or self.at
            return [Send(self.fail(violation)), Failed(violation)]

    def respond(self, header: bytes, body: bytes) -> bytes:
        """The answer and the end; bytes to send now. Raises TooLarge, and the call then still stands."""
        if self.state is CallState.ENDED:
            return b""
        data = self.outgoing.push(_RESPONSE, self.stream, header, body)
        self._move(CallEvent.RESPONDED)
        return data

    def send_item(self, body: bytes, header: bytes = b"") -> bytes:
        """Queue an item; bytes to send now. `header` (a response header) goes with the first one. Raises TooLarge."""
        if self.state is CallState.ENDED:
            return b""
        return self.outgoing.push(_DATA, self.stream, header, body)

    def end(self) -> bytes:
        """The end of the items and of the call; bytes to send now."""
        if self.state is CallState.ENDED:
            return b""
        self._move(CallEvent.REPLY_ENDED)
        return self.outgoing.push_last(frames.encode(_END, self.stream))

    def fail(self, error: MicroError, *, handler_started: bool = False) -> bytes:
        """The end with an error, at once: what waited is dropped. `begun`: a handler had begun."""
        if self.state is CallState.ENDED and self.outgoing.is_empty:
            return b""
        self._move(CallEvent.FAILED)
        self.outgoing.clear()
        self.incoming.clear()
        wire = error.to_wire()
        if handler_started:
            wire[HANDLER_STARTED] = 1
        return frames.encode(_ERROR, self.stream, encode_map(wire))

    def _receive(self, frame: Frame) -> list[Effect]:
        kind = frame.kind
        if kind == _CREDIT:
            return self._receive_credit(frame)
        if kind == _CANCEL:
            self._move(CallEvent.CANCELLED)
            self.outgoing.clear()
            self.incoming.clear()
            return [CancelledByClient()]
        if kind == _REQUEST and not self._has_request:
            self._has_request = True
            return self._receive_first(frame)
        if self.state is not CallState.OPEN:
            if self.state is CallState.ENDED:
                return _NOTHING
            raise Malformed(f"a {Kind(kind).name} frame after the request was whole")
        if kind == _DATA:
            if self.mode in _CALLER_STREAMS:
                return self._receive_item(frame)
            return self._receive_request(frame)
        if kind == _END and self.mode in _CALLER_STREAMS and self.incoming.is_between_messages:
            self._move(CallEvent.REQUESTED)
            return [ItemsEnded()]
        raise Malformed(f"a {Kind(kind).name} frame where none belongs")

    def _receive_first(self, frame: Frame) -> list[Effect]:
        if self.mode not in _CALLER_STREAMS:
            return self._receive_request(frame)
        if frame.body or frame.flags & MORE:
            raise Malformed("the REQUEST of a call whose caller streams has a body", hint="send items as DATA")
        self.incoming.receive(frame)
        return _NOTHING

    def _receive_request(self, frame: Frame) -> list[Effect]:
        body = self.incoming.receive(frame)
        if body is None:
            return self._credit_effect()
        self._move(CallEvent.REQUESTED)
        return [RequestReceived(body)]
