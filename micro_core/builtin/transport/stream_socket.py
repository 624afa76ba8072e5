"""Sockets over asyncio stream transports (TCP and Unix), without a task or a copy per socket."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Closed, Ended, LinkLost, MicroError, OptionError, Unreachable
from micro_core.contract.transport import SocketReceiver

CLOSE_TIMEOUT_S = 1.0
"""Seconds that a close waits for queued data to be sent and for the other end to close."""

HIGH_WATER_BYTES = 1024 * 1024
LOW_WATER_BYTES = 256 * 1024
BACKLOG = 1_024
"""Connections that the system queues until they are accepted."""


@dataclass(frozen=True, slots=True)
class WaterMarks:
    """Numbers of unsent bytes above which the writer is paused, and below which it is resumed.

    Raises:
        OptionError: The low mark is negative or above the high mark.
    """

    high_bytes: int = HIGH_WATER_BYTES
    low_bytes: int = LOW_WATER_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.low_bytes <= self.high_bytes:
            raise OptionError(
                f"invalid low_water_bytes {self.low_bytes}: not between 0 and high_water_bytes {self.high_bytes}"
            )


class StreamSocket(asyncio.Protocol):
    """Implements `Socket`. Reading is paused until `start`, so that early data is neither lost nor buffered here.

    `on_connect(socket)` is called when the connection exists.
    """

    def __init__(self, marks: WaterMarks, on_connect: Callable[[StreamSocket], None] | None = None) -> None:
        self.local = ""
        self.remote = ""
        self._marks = marks
        self._on_connect = on_connect
        self._transport: asyncio.Transport | None = None
        self._receiver: SocketReceiver | None = None
        self._early: list[bytes] = []
        self._error: MicroError | None = None
        self._is_closing = False
        self._is_reading = True
        self._is_write_paused = False
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and pause reading."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._marks.high_bytes, low=self._marks.low_bytes)
        transport.pause_reading()
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        """Deliver data. It is dropped after `close`."""
        if self._is_closing:
            return
        if self._receiver is None:
            self._early.append(data)
        else:
            self._receiver.data_received(data)

    def eof_received(self) -> bool:
        """Close the connection after the other end has closed it."""
        self._error = self._error or Ended(f"{self.remote} closed the connection")
        self._set_deadline()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end with its reason: Closed, Ended or LinkLost."""
        if self._is_closing:
            self._error = Closed(f"the connection to {self.remote} was closed at this end")
        elif self._error is None and exc is not None:
            self._error = LinkLost(f"the connection to {self.remote} broke: {exc}")
        elif self._error is None:
            self._error = Ended(f"{self.remote} closed the connection")
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._lost.done():
            self._lost.set_result(None)
        if self._receiver is not None:
            self._receiver.socket_lost(self._error)

    def pause_writing(self) -> None:
        """Pause the writer."""
        self._is_write_paused = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """Resume the writer."""
        self._is_write_paused = False
        if self._receiver is not None:
            self._receiver.resume_writing()

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.data_received(data)
        if self._lost.done():
            assert self._error is not None
            receiver.socket_lost(self._error)
            return
        if self._is_write_paused:
            receiver.pause_writing()
        if self._is_reading:
            self.resume_reading()

    def write(self, data: bytes) -> None:
        """Queue bytes without blocking. Ignored after the end of the connection."""
        transport = self._transport
        if transport is not None and not self._is_closing and not transport.is_closing():
            transport.write(data)

    def pause_reading(self) -> None:
        """Stop delivering data."""
        self._is_reading = False
        transport = self._transport
        if transport is not None and not self._is_closing and not transport.is_closing() and transport.is_reading():
            transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver data again."""
        self._is_reading = True
        transport = self._transport
        if transport is None or self._receiver is None:
            return
        if not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    async def close(self) -> None:
        """Send queued data for at most CLOSE_TIMEOUT_S, then close. Safe to call twice."""
        transport = self._transport
        if transport is None or self._lost.done():
            return
        if not self._is_closing:
            self._is_closing = True
            self._set_deadline()
            _send_eof(transport)
        await asyncio.wait([self._lost])

    def abort(self) -> None:
        """Close without sending queued data."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------- for the transport

    def when_lost(self, callback: Callable[[StreamSocket], None]) -> None:
        """Call `callback(self)` after the end of the connection."""
        self._lost.add_done_callback(lambda _: callback(self))

    def endpoint(self, which: str) -> object:
        """Return the `sockname` or `peername` of the socket of the operating system."""
        return None if self._transport is None else self._transport.get_extra_info(which)

    def _set_deadline(self) -> None:
        if self._deadline is None and self._transport is not None:
            self._deadline = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)


def _send_eof(transport: asyncio.Transport) -> None:
    """Start to close the connection in a way that the other end receives all data.

    If a socket with unread data is closed, the system sends a reset, and the other end may lose data that it has not read
    yet (RFC 1122, section 4.2.2.13; RFC 9112, section 9.6). So an EOF is sent first, and reading continues until the other
    end has closed.
    """
    if transport.is_closing():
        return
    try:
        transport.write_eof()
    except OSError:
        transport.abort()
        return
    if not transport.is_reading():
        transport.resume_reading()


async def connect(
    connecting: Awaitable[tuple[asyncio.BaseTransport, StreamSocket]], address: str, timeout_s: float
) -> StreamSocket:
    """Await `connecting` and return its socket.

    Raises:
        Unreachable: There is no connection within `timeout_s` seconds; the detail contains the reason.
    """
    try:
        async with asyncio.timeout(timeout_s):
            _, socket = await connecting
    except TimeoutError as error:
        raise Unreachable(f"{address} did not answer within {timeout_s:.3g} s", hint="is it running?") from error
    except sockets.gaierror as error:
        raise Unreachable(f"cannot connect to {address}: {reason(error)}", hint="check the host name") from error
    except OSError as error:
        raise Unreachable(f"cannot connect to {address}: {reason(error)}", hint="is it running?") from error
    except ValueError as error:
        # The host name has an empty or too long label, or a zero byte.
        raise Unreachable(f"cannot connect to {address:.300}: {error}", hint="check the host name") from error
    return socket


def reason(error: OSError) -> str:
    """Return the error text of the system, without the address that Python adds to it."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, sockets.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


class StreamListener:
    """Implements `Listener` over an asyncio server."""

    def __init__(self, address: str, server: asyncio.Server, on_close: Callable[[StreamListener], None]) -> None:
        self.address = address
        self._server = server
        self._on_close = on_close

    async def start(self) -> None:
        """Start to accept. If this fails or is cancelled, the listener is closed. Raises OSError."""
        try:
            await self._server.start_serving()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop accepting. Safe to call twice."""
        if self._server.is_serving():
            self._server.close()
            self._on_close(self)


class StreamSockets:
    """The sockets and listeners of one transport. The number of accepted sockets is limited; all are closed together."""

    def __init__(self, max_accepted: int, counters: Counters, refused_counter: str) -> None:
        self._max_accepted = max_accepted
        self._counters = counters
        self._refused_counter = refused_counter
        self._accepted: set[StreamSocket] = set()
        self._dialled: set[StreamSocket] = set()
        self._listeners: set[StreamListener] = set()
        self._is_closed = False

    def check_open(self) -> None:
        """Do nothing while the transport is open.

        Raises:
            Closed: The transport is closed.
        """
        if self._is_closed:
            raise Closed("the transport is closed")

    def add_dialled(self, socket: StreamSocket) -> None:
        """Keep a dialled socket. Raises Closed if the transport was closed in the meantime."""
        if self._is_closed:
            socket.abort()
        self.check_open()
        self._dialled.add(socket)
        socket.when_lost(self._dialled.discard)

    def admit(self, socket: StreamSocket) -> bool:
        """Keep an accepted socket and return True, or refuse it if there are too many."""
        if self._is_closed:
            # The system accepted the connection while the transport was being closed.
            socket.abort()
            return False
        if len(self._accepted) >= self._max_accepted:
            self._counters.add(self._refused_counter)
            socket.abort()
            return False
        self._accepted.add(socket)
        socket.when_lost(self._accepted.discard)
        return True

    def add_listener(self, listener: StreamListener) -> None:
        """Keep a listener."""
        self._listeners.add(listener)

    def remove_listener(self, listener: StreamListener) -> None:
        """Forget a listener that is closed."""
        self._listeners.discard(listener)

    async def close(self) -> None:
        """Close all listeners and sockets. Safe to call twice."""
        self._is_closed = True
        for listener in list(self._listeners):
            await listener.close()
        await asyncio.gather(*(socket.close() for socket in [*self._accepted, *self._dialled]))
