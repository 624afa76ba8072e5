"""Frames over a socket, for the node's broker and its clients: HELLO first both ways, one write a turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

from micro_core.contract.errors import Malformed, MicroError
from micro_core.contract.transport import Socket
from micro_core.wire import limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind, encode
from micro_core.wire.header import decode_hello, encode_hello

MAX_WAITING_MESSAGES = 4_096
"""Messages that wait for a peer that reads too slowly, whatever their size."""


class PipeOwner(Protocol):
    """Who a pipe tells. Called in the event loop; must not block."""

    def frame_received(self, frame: Frame) -> None:
        """A frame after the greeting. A MicroError raised here breaks the connection off."""
        ...

    def pipe_violated(self, error: MicroError) -> None:
        """The peer does not follow the protocol; no frame comes after it, and `pipe_lost` will be told."""
        ...

    def pipe_lost(self, error: MicroError) -> None:
        """The end, once."""
        ...


class FramePipe:
    """Implements `SocketReceiver`. What waits to be sent is counted, and bounded by whoever sends."""

    def __init__(self, socket: Socket, node_id: str, owner: PipeOwner) -> None:
        self.heard = 0
        """Counts what came in: a peer that is silent leaves it as it is."""
        self.room = asyncio.Event()
        """Set while `is_full` is false, and after the end."""
        self.room.set()
        self._socket = socket
        self._owner = owner
        self._outgoing: list[bytes] = []
        self._waiting_bytes = 0
        self._waiting_count = 0
        self._is_paused = False
        self._is_reading_held = False
        self._decoder = FrameDecoder()
        self._is_greeted = False
        self._is_over = False
        self._is_scheduled = False
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self.send([encode(Kind.HELLO, 0, encode_hello(node_id[:64]))])

    def start(self) -> None:
        """Begin to deliver frames."""
        self._socket.start(self)

    @property
    def is_full(self) -> bool:
        """True when the peer reads too slowly for more than what waits already."""
        return self._waiting_bytes > limits.MAX_CONNECTION_BUFFER_BYTES or (
            self._is_paused and self._waiting_count > MAX_WAITING_MESSAGES
        )

    def send(self, frames: list[bytes]) -> None:
        """Queue the frames of one message, to be written together at the end of this turn; never blocks."""
        if self._is_over:
            return
        self._outgoing += frames
        self._waiting_bytes += sum(map(len, frames))
        self._waiting_count += 1
        if self.is_full:
            self.room.clear()
        if not self._is_scheduled and not self._is_paused:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    async def close(self) -> None:
        """Send what is queued, then end. Safe to call twice."""
        self._is_paused = False
        self._flush()
        await self._socket.close()

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self.heard += 1
        try:
            for frame in self._decoder.receive_data(data):
                self._receive(frame)
        except MicroError as error:
            self._is_over = True
            self._owner.pipe_violated(error)
            self._closing = self._loop.create_task(self._socket.close())
            return
        if self.is_full and not self._is_reading_held:
            # A peer that asks and does not read the answers is not heard until it does.
            self._is_reading_held = True
            self._socket.pause_reading()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    def socket_lost(self, error: MicroError) -> None:
        self._is_over = True
        self._outgoing.clear()
        self.room.set()
        self._owner.pipe_lost(error)

    # ----------------------------------------------------------------- inside

    def _receive(self, frame: Frame) -> None:
        if not self._is_greeted:
            if frame.kind != Kind.HELLO:
                raise Malformed("the first frame is not HELLO")
            decode_hello(frame.header)
            self._is_greeted = True
        elif frame.kind == Kind.PING:
            self.send([encode(Kind.PONG, 0, b"", frame.body[:32])])
        else:
            self._owner.frame_received(frame)

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._outgoing and not self._is_paused:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._waiting_bytes = self._waiting_count = 0
            # First the room, then the write: the write may pause this pipe.
            self.room.set()
            self._socket.write(data)
        if self._is_reading_held and not self._is_paused and not self.is_full:
            self._is_reading_held = False
            self._socket.resume_reading()
