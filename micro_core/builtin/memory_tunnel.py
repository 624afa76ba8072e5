"""The tunnel role within one process: links between nodes of one test, with as many lanes as a real one has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.spec import (
    Closed,
    Conflict,
    Driver,
    DriverContext,
    Ended,
    LinkLost,
    MicroError,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.spec.transport import Listener
from micro_core.spec.tunnel import Link, LinkDriver, LinkReceiver

SCHEME = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTunnelOptions:
    """Options of the memory tunnel."""

    lanes: int = option(4, "Lanes of a link: 4 as QUIC has, or 1 as TLS over TCP has.")


_doors: dict[tuple[asyncio.AbstractEventLoop, str], Callable[[Link], None]] = {}


class MemoryLink:
    """Implements `Link`: what is written is delivered to the other end in the next turn of the loop."""

    def __init__(self, local: str, remote: str, lanes: int, binding: bytes) -> None:
        self.lane_count = lanes
        self.local = local
        self.remote = remote
        self.driver = SCHEME
        self.channel_binding = binding
        self.other: MemoryLink | None = None
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._buffered = [0] * lanes
        self._error: MicroError | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self._error is not None:
            receiver.link_lost(self._error)

    def write(self, lane: int, data: bytes) -> None:
        if self._error is None:
            self._buffered[lane] += len(data)
            self._loop.call_soon(self._deliver, lane, data)

    def buffered_bytes(self, lane: int) -> int:
        return self._buffered[lane]

    def transport_rtt_s(self) -> float | None:
        return None

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.end(Closed(f"the link to {self.remote} was closed here"), Ended(f"{self.local} closed the link"))

    def cut(self) -> None:
        """Break the link, as a pulled cable does."""
        error = LinkLost("the link was cut")
        self.end(error, error)

    def end(self, here: MicroError, there: MicroError) -> None:
        if self._error is not None:
            return
        self._error = here
        if self._receiver is not None:
            self._receiver.link_lost(here)
        if self.other is not None:
            self.other.end(there, here)

    def _deliver(self, lane: int, data: bytes) -> None:
        self._buffered[lane] -= len(data)
        if self.other is not None and self.other._error is None:
            self.other.receive(lane, data)
        if self._receiver is not None and self._error is None:
            self._receiver.lane_writable(lane)

    def receive(self, lane: int, data: bytes) -> None:
        if self._receiver is None:
            self._early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)


class MemoryListener:
    """Implements `Listener`."""

    def __init__(self, address: str, place: str) -> None:
        self.address = address
        self._place = place
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        _doors.pop((self._loop, self._place), None)


class MemoryTunnel:
    """Implements `LinkDriver`. Addresses are any words, the same in the whole process and loop."""

    scheme = SCHEME

    def __init__(self, options: MemoryTunnelOptions, context: DriverContext) -> None:
        self._lanes = options.lanes
        self._random = context.random
        self._name = context.node_id
        self.links: list[MemoryLink] = []
        self._listeners: list[MemoryListener] = []

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        for link in self.links:
            await link.close()

    async def dial(self, address: str, *, timeout_s: float) -> Link:  # noqa: ARG002 - nothing takes time here
        place = address.removeprefix("memory://")
        door = _doors.get((asyncio.get_running_loop(), place))
        if door is None:
            raise Unreachable(f"nobody listens at memory://{place}", hint="start the other node first")
        binding = self._random.getrandbits(256).to_bytes(32, "big")
        here = MemoryLink(f"memory://{self._name}", f"memory://{place}", self._lanes, binding)
        there = MemoryLink(f"memory://{place}", f"memory://{self._name}", self._lanes, binding)
        here.other, there.other = there, here
        self.links.append(here)
        door(there)
        return here

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        place = address.removeprefix("memory://") or self._name
        key = (asyncio.get_running_loop(), place)
        if key in _doors:
            raise Conflict(f"memory://{place} is taken")
        _doors[key] = accept
        listener = MemoryListener(f"memory://{place}", place)
        self._listeners.append(listener)
        return listener


def create(options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
    return MemoryTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    return Driver(name="memory", summary="Links within one process.", options=MemoryTunnelOptions, create=create)
