"""One connection over a socket, which multiplexes many calls.

The protocol is in connection_protocol.py. This module writes and reads the socket: outgoing frames are collected and written
once per iteration of the event loop, without a task, future or hook per frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import Closed, Conflict, LinkLost, Malformed, MicroError, Overloaded, ServiceNotFound
from micro_core.contract.transport import Socket
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.rpc.connection_protocol import (
    ConnectionEvent,
    ConnectionProtocol,
    FrameDropped,
    HelloReceived,
    MessageReceived,
    PingReceived,
    PongReceived,
    RequestRefused,
)
from micro_core.rpc.wakeup import Wakeup
from micro_core.wire import limits
from micro_core.wire.frames import Frame
from micro_core.wire.header import EventHeader

log = logging.getLogger(__name__)

EAGER_FRAMES = 32
"""Number of queued frames that are written at once instead of at the end of the iteration of the event loop, so that the next
hop can start on them while this one works on the rest."""


class ConnectionHandler(Protocol):
    """Processes the requests and messages of the peer. Its methods must not block and must not raise."""

    def request_received(self, connection: Connection, frame: Frame) -> None:
        """Process a REQUEST: `attach` an owner to its stream, or `refuse` it."""
        ...

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:
        """Process a complete published message."""
        ...

    def connection_lost(self, connection: Connection, error: MicroError) -> None:
        """Process the end of the connection. Called once, after the owners of its streams."""
        ...


class Connection:
    """Frames over `socket`. The constructor sends HELLO and starts to read.

    `dialed` states whether this side dialled the socket: that side uses odd stream IDs, the other side even ones. Without a
    `handler`, requests of the peer are refused. When the connection has ended, `send` is ignored.
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
        self.bytes_received = 0
        self.is_send_buffer_full = False
        """More than `limits.MAX_CONNECTION_BUFFER_BYTES` are queued: refuse new calls with Overloaded."""
        self.is_hard_limit_exceeded = False
        """More than `limits.MAX_UNREAD_BYTES` are queued: end calls that would send more with Overloaded."""

        self._socket = socket
        self._protocol = ConnectionProtocol(dialed=dialed, on_event=self._handle, node_id=node_id, remote=socket.remote)
        # Methods of the protocol, because wrappers would cost one more function call for each of the streams of a call.
        self.open_stream = self._protocol.open_stream
        self.attach = self._protocol.attach
        self.close_stream = self._protocol.close_stream
        self._counters: Counters = counters if counters is not None else CountersInMemory()
        self.loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        self._bytes_unsent = 0
        self._flush_scheduled = False
        self._paused = False
        self._writable = Wakeup()
        self._lost_handler: Callable[[Connection, MicroError], None] | None = None
        self._closed = asyncio.Event()
        self._tasks = BackgroundTasks(
            component="connection", logger=log, counters=self._counters, failure_counter="connection_bugs"
        )
        self._round_trips: dict[bytes, asyncio.Future[None]] = {}
        self._last_round_trip = 0
        self._hello_timer = self.loop.call_later(limits.HANDSHAKE_TIMEOUT_S, self._hello_timed_out)

        self._send_protocol_frames()
        socket.start(self)

    @property
    def remote(self) -> str:
        """Return the address of the peer, for messages and logs."""
        return self._socket.remote

    @property
    def peer_id(self) -> str:
        """Return the node ID in the HELLO of the peer; empty for a client that is not a node.

        Only the socket can authenticate the peer: the HELLO alone proves nothing.
        """
        return self._protocol.peer_id

    @property
    def wire_version(self) -> int:
        """Return the wire version of both sides; 0 before the HELLO of the peer."""
        return self._protocol.wire_version

    @property
    def error(self) -> MicroError | None:
        """Return the reason of the end, or None while the connection is open."""
        return self._protocol.error

    @property
    def can_open_streams(self) -> bool:
        """Return whether calls may be opened: neither side has ended this, and stream IDs are left."""
        return self._protocol.can_open_streams

    @property
    def is_out_of_stream_ids(self) -> bool:
        """Return whether this side has used all its stream IDs. Open streams continue."""
        return self._protocol.is_out_of_stream_ids

    @property
    def open_streams(self) -> int:
        """Return the number of open streams of both sides."""
        return len(self._protocol.streams)

    @property
    def buffered_bytes(self) -> int:
        """Return the number of queued bytes that were not passed to the socket yet."""
        return self._bytes_unsent

    @property
    def is_paused(self) -> bool:
        """Return whether the socket has asked to pause writing, as happens in every large transfer."""
        return self._paused

    # ---------------------------------------------------------------- writing

    def send(self, data: bytes) -> None:
        """Queue one frame or several joined frames, to be written at the end of this iteration of the event loop."""
        if self._protocol.error is not None:
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
            self.loop.call_soon(self._flush_at_end_of_iteration)

    def refuse(self, stream: int, error: MicroError) -> None:
        """Answer a request with ERROR, without a stream. Closes the connection of a peer that never reads them."""
        try:
            self._protocol.refuse(stream, error)
        except Overloaded as violation:
            self._fail(violation)
        else:
            self._send_protocol_frames()

    def send_goaway(self) -> None:
        """Ask the peer to open no more calls here. Calls that it opens anyway are refused with Draining."""
        self._protocol.send_goaway()
        self._send_protocol_frames()

    async def round_trip(self) -> None:
        """Wait until the peer has read everything sent before, and everything it had sent by then has arrived here.

        Frames keep their order, so a PING and its PONG prove both. Also returns when the connection ends.
        """
        if self.error is not None:
            return
        self._last_round_trip += 1
        body = self._last_round_trip.to_bytes(8, "big")
        answered = self._round_trips[body] = self.loop.create_future()
        self._send_ping(body)
        try:
            await answered
        finally:
            self._round_trips.pop(body, None)

    def ping(self) -> None:
        """Send a PING. Its answer increases `bytes_received`."""
        self._send_ping()

    async def writable(self) -> None:
        """Wait until the socket accepts more data. Raises the reason of the end if the connection ends before."""
        while self.error is None and (self._paused or self.is_send_buffer_full):
            await self._writable.wait()
        if self.error is not None:
            raise self.error

    def _send_ping(self, body: bytes = b"") -> None:
        self._protocol.send_ping(body)
        self._send_protocol_frames()

    def _send_protocol_frames(self) -> None:
        data = self._protocol.data_to_send()
        if data:
            self.send(data)

    def _flush_at_end_of_iteration(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self._paused or not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        self._bytes_unsent = 0
        self.is_send_buffer_full = self.is_hard_limit_exceeded = False
        self._protocol.unread_refusals = 0
        self._socket.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        """Process received data. A violation of the protocol closes this connection only."""
        self.bytes_received += len(data)
        try:
            self._protocol.receive_data(data)
        except MicroError as violation:
            self._fail(violation)
        except Exception as bug:
            log.exception("processing a frame failed", extra={"remote": self.remote})
            self._counters.add("connection_bugs")
            self._fail(LinkLost(f"processing a frame failed: {type(bug).__name__}"))

    def pause_writing(self) -> None:
        """Keep queued data until `resume_writing`."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write the queued data."""
        self._paused = False
        if not self._flush_scheduled:
            self._flush()
        # The waiting tasks check their condition again after the queued data was written.
        self._writable.wake()

    def socket_lost(self, error: MicroError) -> None:
        """Process the end of the socket."""
        self._lose(error)

    def _handle(self, event: ConnectionEvent) -> None:
        if isinstance(event, Frame):
            handler = self.handler
            if handler is None:
                self.refuse(event.stream, ServiceNotFound("this side serves no requests", at=self.node_id))
            elif self.is_send_buffer_full:
                self._counters.add("requests_refused_overloaded")
                self.refuse(event.stream, Overloaded("the send buffer of the connection is full", at=self.node_id))
            else:
                handler.request_received(self, event)
            return
        match event:
            case MessageReceived(header, body):
                if self.handler is None:
                    self._counters.add("events_dropped_no_handler")
                else:
                    self.handler.event_received(self, header, body)
            case FrameDropped():
                self._counters.add("frames_for_closed_stream")
            case PingReceived(body):
                if not self.is_send_buffer_full:
                    self._protocol.send_pong(body)
                    self._send_protocol_frames()
            case PongReceived(body):
                answered = self._round_trips.get(body)
                if answered is not None and not answered.done():
                    answered.set_result(None)
            case HelloReceived():
                self._hello_timer.cancel()
            case RequestRefused(error):
                if isinstance(error, Overloaded):
                    self._counters.add("requests_refused_overloaded")
                self._send_protocol_frames()

    # -------------------------------------------------------------------- end

    def set_lost_handler(self, handler: Callable[[Connection, MicroError], None]) -> None:
        """Call `handler` once at the end, before `ConnectionHandler.connection_lost`; at once if the connection has ended.

        For the collection that contains the connection, whereas a `ConnectionHandler` serves its requests.

        Raises:
            Conflict: A handler is set already.
        """
        if self._lost_handler is not None:
            raise Conflict("the connection has a handler of its end already", at=self.node_id)
        self._lost_handler = handler
        if self.error is not None:
            handler(self, self.error)

    def abort(self, error: MicroError) -> None:
        """End the connection at once because of `error`. The owners are notified now, the socket is closed in a task."""
        self._lose(error)
        self._close_socket_in_task()

    async def close(self) -> None:
        """Write the queued data, close the socket and notify the owners. Safe to call twice."""
        self._protocol.start_close()
        if self.error is None and self._outgoing:
            self._paused = False
            self._flush()
        await self._socket.close()
        self._lose(Closed(f"the connection to {self.remote} was closed at this end"))

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await self._closed.wait()

    def _hello_timed_out(self) -> None:
        self._fail(Malformed(f"no HELLO within {limits.HANDSHAKE_TIMEOUT_S:.3g} s"))

    def _fail(self, violation: MicroError) -> None:
        if self.error is not None:
            return
        self._counters.add("protocol_violations")
        # An unauthenticated peer can cause this as often as it likes, so the log level is low.
        log.info("connection closed after a violation", extra={"remote": self.remote, "reason": violation.detail})
        self._lose(LinkLost(f"the connection to {self.remote} was closed: {violation.detail}", at=self.node_id))
        self._close_socket_in_task()

    def _close_socket_in_task(self) -> None:
        self._tasks.start(self._socket.close())

    def _lose(self, error: MicroError) -> None:
        if self.error is not None:
            return
        owners = self._protocol.connection_lost(error)
        self._hello_timer.cancel()
        self._outgoing, self._bytes_unsent = [], 0
        for owner in owners:
            self._notify(owner.connection_lost, error)
        if self._lost_handler is not None:
            self._notify(self._lost_handler, self, error)
        if self.handler is not None:
            self._notify(self.handler.connection_lost, self, error)
        self._closed.set()
        for round_trip in self._round_trips.values():
            if not round_trip.done():
                round_trip.set_result(None)
        self._writable.wake()

    def _notify(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # A bug of one owner must not prevent the notification of the others.
            log.exception("an owner failed at the end of its connection", extra={"remote": self.remote})
            self._counters.add("connection_bugs")
