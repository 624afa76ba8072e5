"""One call, as two state machines: the end of the client (`ClientCall`) and that of the server (`ServerCall`).

    OPEN ──REQUEST_COMPLETE──> HALF_CLOSED ──RESPONSE_PIECE──> RESPONDING
      │                             │                              │
      └─ RESPONSE_COMPLETE, ITEMS_ENDED, FAILED, CANCELLED, CONNECTION_LOST ─┴──> ENDED

While a call is OPEN, the client sends the frames of its request, or its items. HALF_CLOSED has the meaning of HTTP/2: the
client has sent everything. A response that does not fit in one frame continues in DATA frames; meanwhile the call is
RESPONDING. The response, END or ERROR of the server ends the call, whether the client has sent everything or not.

If the client streams, the body of the REQUEST is empty, each item is a message of DATA frames, and END half-closes the call. A
client that does not know the mode of an endpoint opens a BIDIRECTIONAL call: the server uses the first item as the request if
the endpoint takes a single one, and responds in the mode of the endpoint. The first DATA frame of the server may contain a
response header.

Each direction has its own credit (credit.py). Pure: methods take frames and return effects, or bytes to send.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from micro_core.contract.errors import Malformed, MicroError, error_from_wire
from micro_core.rpc.credit import ReceiveQueue, SendQueue
from micro_core.wire import frames
from micro_core.wire.frames import MORE, Frame, Kind
from micro_core.wire.header import CallMode, decode_map, encode_map

HANDLER_STARTED = "begun"
"""Key in the map of an ERROR frame: the handler had started when the error was raised. Such a call is not sent again, even if
the class of the error states that this is safe: a handler may raise the Overloaded of a service that it called itself."""

_REQUEST, _RESPONSE, _ERROR, _DATA, _END, _CANCEL, _CREDIT = (
    int(kind) for kind in (Kind.REQUEST, Kind.RESPONSE, Kind.ERROR, Kind.DATA, Kind.END, Kind.CANCEL, Kind.CREDIT)
)
_CLIENT_STREAMS = (CallMode.CLIENT_STREAM, CallMode.BIDIRECTIONAL)
_SERVER_STREAMS = (CallMode.SERVER_STREAM, CallMode.BIDIRECTIONAL)


class CallState(enum.Enum):
    """The state of a call. Both ends use the same states."""

    OPEN = "open"
    """The client sends its request or its items."""
    HALF_CLOSED = "half-closed"
    """The client has sent everything. The server sends items, or has not responded yet."""
    RESPONDING = "responding"
    """The first frames of the response were transferred, more follow."""
    ENDED = "ended"
    """Nothing more is sent for the call, apart from queued frames, and received frames are ignored."""

    __hash__ = object.__hash__  # the hash of Enum is slow, because it is written in Python


class CallEvent(enum.Enum):
    """An event that changes the state of a call."""

    REQUEST_COMPLETE = "end of the request"
    """The request is complete, or the client half-closed the call."""
    RESPONSE_ITEM = "item of the server"
    """A frame of an item of the server."""
    RESPONSE_PIECE = "piece of a response"
    """A frame of the response that is not the last one."""
    RESPONSE_COMPLETE = "response"
    """The last or only frame of the response."""
    ITEMS_ENDED = "end of the items"
    """END of the server: its items are complete."""
    FAILED = "error"
    """An ERROR frame or a violation of the protocol."""
    CANCELLED = "cancellation"
    """The client cancelled the call."""
    CONNECTION_LOST = "loss of the connection"
    """The connection has ended."""

    __hash__ = object.__hash__


_ABNORMAL_ENDS = {
    CallEvent.FAILED: CallState.ENDED,
    CallEvent.CANCELLED: CallState.ENDED,
    CallEvent.CONNECTION_LOST: CallState.ENDED,
}

TRANSITIONS: Mapping[CallState, Mapping[CallEvent, CallState]] = {
    CallState.OPEN: {
        CallEvent.REQUEST_COMPLETE: CallState.HALF_CLOSED,
        CallEvent.RESPONSE_ITEM: CallState.OPEN,
        CallEvent.RESPONSE_PIECE: CallState.RESPONDING,
        CallEvent.RESPONSE_COMPLETE: CallState.ENDED,
        CallEvent.ITEMS_ENDED: CallState.ENDED,
        **_ABNORMAL_ENDS,
    },
    CallState.HALF_CLOSED: {
        CallEvent.RESPONSE_ITEM: CallState.HALF_CLOSED,
        CallEvent.RESPONSE_PIECE: CallState.RESPONDING,
        CallEvent.RESPONSE_COMPLETE: CallState.ENDED,
        CallEvent.ITEMS_ENDED: CallState.ENDED,
        **_ABNORMAL_ENDS,
    },
    CallState.RESPONDING: {
        # The client may end its items while the response is in flight.
        CallEvent.REQUEST_COMPLETE: CallState.RESPONDING,
        CallEvent.RESPONSE_PIECE: CallState.RESPONDING,
        CallEvent.RESPONSE_COMPLETE: CallState.ENDED,
        **_ABNORMAL_ENDS,
    },
    CallState.ENDED: _ABNORMAL_ENDS,
}
"""The next state of a call. A pair that is missing here is a violation of the protocol."""


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendQueueDrained:
    """All queued frames were returned for sending: the next message may be queued."""


class ResponseReceived(NamedTuple):
    """Client: the complete response. The call has ended."""

    header: bytes
    body: bytes


class RequestReceived(NamedTuple):
    """Server: the complete request."""

    body: bytes


@dataclass(frozen=True, slots=True)
class ItemsReceived:
    """`incoming` contains at least one item."""


@dataclass(frozen=True, slots=True)
class ItemsEnded:
    """The peer sends no more items. At the client, the call has ended."""


class Failed(NamedTuple):
    """The call has ended with `error`. `handler_started` is true if a handler had started to process it."""

    error: MicroError
    handler_started: bool = True


@dataclass(frozen=True, slots=True)
class CancelledByClient:
    """Server: the client cancelled the call. The call has ended."""


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
_NO_EFFECTS: list[Effect] = []


class _Call:
    """The common base of both ends."""

    __slots__ = ("incoming", "mode", "outgoing", "state", "stream")

    def __init__(self, stream: int, mode: int) -> None:
        self.stream = stream
        self.mode = mode
        self.state = CallState.OPEN
        self.incoming = ReceiveQueue()
        self.outgoing = SendQueue()

    @property
    def is_finished(self) -> bool:
        """Return whether the call has ended and all its frames were returned for sending."""
        return self.state is CallState.ENDED and self.outgoing.is_empty

    def take_item(self) -> tuple[bytes, bytes]:
        """Remove the oldest item from `incoming`. Return it and the bytes to send: a CREDIT frame or nothing."""
        item = self.incoming.pop()
        return item, self._encode_due_credit()

    def connection_lost(self) -> None:
        """End the call because its connection has ended."""
        self._apply(CallEvent.CONNECTION_LOST)
        self.outgoing.clear()

    def _apply(self, event: CallEvent) -> None:
        to = TRANSITIONS[self.state].get(event)
        if to is None:
            raise Malformed(f"unexpected {event.value}: the call is {self.state.value}")
        self.state = to

    def _encode_due_credit(self) -> bytes:
        if self.state is CallState.ENDED:
            return b""
        granted = self.incoming.due_grant()
        return frames.encode_credit(self.stream, granted) if granted else b""

    def _receive_credit(self, frame: Frame) -> list[Effect]:
        outgoing = self.outgoing
        had_queued_frames = not outgoing.is_empty
        data = outgoing.grant(frames.decode_credit(frame.body))
        effects: list[Effect] = [Send(data)] if data else []
        if had_queued_frames and outgoing.is_empty:
            effects.append(SendQueueDrained())
        return effects

    def _receive_item(self, frame: Frame) -> list[Effect]:
        item = self.incoming.receive(frame)
        if item is None:
            return self._credit_effect()
        self.incoming.append(item)
        return [ItemsReceived()]

    def _credit_effect(self) -> list[Effect]:
        data = self._encode_due_credit()
        return [Send(data)] if data else _NO_EFFECTS


class ClientCall(_Call):
    """The client's end of a call."""

    __slots__ = ("response_header",)

    def __init__(self, stream: int, mode: int) -> None:
        super().__init__(stream, mode)
        self.response_header = b""

    def begin(self, header: bytes, body: bytes) -> bytes:
        """Return the bytes that open the call. `body` is the request; it is empty if the client streams.

        Raises:
            TooLarge: the header or the body exceeds its limit. Nothing was queued.
        """
        data = self.outgoing.push(_REQUEST, self.stream, header, body)
        if self.mode not in _CLIENT_STREAMS:
            self._apply(CallEvent.REQUEST_COMPLETE)
        return data

    def send_item(self, body: bytes) -> bytes:
        """Queue an item and return the bytes to send now. Only for an OPEN call.

        Raises:
            TooLarge: the item exceeds `limits.MAX_BODY_BYTES`. Nothing was queued, and the call remains open.
        """
        return self.outgoing.push(_DATA, self.stream, b"", body)

    def end(self) -> bytes:
        """Half-close the call and return the bytes to send now. Safe to call twice."""
        if self.state is not CallState.OPEN:
            return b""
        self._apply(CallEvent.REQUEST_COMPLETE)
        return self.outgoing.push_end(frames.encode(_END, self.stream))

    def cancel(self) -> bytes:
        """Cancel the call and return the bytes to send now: nothing if it has ended."""
        if self.state is CallState.ENDED:
            return b""
        self._finish(CallEvent.CANCELLED)
        return frames.encode(_CANCEL, self.stream)

    def receive(self, frame: Frame) -> list[Effect]:
        """Process a frame of the server. Never raises: a violation fails this call and cancels it at the server."""
        if self.state is CallState.ENDED:
            return _NO_EFFECTS
        try:
            return self._receive(frame)
        except MicroError as violation:
            return [Send(self.cancel()), Failed(violation)]

    def _receive(self, frame: Frame) -> list[Effect]:
        kind = frame.kind
        if kind == _RESPONSE:
            if self.mode == CallMode.SERVER_STREAM or self.state is CallState.RESPONDING:
                raise Malformed("unexpected RESPONSE frame of the server")
            self.response_header = frame.header
            return self._receive_response(frame)
        if kind == _DATA:
            if self.state is CallState.RESPONDING:
                return self._receive_response(frame)
            if self.mode not in _SERVER_STREAMS:
                raise Malformed("the server sent an item, but the call expects one response")
            self._apply(CallEvent.RESPONSE_ITEM)
            if frame.header:
                self.response_header = frame.header
            return self._receive_item(frame)
        if kind == _CREDIT:
            return self._receive_credit(frame)
        if kind == _END:
            if self.mode not in _SERVER_STREAMS or not self.incoming.is_between_messages:
                raise Malformed("the server sent END before the response was complete")
            self._finish(CallEvent.ITEMS_ENDED)
            return [ItemsEnded()]
        if kind == _ERROR:
            wire = decode_map(frame.header)
            self._finish(CallEvent.FAILED)
            handler_started = not isinstance(wire, dict) or bool(wire.get(HANDLER_STARTED))
            return [Failed(error_from_wire(wire), handler_started)]
        raise Malformed(f"unexpected {Kind(kind).name} frame of the server")

    def _receive_response(self, frame: Frame) -> list[Effect]:
        body = self.incoming.receive(frame)
        if body is None:
            self._apply(CallEvent.RESPONSE_PIECE)
            return self._credit_effect()
        self._finish(CallEvent.RESPONSE_COMPLETE)
        return [ResponseReceived(self.response_header, body)]

    def _finish(self, event: CallEvent) -> None:
        self._apply(event)
        self.outgoing.clear()


class ServerCall(_Call):
    """The server's end of a call. It may end before its last frames are sent: see `is_finished`.

    `at` is the name of the instance in errors that are created here.
    """

    __slots__ = ("_has_request", "at")

    def __init__(self, stream: int, mode: int, at: str = "") -> None:
        super().__init__(stream, mode)
        self.at = at
        self._has_request = False

    def receive(self, frame: Frame) -> list[Effect]:
        """Process a frame of the client, the REQUEST first. Never raises: a violation is answered with ERROR."""
        if self.is_finished:
            return _NO_EFFECTS
        try:
            return self._receive(frame)
        except MicroError as violation:
            if self.state is CallState.ENDED:
                return _NO_EFFECTS
            violation.at = violation.at or self.at
            return [Send(self.fail(violation)), Failed(violation)]

    def respond(self, header: bytes, body: bytes) -> bytes:
        """End the call with a response and return the bytes to send now: nothing if it has ended.

        Raises:
            TooLarge: the header or the body exceeds its limit. Nothing was queued, and the call remains open.
        """
        if self.state is CallState.ENDED:
            return b""
        data = self.outgoing.push(_RESPONSE, self.stream, header, body)
        self._apply(CallEvent.RESPONSE_COMPLETE)
        return data

    def send_item(self, body: bytes, header: bytes = b"") -> bytes:
        """Queue an item and return the bytes to send now. `header`, a response header, is sent with the first item.

        Raises:
            TooLarge: the item exceeds `limits.MAX_BODY_BYTES`. Nothing was queued, and the call remains open.
        """
        if self.state is CallState.ENDED:
            return b""
        return self.outgoing.push(_DATA, self.stream, header, body)

    def end(self) -> bytes:
        """End the items and the call, and return the bytes to send now. Safe to call twice."""
        if self.state is CallState.ENDED:
            return b""
        self._apply(CallEvent.ITEMS_ENDED)
        return self.outgoing.push_end(frames.encode(_END, self.stream))

    def fail(self, error: MicroError, *, handler_started: bool = False) -> bytes:
        """End the call with an error, drop queued frames, and return the bytes to send now.

        `handler_started` states whether a handler had started to process the call.
        """
        if self.is_finished:
            return b""
        self._apply(CallEvent.FAILED)
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
            self._apply(CallEvent.CANCELLED)
            self.outgoing.clear()
            self.incoming.clear()
            return [CancelledByClient()]
        if kind == _REQUEST and not self._has_request:
            self._has_request = True
            return self._receive_request(frame)
        if self.state is not CallState.OPEN:
            if self.state is CallState.ENDED:
                return _NO_EFFECTS
            raise Malformed(f"the client sent {Kind(kind).name} after its request was complete")
        if kind == _DATA:
            if self.mode in _CLIENT_STREAMS:
                return self._receive_item(frame)
            return self._receive_request_piece(frame)
        if kind == _END and self.mode in _CLIENT_STREAMS and self.incoming.is_between_messages:
            self._apply(CallEvent.REQUEST_COMPLETE)
            return [ItemsEnded()]
        raise Malformed(f"unexpected {Kind(kind).name} frame of the client")

    def _receive_request(self, frame: Frame) -> list[Effect]:
        if self.mode not in _CLIENT_STREAMS:
            return self._receive_request_piece(frame)
        if frame.body or frame.flags & MORE:
            raise Malformed("the REQUEST of a client stream has a body", hint="send items in DATA frames")
        self.incoming.receive(frame)
        return _NO_EFFECTS

    def _receive_request_piece(self, frame: Frame) -> list[Effect]:
        body = self.incoming.receive(frame)
        if body is None:
            return self._credit_effect()
        self._apply(CallEvent.REQUEST_COMPLETE)
        return [RequestReceived(body)]
