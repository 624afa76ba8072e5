"""The driver `transport:memory`: sockets within one process, with backpressure."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from micro_core.contract import (
    Closed,
    Conflict,
    Driver,
    DriverContext,
    Ended,
    LinkLost,
    MicroError,
    NoOptions,
    Socket,
    SocketReceiver,
    Transport,
    Unreachable,
    hookimpl,
)
from micro_core.contract.clock import Random
from micro_core.contract.transport import Listener

SCHEME = "memory"
HIGH_WATER_BYTES = 1024 * 1024
LOW_WATER_BYTES = 256 * 1024

ListenerKey = tuple[asyncio.AbstractEventLoop, str, str, str]
"""(loop, network, site, name)"""

_open_listeners: dict[ListenerKey, MemoryListener] = {}


class MemorySocket:
    """One end of a connection. Implements `Socket`. It queues what the other end has written and this end has not read."""

    def __init__(self, local: str, remote: str, on_end: Callable[[MemorySocket], None]) -> None:
        self.local = local
        self.remote = remote
        self.other: MemorySocket | None = None
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._receiver: SocketReceiver | None = None
        self._queued: deque[bytes] = deque()
        self._queued_bytes = 0
        self._is_reading = True
        self._is_writing_paused = False
        self._error: MicroError | None = None
        self._is_scheduled = False
        self._is_error_delivered = False

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        if self._is_writing_paused:
            receiver.pause_writing()
        self._schedule()

    def write(self, data: bytes) -> None:
        """Queue bytes for the other end without blocking. Ignored after the end of the connection."""
        if data and self._error is None and self.other is not None:
            self.other.receive(data)

    def pause_reading(self) -> None:
        """Stop delivering data."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """Deliver data again."""
        self._is_reading = True
        self._schedule()

    async def close(self) -> None:
        """Close both ends. The other end still receives the data that was written before. Safe to call twice."""
        if self._error is None:
            self._end(Closed(f"the connection to {self.remote} was closed at this end"))
            self._queued.clear()
            if self.other is not None:
                self.other.end(Ended(f"{self.local} closed the connection"))
            # One loop iteration, after which the receiver has got `socket_lost`.
            await asyncio.sleep(0)

    # ----------------------------------------------- called by the other end

    def receive(self, data: bytes) -> None:
        """Queue data of the other end."""
        self._queued.append(data)
        self._queued_bytes += len(data)
        if self._queued_bytes > HIGH_WATER_BYTES and self.other is not None:
            self.other.pause_writing()
        self._schedule()

    def pause_writing(self) -> None:
        """Pause the writer: the other end has more than HIGH_WATER_BYTES to read."""
        if not self._is_writing_paused and self._error is None:
            self._is_writing_paused = True
            if self._receiver is not None:
                self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """Resume the writer: the other end has less than LOW_WATER_BYTES to read."""
        if self._is_writing_paused and self._error is None:
            self._is_writing_paused = False
            if self._receiver is not None:
                self._receiver.resume_writing()

    def end(self, error: MicroError) -> None:
        """Note that the other end has closed. Data that it wrote before is still delivered."""
        if self._error is None:
            self._end(error)

    def cut(self) -> None:
        """Break the connection, like a pulled cable. Queued data is lost. For tests."""
        for socket in (self, self.other):
            if socket is not None and socket._error is None:
                socket._queued.clear()
                socket._end(LinkLost(f"the connection to {socket.remote} was cut"))

    # ---------------------------------------------------------------- private

    def _end(self, error: MicroError) -> None:
        self._error = error
        self._on_end(self)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._receiver is not None:
            self._is_scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_scheduled = False
        receiver = self._receiver
        if receiver is None:
            return
        # Data written in the meantime is delivered in the next loop iteration, so that a fast writer does not block the loop.
        for _ in range(len(self._queued)):
            if not self._is_reading or not self._queued:
                break
            data = self._queued.popleft()
            self._queued_bytes -= len(data)
            if self._queued_bytes < LOW_WATER_BYTES and self.other is not None:
                self.other.resume_writing()
            receiver.data_received(data)
        if self._queued:
            if self._is_reading:
                self._schedule()
        elif self._error is not None and not self._is_error_delivered:
            self._is_error_delivered = True
            receiver.socket_lost(self._error)


class MemoryListener:
    """Implements `Listener`."""

    def __init__(
        self, address: str, key: ListenerKey, transport: MemoryTransport, accept: Callable[[Socket], None]
    ) -> None:
        self.address = address
        self.transport = transport
        self.accept = accept
        self._key = key

    async def close(self) -> None:
        """Stop accepting. Safe to call twice, also if the name has another listener by then."""
        if _open_listeners.get(self._key) is self:
            del _open_listeners[self._key]
            self.transport.remove_listener(self)


class MemoryTransport:
    """Implements `Transport`. Transports of one process, event loop, network and site can connect to each other."""

    scheme = SCHEME

    def __init__(self, network: str, site: str, random: Random) -> None:
        self._network = network
        self._site = site
        self._random = random
        self._sockets: dict[MemorySocket, None] = {}
        self._listeners: dict[MemoryListener, None] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Do nothing: there is nothing to prepare."""

    async def close(self) -> None:
        """Close all listeners and sockets. Safe to call twice."""
        self._is_closed = True
        for listener in list(self._listeners):
            await listener.close()
        for socket in list(self._sockets):
            await socket.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:  # noqa: ARG002 - never waits
        """Connect to a listener. Raises Closed.

        Raises:
            Unreachable: The address has no listener.
        """
        self._check_open()
        name = address.removeprefix("memory://")
        listener = _open_listeners.get(self._key(name))
        if listener is None:
            raise Unreachable(f"no listener at memory://{name}", hint="is it running in this process?")
        near = self.new_socket(f"memory://dialler-{self._random.getrandbits(32):08x}", f"memory://{name}")
        far = listener.transport.new_socket(near.remote, near.local)
        near.other, far.other = far, near
        listener.accept(far)
        return near

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at a name; an empty address means an unused name. Raises Closed.

        Raises:
            Conflict: The name has a listener already.
        """
        self._check_open()
        name = address.removeprefix("memory://") or f"{self._random.getrandbits(48):012x}"
        key = self._key(name)
        if key in _open_listeners:
            raise Conflict(f"memory://{name} is in use", hint="choose another name")
        listener = _open_listeners[key] = MemoryListener(f"memory://{name}", key, self, accept)
        self._listeners[listener] = None
        return listener

    def new_socket(self, local: str, remote: str) -> MemorySocket:
        """Return one end of a new connection, which is closed together with this transport."""
        socket = MemorySocket(local, remote, lambda ended: self._sockets.pop(ended, None))
        self._sockets[socket] = None
        return socket

    @property
    def sockets(self) -> tuple[MemorySocket, ...]:
        """The open sockets, for tests."""
        return tuple(self._sockets)

    def remove_listener(self, listener: MemoryListener) -> None:
        """Forget a listener that is closed."""
        self._listeners.pop(listener, None)

    def _key(self, name: str) -> ListenerKey:
        return (asyncio.get_running_loop(), self._network, self._site, name)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the transport is closed")


def create(options: NoOptions, context: DriverContext) -> Transport:  # noqa: ARG001 - the signature of a driver
    """Return the transport."""
    return MemoryTransport(context.network, context.site, context.random)


@hookimpl
def micro_transport() -> Driver[Transport]:
    """Return the description of the driver."""
    return Driver(name="memory", summary="Sockets within one process.", options=NoOptions, create=create)
