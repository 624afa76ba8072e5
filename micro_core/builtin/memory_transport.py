"""The transport role within one process: sockets with real backpressure, for tests and for services side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from micro_core.spec import (
    Closed,
    Conflict,
    Driver,
    DriverContext,
    Ended,
    MicroError,
    NoOptions,
    Socket,
    SocketReceiver,
    Transport,
    Unreachable,
    hookimpl,
)
from micro_core.spec.clock import Random
from micro_core.spec.transport import Listener

SCHEME = "memory"
HIGH_WATER_BYTES = 1024 * 1024
LOW_WATER_BYTES = 256 * 1024

Place = tuple[asyncio.AbstractEventLoop, str, str, str]
"""(loop, network, site, name)"""

_doors: dict[Place, Callable[[Socket], None]] = {}


class MemorySocket:
    """Implements `Socket`. What waits here was written by the other end and not yet read on this one."""

    def __init__(self, local: str, remote: str) -> None:
        self.local = local
        self.remote = remote
        self.other: MemorySocket | None = None
        self._loop = asyncio.get_running_loop()
        self._receiver: SocketReceiver | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_reading = True
        self._has_paused_writer = False
        self._error: MicroError | None = None
        self._is_scheduled = False
        self._is_told = False

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        if self.other is not None and self.other._has_paused_writer:
            receiver.pause_writing()
        self._schedule()

    def write(self, data: bytes) -> None:
        if self._error is None and self.other is not None:
            self.other.arrive(data)

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._schedule()

    async def close(self) -> None:
        if self._error is None:
            self._error = Closed(f"the connection to {self.remote} was closed here")
            if self.other is not None:
                self.other.end(Ended(f"{self.local} closed the connection"))
            self._schedule()
            await asyncio.sleep(0)

    def arrive(self, data: bytes) -> None:
        """The other end wrote."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and not self._has_paused_writer:
            self._has_paused_writer = True
            if self.other is not None and self.other._receiver is not None:
                self.other._receiver.pause_writing()
        self._schedule()

    def end(self, error: MicroError) -> None:
        """The other end is gone; what it wrote before is still delivered."""
        if self._error is None:
            self._error = error
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
        is_closed = isinstance(self._error, Closed)
        while self._waiting and self._is_reading and not is_closed:
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._relieve_writer()
            receiver.data_received(data)
        if self._error is not None and not self._is_told and (not self._waiting or is_closed):
            self._is_told = True
            self._waiting.clear()
            receiver.socket_lost(self._error)

    def _relieve_writer(self) -> None:
        if self._has_paused_writer and self._waiting_bytes < LOW_WATER_BYTES:
            self._has_paused_writer = False
            if self.other is not None and self.other._receiver is not None:
                self.other._receiver.resume_writing()


class MemoryListener:
    """Implements `Listener`."""

    def __init__(self, address: str, place: Place) -> None:
        self.address = address
        self._place = place

    async def close(self) -> None:
        _doors.pop(self._place, None)


class MemoryTransport:
    """Implements `Transport`; those of one process, loop, network and site meet."""

    scheme = SCHEME

    def __init__(self, network: str, site: str, random: Random) -> None:
        self._network = network
        self._site = site
        self._random = random
        self._sockets: list[MemorySocket] = []
        self._listeners: list[MemoryListener] = []

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        for socket in self._sockets:
            await socket.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:  # noqa: ARG002 - nothing takes time here
        name = address.removeprefix("memory://")
        door = _doors.get(self._place(name))
        if door is None:
            raise Unreachable(f"nobody listens at memory://{name}", hint="is it running in this process?")
        here = MemorySocket(f"memory://dialler-{self._random.getrandbits(32):08x}", f"memory://{name}")
        there = MemorySocket(here.remote, here.local)
        here.other, there.other = there, here
        self._sockets.append(here)
        door(there)
        return here

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        name = address.removeprefix("memory://") or f"{self._random.getrandbits(48):012x}"
        place = self._place(name)
        if place in _doors:
            raise Conflict(f"memory://{name} is taken", hint="choose another name")
        _doors[place] = accept
        listener = MemoryListener(f"memory://{name}", place)
        self._listeners.append(listener)
        return listener

    def _place(self, name: str) -> Place:
        return (asyncio.get_running_loop(), self._network, self._site, name)


def create(options: NoOptions, context: DriverContext) -> Transport:  # noqa: ARG001 - the shape of a driver
    return MemoryTransport(context.network, context.site, context.random)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="memory", summary="Sockets within one process.", options=NoOptions, create=create)
