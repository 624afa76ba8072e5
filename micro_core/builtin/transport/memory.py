"""The transport role within one process: sockets with real backpressure, for tests and for services side by side."""

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

Place = tuple[asyncio.AbstractEventLoop, str, str, str]
"""(loop, network, site, name)"""

_doors: dict[Place, MemoryListener] = {}


class MemorySocket:
    """Implements `Socket`. What waits here was written by the other end and not yet read on this one."""

    def __init__(self, local: str, remote: str, ended: Callable[[MemorySocket], None]) -> None:
        self.local = local
        self.remote = remote
        self.other: MemorySocket | None = None
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._receiver: SocketReceiver | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_reading = True
        self._is_writing_paused = False
        self._error: MicroError | None = None
        self._is_scheduled = False
        self._is_told = False

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        if self._is_writing_paused:
            receiver.pause_writing()
        self._schedule()

    def write(self, data: bytes) -> None:
        if data and self._error is None and self.other is not None:
            self.other.arrive(data)

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._schedule()

    async def close(self) -> None:
        if self._error is None:
            self._end(Closed(f"the connection to {self.remote} was closed here"))
            self._waiting.clear()
            if self.other is not None:
                self.other.end(Ended(f"{self.local} closed the connection"))
            # One turn: whoever closes finds that `socket_lost` has been told.
            await asyncio.sleep(0)

    # ------------------------------------------------------- from the other end

    def arrive(self, data: bytes) -> None:
        """The other end wrote."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and self.other is not None:
            self.other.pause_writing()
        self._schedule()

    def pause_writing(self) -> None:
        """What the other end has not read is above the high mark."""
        if not self._is_writing_paused and self._error is None:
            self._is_writing_paused = True
            if self._receiver is not None:
                self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """It is below the low mark."""
        if self._is_writing_paused and self._error is None:
            self._is_writing_paused = False
            if self._receiver is not None:
                self._receiver.resume_writing()

    def end(self, error: MicroError) -> None:
        """The other end is gone; what it wrote before is still delivered."""
        if self._error is None:
            self._end(error)

    def cut(self) -> None:
        """Break the connection, as a pulled cable does: what waits is lost."""
        for socket in (self, self.other):
            if socket is not None and socket._error is None:
                socket._waiting.clear()
                socket._end(LinkLost(f"the connection to {socket.remote} was cut"))

    # ----------------------------------------------------------------- inside

    def _end(self, error: MicroError) -> None:
        self._error = error
        self._ended(self)
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
        # What is written meanwhile waits for the next turn: a writer that never pauses must not hold up the loop.
        for _ in range(len(self._waiting)):
            if not self._is_reading or not self._waiting:
                break
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            if self._waiting_bytes < LOW_WATER_BYTES and self.other is not None:
                self.other.resume_writing()
            receiver.data_received(data)
        if self._waiting:
            if self._is_reading:
                self._schedule()
        elif self._error is not None and not self._is_told:
            self._is_told = True
            receiver.socket_lost(self._error)


class MemoryListener:
    """Implements `Listener`."""

    def __init__(
        self, address: str, place: Place, transport: MemoryTransport, accept: Callable[[Socket], None]
    ) -> None:
        self.address = address
        self.transport = transport
        self.accept = accept
        self._place = place

    async def close(self) -> None:
        # The place may be another's by now.
        if _doors.get(self._place) is self:
            del _doors[self._place]
            self.transport.forget_listener(self)


class MemoryTransport:
    """Implements `Transport`; those of one process, loop, network and site meet."""

    scheme = SCHEME

    def __init__(self, network: str, site: str, random: Random) -> None:
        self._network = network
        self._site = site
        self._random = random
        self._sockets: dict[MemorySocket, None] = {}
        self._listeners: dict[MemoryListener, None] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        self._is_closed = True
        for listener in list(self._listeners):
            await listener.close()
        for socket in list(self._sockets):
            await socket.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:  # noqa: ARG002 - nothing takes time here
        """As `Transport.dial`; raises Closed after `close`."""
        self._check_open()
        name = address.removeprefix("memory://")
        door = _doors.get(self._place(name))
        if door is None:
            raise Unreachable(f"nobody listens at memory://{name}", hint="is it running in this process?")
        here = self.socket(f"memory://dialler-{self._random.getrandbits(32):08x}", f"memory://{name}")
        there = door.transport.socket(here.remote, here.local)
        here.other, there.other = there, here
        door.accept(there)
        return here

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """As `Transport.listen`; raises Closed after `close`."""
        self._check_open()
        name = address.removeprefix("memory://") or f"{self._random.getrandbits(48):012x}"
        place = self._place(name)
        if place in _doors:
            raise Conflict(f"memory://{name} is taken", hint="choose another name")
        listener = _doors[place] = MemoryListener(f"memory://{name}", place, self, accept)
        self._listeners[listener] = None
        return listener

    def socket(self, local: str, remote: str) -> MemorySocket:
        """An end of a new connection, closed with this transport."""
        made = MemorySocket(local, remote, lambda gone: self._sockets.pop(gone, None))
        self._sockets[made] = None
        return made

    @property
    def sockets(self) -> tuple[MemorySocket, ...]:
        """Those that are open, for tests."""
        return tuple(self._sockets)

    def forget_listener(self, listener: MemoryListener) -> None:
        self._listeners.pop(listener, None)

    def _place(self, name: str) -> Place:
        return (asyncio.get_running_loop(), self._network, self._site, name)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this transport is closed")


def create(options: NoOptions, context: DriverContext) -> Transport:  # noqa: ARG001 - the shape of a driver
    return MemoryTransport(context.network, context.site, context.random)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="memory", summary="Sockets within one process.", options=NoOptions, create=create)
