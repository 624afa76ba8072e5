"""The protocol of one connection, without I/O: HELLO, stream IDs, GOAWAY, PING and PONG, refused requests.

Both sides of a connection go through the same states:

    AWAITING_HELLO ──HELLO──> OPEN ──GOAWAY──> DRAINING
                                │                 │
                                └──────CLOSE──────┴──> CLOSING          every state ──LOST──> CLOSED

The rules are those of HTTP/2: the side that dialled opens streams with odd IDs, the other side streams with even IDs, in
ascending order, and never uses an ID again (RFC 9113 section 5.1.1). A side that has sent GOAWAY accepts no more streams;
open streams continue, and it may still open streams of its own (RFC 9113 section 6.8).

A frame for an open stream is passed to the owner of the stream: one dictionary lookup and one method call, without an event.
Only the other frames are returned as events. Pure.

Memory that a peer can use here: `limits.MAX_STREAMS_PER_CONNECTION` streams, one incomplete frame, one incomplete message of
at most `limits.MAX_BODY_BYTES`, and `MAX_UNREAD_REFUSALS` refusals. The data of a stream is limited by its credit.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from micro_core.contract.errors import Draining, Malformed, MicroError, Overloaded
from micro_core.rpc.event_assembly import EventAssembly
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import EventHeader, decode_hello, encode_hello, encode_map

MAX_PING_BYTES = 32
"""Maximum size of the body of a PING (wire/frames.py)."""

MAX_UNREAD_REFUSALS = 10_000
"""Refusals queued for a peer that sends requests and does not read. One more ends the connection."""

MAX_STREAM_ID = 0xFFFF_FFFF
"""Stream IDs are u32. When they are exhausted, further calls need a new connection (RFC 9113 section 5.1.1)."""

_REQUEST, _EVENT, _PING, _PONG, _GOAWAY, _HELLO = (
    int(kind) for kind in (Kind.REQUEST, Kind.EVENT, Kind.PING, Kind.PONG, Kind.GOAWAY, Kind.HELLO)
)


class ConnectionState(enum.Enum):
    """The state of one side of a connection."""

    AWAITING_HELLO = "awaiting HELLO"
    """The side has not sent its HELLO. The other side may open streams already."""
    OPEN = "open"
    """The side opens and accepts streams."""
    DRAINING = "draining"
    """The side has sent GOAWAY: it accepts no more streams."""
    CLOSING = "closing"
    """The side sends its queued data and then closes. It opens and accepts no more streams."""
    CLOSED = "closed"
    """The connection has ended; nothing is sent or received."""

    __hash__ = object.__hash__  # the hash of Enum is slow, because it is written in Python


class ConnectionInput(enum.Enum):
    """An input that changes the state of one side."""

    HELLO = "HELLO"
    """The side sent HELLO."""
    GOAWAY = "GOAWAY"
    """The side sent GOAWAY."""
    CLOSE = "close"
    """The side began to close the connection."""
    LOST = "loss"
    """The socket is closed, or is about to be closed because of an error."""

    __hash__ = object.__hash__


TRANSITIONS: Mapping[ConnectionState, Mapping[ConnectionInput, ConnectionState]] = {
    ConnectionState.AWAITING_HELLO: {
        ConnectionInput.HELLO: ConnectionState.OPEN,
        ConnectionInput.LOST: ConnectionState.CLOSED,
    },
    ConnectionState.OPEN: {
        ConnectionInput.GOAWAY: ConnectionState.DRAINING,
        ConnectionInput.CLOSE: ConnectionState.CLOSING,
        ConnectionInput.LOST: ConnectionState.CLOSED,
    },
    ConnectionState.DRAINING: {
        # A GOAWAY may be repeated.
        ConnectionInput.GOAWAY: ConnectionState.DRAINING,
        ConnectionInput.CLOSE: ConnectionState.CLOSING,
        ConnectionInput.LOST: ConnectionState.CLOSED,
    },
    ConnectionState.CLOSING: {
        ConnectionInput.CLOSE: ConnectionState.CLOSING,
        ConnectionInput.LOST: ConnectionState.CLOSED,
    },
    ConnectionState.CLOSED: {
        ConnectionInput.CLOSE: ConnectionState.CLOSED,
        ConnectionInput.LOST: ConnectionState.CLOSED,
    },
}
"""The next state of a side. A pair that is missing here is a violation of the protocol."""

_MAY_OPEN = (ConnectionState.OPEN, ConnectionState.DRAINING)
_MAY_ACCEPT = (ConnectionState.AWAITING_HELLO, ConnectionState.OPEN)


def next_state(state: ConnectionState, event: ConnectionInput) -> ConnectionState:
    """Return the state that follows `state`.

    Raises:
        Malformed: the input is not possible in this state.
    """
    to = TRANSITIONS[state].get(event)
    if to is None:
        raise Malformed(f"unexpected {event.value}: the connection is {state.value}")
    return to


class StreamOwner(Protocol):
    """Receives the frames of one stream. Its methods must not block and must not raise."""

    def frame_received(self, frame: Frame) -> None:
        """Process a frame of the stream."""
        ...

    def connection_lost(self, error: MicroError) -> None:
        """Process the end of the connection. Called once; no other call follows."""
        ...


class HelloReceived(NamedTuple):
    """The peer sent its HELLO: `peer_id` and `wire_version` are set."""


class RequestRefused(NamedTuple):
    """The peer opened a stream and was refused with `error`."""

    error: MicroError


class MessageReceived(NamedTuple):
    """A complete published message."""

    header: EventHeader
    body: bytes


class PingReceived(NamedTuple):
    """A PING, to be answered with `send_pong`."""

    body: bytes


class PongReceived(NamedTuple):
    """The answer to a PING."""

    body: bytes


class FrameDropped(NamedTuple):
    """A frame for a stream that is closed. This is normal after a CANCEL, when the response was already in flight."""

    frame: Frame


ConnectionEvent = Frame | RequestRefused | MessageReceived | HelloReceived | PingReceived | PongReceived | FrameDropped
"""A `Frame` is a REQUEST that opens a stream: attach an owner to the stream, or refuse it."""


class ConnectionProtocol:
    """The state of both sides, the open streams, and the connection-level frames to send.

    `dialed` states whether this side dialled the socket. `on_event(event)` is called during `receive_data`; events are not
    returned as a list, because the frames after a request belong to the owner that is attached while the request is
    handled. `remote` is the address of the peer, for messages. The HELLO of this side is queued at once: `data_to_send`
    returns it.
    """

    def __init__(
        self, *, dialed: bool, on_event: Callable[[ConnectionEvent], None], node_id: str = "", remote: str = ""
    ) -> None:
        self._may_open = False
        """Whether the states of both sides permit this side to open streams. Computed once per change, not per call."""
        self.local_state = ConnectionState.AWAITING_HELLO
        self.remote_state = ConnectionState.AWAITING_HELLO
        self.error: MicroError | None = None
        """The reason of the end; None until the connection is closed."""
        self.streams: dict[int, StreamOwner] = {}
        """The owners of the open streams, by stream ID."""
        self.peer_id = ""
        """The node ID in the HELLO of the peer; empty for a client that is not a node. The HELLO does not prove it."""
        self.wire_version = 0
        """The wire version of both sides; 0 before the HELLO of the peer."""
        self.unread_refusals = 0
        """Refusals that were not written yet. The owner of the socket sets it to 0 after each write."""

        self._on_event = on_event
        self._node_id = node_id
        self._remote = remote
        self._owners: Mapping[int, StreamOwner] = {}
        """The owners that receive frames: empty before the HELLO of the peer, then `streams`."""
        self._decoder = FrameDecoder()
        self._next_stream = 1 if dialed else 2
        self._peer_parity = 0 if dialed else 1
        self._last_peer_stream = 0
        self._peer_streams = 0
        self._event = EventAssembly()
        self._outgoing: list[bytes] = [frames.encode(Kind.HELLO, 0, encode_hello(node_id))]
        self._change_state(local=ConnectionInput.HELLO)

    @property
    def is_out_of_stream_ids(self) -> bool:
        """Return whether this side has used all its stream IDs."""
        return self._next_stream > MAX_STREAM_ID

    @property
    def can_open_streams(self) -> bool:
        """Return whether this side may open streams, apart from the limit on open streams."""
        return self._may_open and self._next_stream <= MAX_STREAM_ID

    # ---------------------------------------------------------------- streams

    def open_stream(self, owner: StreamOwner) -> int:
        """Open a stream and return its ID.

        Raises:
            Overloaded: `limits.MAX_STREAMS_PER_CONNECTION` streams of this side are open.
            Draining: the peer sent GOAWAY, this side is closing, or the stream IDs are exhausted.
            MicroError: the reason of the end, if the connection is closed.
        """
        if self.error is not None:
            raise self.error
        if len(self.streams) - self._peer_streams >= limits.MAX_STREAMS_PER_CONNECTION:
            raise Overloaded(
                f"{len(self.streams)} calls are open on one connection to {self._remote}", at=self._node_id
            )
        if not self._may_open or self._next_stream > MAX_STREAM_ID:
            raise Draining(f"{self._remote} accepts no more calls on this connection", at=self._node_id)
        stream = self._next_stream
        self._next_stream = stream + 2
        self.streams[stream] = owner
        return stream

    def attach(self, stream: int, owner: StreamOwner) -> None:
        """Set the owner of a stream that the peer opened."""
        if stream not in self.streams:
            self._peer_streams += 1
        self.streams[stream] = owner

    def close_stream(self, stream: int) -> None:
        """Remove a stream. Frames that still arrive for it are dropped. Safe to call twice."""
        if self.streams.pop(stream, None) is not None and stream & 1 == self._peer_parity:
            self._peer_streams -= 1

    # ---------------------------------------------------------------- sending

    def data_to_send(self) -> bytes:
        """Return the connection-level frames that were queued since the last call."""
        outgoing = self._outgoing
        if not outgoing:
            return b""
        self._outgoing = []
        return outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)

    def send_goaway(self) -> None:
        """Ask the peer to open no more streams, and refuse those that it opens with Draining. Safe to call twice."""
        if self.local_state is ConnectionState.OPEN:
            self._change_state(local=ConnectionInput.GOAWAY)
            self._outgoing.append(frames.encode(Kind.GOAWAY, 0))

    def send_ping(self, body: bytes = b"") -> None:
        """Queue a PING with a body of at most `MAX_PING_BYTES` bytes."""
        self._outgoing.append(frames.encode(Kind.PING, 0, b"", body))

    def send_pong(self, body: bytes) -> None:
        """Queue the answer to a PING."""
        self._outgoing.append(frames.encode(Kind.PONG, 0, b"", body))

    def refuse(self, stream: int, error: MicroError) -> None:
        """Queue an ERROR frame for a stream that has no owner.

        Raises:
            Overloaded: the peer does not read its refusals; the connection must be closed.
        """
        self.unread_refusals += 1
        if self.unread_refusals > MAX_UNREAD_REFUSALS:
            raise Overloaded("the peer sends requests and does not read the responses")
        self._outgoing.append(frames.encode(Kind.ERROR, stream, encode_map(error.to_wire())))

    # -------------------------------------------------------------- receiving

    def receive_data(self, data: bytes) -> None:
        """Pass frames of open streams to their owners, and an event for each of the other frames to `on_event`.

        Data that arrives after the end is ignored.

        Raises:
            Malformed: the peer violated the protocol; the connection must be closed.
            TooLarge: a frame or a message exceeds its limit; the connection must be closed.
            Overloaded: the peer does not read its refusals; the connection must be closed.
        """
        if self.error is not None:
            return
        find_owner = self._owners.get
        for frame in self._decoder.receive_data(data):
            owner = find_owner(frame[2])
            if owner is not None:
                owner.frame_received(frame)
                continue
            if self.error is not None:
                return
            event = self._receive_frame(frame)
            if event is not None:
                self._on_event(event)
                if self.error is not None:
                    # The handler of the event has ended the connection: no frame is delivered to an owner it attached.
                    return
            # The HELLO has changed the owners.
            find_owner = self._owners.get

    def _receive_frame(self, frame: Frame) -> ConnectionEvent | None:
        kind = frame[0]
        if self.remote_state is ConnectionState.AWAITING_HELLO and kind != _HELLO:
            raise Malformed(f"the first frame is {Kind(kind).name}, not HELLO")
        if kind == _REQUEST:
            return self._receive_request(frame)
        if kind == _EVENT:
            message = self._event.receive(frame)
            return MessageReceived(*message) if message is not None else None
        if kind == _PING:
            if len(frame.body) > MAX_PING_BYTES:
                raise Malformed(f"a PING of {len(frame.body)} bytes")
            return PingReceived(frame.body)
        if kind == _PONG:
            return PongReceived(bytes(frame.body))
        if kind == _GOAWAY:
            self._change_state(remote=ConnectionInput.GOAWAY)
            return None
        if kind == _HELLO:
            self._change_state(remote=ConnectionInput.HELLO)
            self.wire_version, self.peer_id = decode_hello(frame.header)
            self._owners = self.streams
            return HelloReceived()
        return FrameDropped(frame)

    def _receive_request(self, frame: Frame) -> ConnectionEvent:
        stream = frame.stream
        if stream & 1 != self._peer_parity or stream <= self._last_peer_stream:
            raise Malformed(f"a REQUEST on stream {stream}: the stream ID has the wrong parity or was used before")
        self._last_peer_stream = stream
        error: MicroError
        if self.local_state is not ConnectionState.OPEN:
            error = Draining("this instance is stopping", at=self._node_id, hint="call another instance")
        elif self._peer_streams >= limits.MAX_STREAMS_PER_CONNECTION:
            error = Overloaded(f"{self._peer_streams} calls are open on this connection", at=self._node_id)
        else:
            return frame
        self.refuse(stream, error)
        return RequestRefused(error)

    # ----------------------------------------------------------------- states

    def _change_state(self, *, local: ConnectionInput | None = None, remote: ConnectionInput | None = None) -> None:
        if local is not None:
            self.local_state = next_state(self.local_state, local)
        if remote is not None:
            self.remote_state = next_state(self.remote_state, remote)
        self._may_open = self.local_state in _MAY_OPEN and self.remote_state in _MAY_ACCEPT

    # -------------------------------------------------------------------- end

    def start_close(self) -> None:
        """Open and accept no more streams: this side is about to close the socket. Safe to call twice."""
        self._change_state(local=ConnectionInput.CLOSE)

    def connection_lost(self, error: MicroError) -> list[StreamOwner]:
        """End the connection and return the owners of its streams, which must be notified. Safe to call twice."""
        self._change_state(local=ConnectionInput.LOST, remote=ConnectionInput.LOST)
        if self.error is None:
            self.error = error
        owners = list(self.streams.values())
        self.streams.clear()
        self._peer_streams = 0
        self._outgoing = []
        self._event = EventAssembly()
        return owners
