"""A socket over an asyncio stream transport (TCP or Unix): bytes go straight through, without a task or a copy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.spec.driver import Counters
from micro_core.spec.errors import Closed, Ended, LinkLost, MicroError
from micro_core.spec.transport import SocketReceiver

CLOSE_TIMEOUT_S = 1.0
"""How long `close` waits for queued bytes to leave."""

HIGH_WATER_BYTES = 1024 * 1024
LOW_WATER_BYTES = 256 * 1024


class StreamSocket(asyncio.Protocol):
    """Implements `Socket`. Reading is paused until `start`, so that nothing that comes early is lost or piles up."""

    def __init__(self, connected: Callable[[StreamSocket], None] | None = None) -> None:
        self.local = ""
        self.remote = ""
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._receiver: SocketReceiver | None = None
        self._early: list[bytes] = []
        self._error: MicroError | None = None
        self._is_closing = False
        self._is_write_paused = False
        self._lost = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)
        transport.pause_reading()
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:
            self._early.append(data)
        else:
            self._receiver.data_received(data)

    def eof_received(self) -> bool:
        self._error = self._error or Ended(f"{self.remote} closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_closing:
            error: MicroError = Closed(f"the connection to {self.remote} was closed here")
        elif exc is not None:
            error = LinkLost(f"the connection to {self.remote} broke: {exc}")
        else:
            error = self._error or Ended(f"{self.remote} closed the connection")
        self._error = error
        if not self._lost.done():
            self._lost.set_result(None)
        if self._receiver is not None:
            self._receiver.socket_lost(error)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._receiver is not None:
            self._receiver.resume_writing()

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.data_received(data)
        if self._lost.done() and self._error is not None:
            receiver.socket_lost(self._error)
            return
        if self._is_write_paused:
            receiver.pause_writing()
        self.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._lost.done():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    async def close(self) -> None:
        if self._transport is None or self._lost.done():
            return
        self._is_closing = True
        self._transport.close()
        done, _ = await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT_S)
        if not done:
            self._transport.abort()
            await self._lost

    def when_lost(self, callback: Callable[[StreamSocket], None]) -> None:
        """Call `callback(self)` after the end."""
        self._lost.add_done_callback(lambda _: callback(self))

    def endpoint(self, which: str) -> object:
        """`sockname` or `peername` of the operating system's socket."""
        return None if self._transport is None else self._transport.get_extra_info(which)

    def abort(self) -> None:
        """End without waiting for what is queued."""
        if self._transport is not None:
            self._is_closing = True
            self._transport.abort()


class StreamListener:
    """Implements `Listener` over an asyncio server."""

    def __init__(self, address: str, server: asyncio.Server, cleanup: Callable[[], None] | None = None) -> None:
        self.address = address
        self._server = server
        self._cleanup = cleanup

    async def close(self) -> None:
        if self._server.is_serving():
            self._server.close()
            if self._cleanup is not None:
                self._cleanup()


class StreamSockets:
    """The sockets and listeners of one transport: bounded, and closed together."""

    def __init__(self, most: int, counters: Counters, refused: str) -> None:
        self._most = most
        self._counters = counters
        self._refused = refused
        self._sockets: set[StreamSocket] = set()
        self._listeners: list[StreamListener] = []
        self._is_closed = False

    def add(self, socket: StreamSocket) -> None:
        self._sockets.add(socket)
        socket.when_lost(self._sockets.discard)

    def admit(self, socket: StreamSocket) -> bool:
        """Keep an accepted socket, or refuse it when there are too many."""
        if self._is_closed:
            # Accepted by the system while the transport was being closed.
            socket.abort()
            return False
        if len(self._sockets) >= self._most:
            self._counters.add(self._refused)
            socket.abort()
            return False
        self.add(socket)
        return True

    def add_listener(self, listener: StreamListener) -> None:
        self._listeners.append(listener)

    async def close(self) -> None:
        self._is_closed = True
        for listener in self._listeners:
            await listener.close()
        await asyncio.gather(*(socket.close() for socket in list(self._sockets)))
