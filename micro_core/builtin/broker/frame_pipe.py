"""Frames over a socket, for a broker host and its clients: both ends send HELLO first, and write once per loop iteration."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Malformed, MicroError
from micro_core.contract.transport import Socket
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.wire import limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind, encode
from micro_core.wire.header import decode_hello, encode_hello

MAX_QUEUED_MESSAGES = 4_096
"""Messages of any size queued for a peer that reads too slowly."""

MAX_PONG_BYTES = 32


class FrameReceiver(Protocol):
    """Receives the frames of a pipe. The methods are called in the event loop and must not block."""

    def frame_received(self, frame: Frame) -> None:
        """Receive a frame after HELLO. A MicroError raised here closes the connection."""
        ...

    def protocol_violated(self, error: MicroError) -> None:
        """Note that the peer has violated the protocol. No frame follows, only `pipe_lost`."""
        ...

    def pipe_lost(self, error: MicroError) -> None:
        """Note the end of the connection. Called exactly once."""
        ...


class FramePipe:
    """Sends and receives frames. Implements `SocketReceiver`. Callers of `send` check `is_full` to bound the queue."""

    def __init__(
        self, socket: Socket, node_id: str, receiver: FrameReceiver, *, counters: Counters, logger: logging.Logger
    ) -> None:
        self.received_count = 0
        """Number of reads. It does not change while the peer is silent."""
        self.answered = asyncio.Event()
        """Set once the HELLO of the peer has arrived, and after the end of the connection."""
        self.drained = asyncio.Event()
        """Set while `is_full` is false, and after the end of the connection."""
        self.drained.set()
        self._socket = socket
        self._receiver = receiver
        self._outgoing: list[bytes] = []
        self._queued_bytes = 0
        self._queued_count = 0
        self._is_writing_paused = False
        self._is_reading_paused = False
        self._decoder = FrameDecoder()
        self._is_hello_received = False
        self._is_ended = False
        self._is_flush_scheduled = False
        self._loop = asyncio.get_running_loop()
        self._tasks = BackgroundTasks(
            component="broker connection", logger=logger, counters=counters, failure_counter="broker_tasks_failed"
        )
        self.send([encode(Kind.HELLO, 0, encode_hello(node_id[:64]))])

    def start(self) -> None:
        """Start to deliver frames."""
        self._socket.start(self)

    @property
    def is_full(self) -> bool:
        """Whether the peer reads too slowly, so that no further message should be queued."""
        return self._queued_bytes > limits.MAX_CONNECTION_BUFFER_BYTES or (
            self._is_writing_paused and self._queued_count > MAX_QUEUED_MESSAGES
        )

    def send(self, frames: list[bytes]) -> None:
        """Queue the frames of one message without blocking. They are written at the end of this loop iteration."""
        if self._is_ended:
            return
        self._outgoing += frames
        self._queued_bytes += sum(map(len, frames))
        self._queued_count += 1
        if self.is_full:
            self.drained.clear()
        if not self._is_flush_scheduled and not self._is_writing_paused:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    async def close(self) -> None:
        """Send queued frames, then close. Safe to call twice."""
        self._is_writing_paused = False
        self._flush()
        await self._socket.close()

    def close_in_background(self) -> None:
        """Close in a task. Safe to call twice."""
        self._tasks.start(self.close())

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        """Deliver the frames that `data` completes. An invalid frame closes the connection."""
        if self._is_ended:
            return
        self.received_count += 1
        try:
            for frame in self._decoder.receive_data(data):
                self._receive(frame)
        except MicroError as error:
            self._is_ended = True
            self._receiver.protocol_violated(error)
            self._tasks.start(self._socket.close())
            return
        if self.is_full and not self._is_reading_paused:
            # Stop reading from a peer that sends requests and does not read the answers.
            self._is_reading_paused = True
            self._socket.pause_reading()

    def pause_writing(self) -> None:
        """Keep frames in the queue."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Write the queued frames."""
        self._is_writing_paused = False
        self._flush()

    def socket_lost(self, error: MicroError) -> None:
        """Drop queued frames and report the end."""
        self._is_ended = True
        self._outgoing.clear()
        self.drained.set()
        self._receiver.pipe_lost(error)
        self.answered.set()

    # ---------------------------------------------------------------- private

    def _receive(self, frame: Frame) -> None:
        if not self._is_hello_received:
            if frame.kind != Kind.HELLO:
                raise Malformed("the first frame is not HELLO")
            decode_hello(frame.header)
            self._is_hello_received = True
            self.answered.set()
        elif frame.kind == Kind.PING:
            self.send([encode(Kind.PONG, 0, b"", frame.body[:MAX_PONG_BYTES])])
        else:
            self._receiver.frame_received(frame)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if self._outgoing and not self._is_writing_paused:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._queued_bytes = self._queued_count = 0
            # Set before the write, because the write may pause this pipe.
            self.drained.set()
            self._socket.write(data)
        if self._is_reading_paused and not self._is_writing_paused and not self.is_full:
            self._is_reading_paused = False
            self._socket.resume_reading()
