"""One connection: frames over a socket, many calls at once.

The hot path of the whole house. A frame that arrives costs one dictionary look-up and one method call; a frame that
leaves is appended to a list, which is joined and written once per turn of the loop. No task, no future, no hook a frame.

What is bounded: streams (`limits.MAX_STREAMS_PER_CONNECTION` a side), an incomplete frame (the decoder's bound), an
incomplete event (`limits.MAX_BODY_BYTES`), refusals the peer does not read, the wait for its HELLO. What a stream may make us hold is its
owner's affair: its credit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import (
    Closed,
    Draining,
    LinkLost,
    Malformed,
    MicroError,
    Overloaded,
    ServiceNotFound,
)
from micro_core.contract.transport import Socket
from micro_core.rpc.event_assembly import EventAssembly
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import EventHeader, decode_hello, encode_hello, encode_map

log = logging.getLogger(__name__)

MAX_PING_BYTES = 32
"""Body of a PING (wire/frames.py)."""

MAX_UNREAD_REFUSALS = 10_000
"""Refusals queued for a peer that goes on asking and does not read. One more ends the connection."""

EAGER_FRAMES = 32
"""Frames that are written without waiting for the end of the turn: the next hop begins on them while this one works on
the rest. All of a busy turn in one write would have each process wait for the one before it."""

MAX_STREAM = 0xFFFF_FFFF
"""Stream numbers are u32 and never reused; a connection near the end of them asks to be replaced."""

_REQUEST, _EVENT, _PING, _PONG, _GOAWAY, _HELLO = (
    int(kind) for kind in (Kind.REQUEST, Kind.EVENT, Kind.PING, Kind.PONG, Kind.GOAWAY, Kind.HELLO)
)

_closing: set[asyncio.Task[None]] = set()


class StreamOwner(Protocol):
    """Who receives the frames of one stream. Called in the event loop; must not block and must not raise."""

    def frame_received(self, frame: Frame) -> None: ...

    def connection_lost(self, error: MicroError) -> None:
        """The connection ended; called once, and nothing follows."""
        ...


class ConnectionHandler(Protocol):
    """Who answers what the peer begins. Called in the event loop; must not block and must not raise."""

    def request_received(self, connection: Connection, frame: Frame) -> None:
        """A REQUEST on a new stream: `attach` an owner, or answer with an ERROR frame."""
        ...

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:
        """A whole published message."""
        ...

    def connection_lost(self, connection: Connection, error: MicroError) -> None:
        """The connection ended; called once, after every owner."""
        ...


class Connection:
    """Frames over `socket`; starts to read at once and sends HELLO first.

    `dialed` says which side this is: the dialling side numbers its streams odd, the other even. `handler` is None
    for a side that serves nothing. After the end, `error` holds the reason and `send` is ignored.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        dialed: bool,
        handler: ConnectionHandler | None = None,
        node_id: str = "",
        counters: Counters | None = None,
    ) -> None:
        self.dialed = dialed
        self.handler = handler
        self.node_id = node_id
        self.streams: dict[int, StreamOwner] = {}
        self.peer_id = ""
        """Who the peer says it is (HELLO); empty for a plain client. Authenticated only where the socket is."""
        self.wire_version = 0
        """The version both sides speak; 0 until the peer's HELLO."""
        self.is_draining = False
        """The peer sent GOAWAY, or stream numbers run out: open no more calls here."""
        self.error: MicroError | None = None
        self.bytes_received = 0
        self.is_send_buffer_full = False
        """More waits than `limits.MAX_CONNECTION_BUFFER_BYTES`: begin no call here, refuse it with Overloaded."""
        self.is_hard_limit_exceeded = False
        """More waits than `limits.MAX_UNREAD_BYTES`: end what would add to it with Overloaded."""

        self._socket = socket
        self._counters: Counters = counters if counters is not None else CountersInMemory()
        self.loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._greeted = False
        self._next_stream = 1 if dialed else 2
        self._peer_parity = 0 if dialed else 1
        self._last_peer_stream = 0
        self._peer_streams = 0
        self._outgoing: list[bytes] = []
        self._bytes_unsent = 0
        self._flush_scheduled = False
        self._paused = False
        self._sent_goaway = False
        self._unread_refusals = 0
        self._event = EventAssembly()
        self._writable_callbacks: list[Callable[[], None]] = []
        self._lost_callbacks: list[Callable[[Connection, MicroError], None]] = []
        self._closed = asyncio.Event()
        self._round_trips: dict[bytes, asyncio.Future[None]] = {}
        self._last_round_trip = 0
        self._hello_timer = self.loop.call_later(limits.HANDSHAKE_TIMEOUT_S, self._hello_is_late)

        self.send(frames.encode(Kind.HELLO, 0, encode_hello(node_id)))
        socket.start(self)

    @property
    def remote(self) -> str:
        """The peer's address, for people."""
        return self._socket.remote

    @property
    def is_out_of_stream_ids(self) -> bool:
        """No stream number is left for calls of ours; those that stand go on."""
        return self._next_stream > MAX_STREAM

    @property
    def open_streams(self) -> int:
        return len(self.streams)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait here, not yet given to the socket."""
        return self._bytes_unsent

    @property
    def is_paused(self) -> bool:
        """The socket is full for the moment, as happens in every large transfer."""
        return self._paused

    # Streams

    def open_stream(self, owner: StreamOwner) -> int:
        """Begin a stream of ours and return its number. Raises Overloaded, Draining, or the reason of the end."""
        if self.error is not None:
            raise self.error
        if len(self.streams) - self._peer_streams >= limits.MAX_STREAMS_PER_CONNECTION:
            raise Overloaded(f"{len(self.streams)} calls are open on one connection to {self.remote}", at=self.node_id)
        if self.is_draining:
            raise Draining(f"{self.remote} takes no more calls on this connection", at=self.node_id)
        stream = self._next_stream
        self._next_stream = stream + 2
        # Numbers are used once: whoever wants more needs another connection.
        self.is_draining = self.is_out_of_stream_ids
        self.streams[stream] = owner
        return stream

    def attach(self, stream: int, owner: StreamOwner) -> None:
        """Give a stream that the peer began to `owner`."""
        if stream not in self.streams:
            self._peer_streams += 1
        self.streams[stream] = owner

    def close_stream(self, stream: int) -> None:
        """Forget a stream; frames that still arrive for it are dropped and counted. Idempotent."""
        if self.streams.pop(stream, None) is not None and stream & 1 == self._peer_parity:
            self._peer_streams -= 1

    # Writing

    def send(self, data: bytes) -> None:
        """Queue one frame, or several joined; written at the end of this turn of the loop. Never blocks."""
        if self.error is not None:
            return
        outgoing = self._outgoing
        outgoing.append(data)
        self._bytes_unsent += len(data)
        if self._paused:
            self.is_send_buffer_full = self._bytes_unsent > limits.MAX_CONNECTION_BUFFER_BYTES
            self.is_hard_limit_exceeded = self._bytes_unsent > limits.MAX_UNREAD_BYTES
            return
        if len(outgoing) >= EAGER_FRAMES:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_scheduled_for_now)

    def refuse(self, stream: int, error: MicroError) -> None:
        """Answer a request with ERROR, without a stream. Ends the connection of a peer that never reads them."""
        self._unread_refusals += 1
        if self._unread_refusals > MAX_UNREAD_REFUSALS:
            self._fail(Overloaded("the peer goes on asking and does not read the answers"))
            return
        self.send(frames.encode(Kind.ERROR, stream, encode_map(error.to_wire())))

    def send_goaway(self) -> None:
        """Tell the peer to begin no more calls here; those it begins anyway are refused with Draining."""
        if not self._sent_goaway:
            self._sent_goaway = True
            self.send(frames.encode(Kind.GOAWAY, 0))

    async def round_trip(self) -> None:
        """Wait until the peer has read all that was sent before, and what it had sent by then has arrived here.

        Frames keep their order: a PING and its PONG tell. Returns, too, when the connection ends.
        """
        if self.error is not None:
            return
        self._last_round_trip += 1
        body = self._last_round_trip.to_bytes(8, "big")
        answered = self._round_trips[body] = self.loop.create_future()
        self.send(frames.encode(Kind.PING, 0, b"", body))
        try:
            await answered
        finally:
            self._round_trips.pop(body, None)

    def ping(self) -> None:
        """Ask for a sign of life; it shows in `bytes_received`."""
        self.send(frames.encode(Kind.PING, 0))

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once: soon when there is room now, else when there is, or when the connection ends."""
        if self.error is not None or not (self._paused or self.is_send_buffer_full):
            self.loop.call_soon(callback)
        else:
            self._writable_callbacks.append(callback)

    async def writable(self) -> None:
        """Wait until the socket takes more. Raises the reason when the connection ends first."""
        while self.error is None and (self._paused or self.is_send_buffer_full):
            waiter = self.loop.create_future()
            self._writable_callbacks.append(lambda: None if waiter.done() else waiter.set_result(None))  # noqa: B023
            await waiter
        if self.error is not None:
            raise self.error

    def _flush_scheduled_for_now(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self._paused or not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        self._bytes_unsent = 0
        self.is_send_buffer_full = self.is_hard_limit_exceeded = False
        self._unread_refusals = 0
        self._socket.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))
        if self._writable_callbacks and not self._paused:
            self._call_writable()

    def _call_writable(self) -> None:
        callbacks, self._writable_callbacks = self._writable_callbacks, []
        for callback in callbacks:
            callback()

    # SocketReceiver

    def data_received(self, data: bytes) -> None:
        """Frames to owners. A violation of the protocol ends this connection and no other."""
        if self.error is not None:
            return
        self.bytes_received += len(data)
        find_owner = self.streams.get
        try:
            for frame in self._decoder.receive_data(data):
                owner = find_owner(frame[2])
                if owner is not None and self._greeted:
                    owner.frame_received(frame)
                else:
                    self._receive_unowned(frame)
                if self.error is not None:
                    return
        except MicroError as violation:
            self._fail(violation)
        except Exception as bug:
            log.exception("a frame could not be handled", extra={"remote": self.remote})
            self._counters.add("connection_bugs")
            self._fail(LinkLost(f"a frame could not be handled: {type(bug).__name__}"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._outgoing and not self._flush_scheduled:
            self._flush()
        elif not self._outgoing:
            self._call_writable()

    def socket_lost(self, error: MicroError) -> None:
        self._lose(error)

    def _receive_unowned(self, frame: Frame) -> None:
        kind = frame.kind
        if not self._greeted:
            if kind != _HELLO:
                raise Malformed(f"the first frame is {Kind(kind).name}, not HELLO")
            self.wire_version, self.peer_id = decode_hello(frame.header)
            self._greeted = True
            self._hello_timer.cancel()
        elif kind == _REQUEST:
            self._receive_request(frame)
        elif kind == _EVENT:
            self._receive_event(frame)
        elif kind == _PING:
            if len(frame.body) > MAX_PING_BYTES:
                raise Malformed(f"a PING of {len(frame.body)} bytes")
            if not self.is_send_buffer_full:
                self.send(frames.encode(_PONG, 0, b"", frame.body))
        elif kind == _GOAWAY:
            self.is_draining = True
        elif kind == _HELLO:
            raise Malformed("a second HELLO")
        elif kind == _PONG:
            answered = self._round_trips.get(bytes(frame.body))
            if answered is not None and not answered.done():
                answered.set_result(None)
        else:
            # Normal after a cancel: the answer was already on its way.
            self._counters.add("frames_for_closed_stream")

    def _receive_request(self, frame: Frame) -> None:
        stream = frame.stream
        if stream & 1 != self._peer_parity or stream <= self._last_peer_stream:
            raise Malformed(f"stream {stream} is not the peer's to open, or was used before")
        self._last_peer_stream = stream
        handler = self.handler
        if handler is None:
            self.refuse(stream, ServiceNotFound("nothing is served on this side of the connection", at=self.node_id))
        elif self._sent_goaway:
            self.refuse(stream, Draining("stopping; call another instance", at=self.node_id))
        elif self._peer_streams >= limits.MAX_STREAMS_PER_CONNECTION or self.is_send_buffer_full:
            self._counters.add("requests_refused_overloaded")
            self.refuse(stream, Overloaded("too much is open or unread on this connection", at=self.node_id))
        else:
            handler.request_received(self, frame)

    def _receive_event(self, frame: Frame) -> None:
        whole = self._event.receive(frame)
        if whole is None:
            return
        if self.handler is None:
            self._counters.add("events_dropped_no_handler")
        else:
            self.handler.event_received(self, *whole)

    # The end

    def on_lost(self, callback: Callable[[Connection, MicroError], None]) -> None:
        """Call `callback` once at the end, before the handler's `connection_lost` (at once when it has ended)."""
        if self.error is not None:
            callback(self, self.error)
        else:
            self._lost_callbacks.append(callback)

    def abort(self, error: MicroError) -> None:
        """End at once for `error`: owners are told now, the socket is closed behind."""
        self._lose(error)
        self._close_socket_behind()

    async def close(self) -> None:
        """Write what is queued, close the socket, tell the owners. Safe to call twice."""
        # Whatever is begun from here on would be lost with it.
        self.is_draining = True
        if self.error is None and self._outgoing:
            self._paused = False
            self._flush()
        await self._socket.close()
        self._lose(Closed(f"the connection to {self.remote} was closed here"))

    async def wait_closed(self) -> None:
        """Wait for the end, whoever causes it."""
        await self._closed.wait()

    def _hello_is_late(self) -> None:
        self._fail(Malformed(f"no HELLO within {limits.HANDSHAKE_TIMEOUT_S:.3g} s"))

    def _fail(self, violation: MicroError) -> None:
        self._counters.add("protocol_violations")
        # Any stranger can do this as often as it likes: counted always, told to those who look.
        log.info("connection broken off", extra={"remote": self.remote, "reason": violation.detail})
        self._lose(LinkLost(f"the connection to {self.remote} was broken off: {violation.detail}", at=self.node_id))
        self._close_socket_behind()

    def _close_socket_behind(self) -> None:
        task = self.loop.create_task(self._socket.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    def _lose(self, error: MicroError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._hello_timer.cancel()
        owners = list(self.streams.values())
        self.streams.clear()
        self._peer_streams = 0
        self._outgoing, self._bytes_unsent = [], 0
        self._event = EventAssembly()
        for owner in owners:
            self._tell(owner.connection_lost, error)
        for callback in self._lost_callbacks:
            self._tell(callback, self, error)
        if self.handler is not None:
            self._tell(self.handler.connection_lost, self, error)
        self._closed.set()
        for waiting in self._round_trips.values():
            if not waiting.done():
                waiting.set_result(None)
        self._call_writable()

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # One owner's bug must not keep the news from the others.
            log.exception("an owner failed on the end of its connection", extra={"remote": self.remote})
            self._counters.add("connection_bugs")
