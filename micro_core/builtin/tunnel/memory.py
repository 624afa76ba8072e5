"""The tunnel role within one process: links between nodes of one test, with as many lanes as a real one has."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.contract import (
    Closed,
    Conflict,
    Driver,
    DriverContext,
    Ended,
    LinkLost,
    MicroError,
    OptionError,
    Priority,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.contract.transport import Listener
from micro_core.contract.tunnel import Link, LinkDriver, LinkReceiver

SCHEME = "memory"
CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTunnelOptions:
    """Options of the memory tunnel."""

    lanes: int = option(4, "Lanes of a link: 4 as QUIC has, or 1 as TLS over TCP has.")


LOW_MARK_BYTES = 16 * 1024
"""`lane_writable` is told when a lane holds no more than this, after having held more."""

_doors: dict[tuple[asyncio.AbstractEventLoop, str], MemoryListener] = {}


class MemoryLink:
    """Implements `Link`: what is written is delivered to the other end in the next turn of the loop.

    For tests: `hold` and `release` are a network that takes nothing for a while, `cut` is a pulled cable.
    """

    def __init__(self, local: str, remote: str, lanes: int, binding: bytes) -> None:
        self.lane_count = lanes
        self.local = local
        self.remote = remote
        self.driver = SCHEME
        self.channel_binding = binding
        self.other: MemoryLink | None = None
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._buffered = [0] * lanes
        self._is_above = [False] * lanes
        self._is_held = False
        self._is_scheduled = False
        self._error: MicroError | None = None
        self._closing: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------------- Link

    def start(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self._error is not None:
            receiver.link_lost(self._error)

    def write(self, lane: int, data: bytes) -> None:
        if self._error is not None or self._closing is not None:
            return
        self._unsent.append((lane, data))
        self._buffered[lane] += len(data)
        self._is_above[lane] = self._is_above[lane] or self._buffered[lane] > LOW_MARK_BYTES
        self._schedule()

    def buffered_bytes(self, lane: int) -> int:
        return self._buffered[lane]

    def transport_rtt_s(self) -> float | None:
        return None

    async def close(self) -> None:
        if self._error is not None:
            return
        if self._closing is None:
            self._closing = self._loop.create_future()
            if not self._unsent:
                self._closing.set_result(None)
        try:
            await asyncio.wait([self._closing], timeout=CLOSE_TIMEOUT_S)
        finally:
            self.end(Closed(f"the link to {self.remote} was closed here"), Ended(f"{self.local} closed the link"))

    # -------------------------------------------------------------- for tests

    def hold(self) -> None:
        """Take nothing from now on: what is written stays in `buffered_bytes`."""
        self._is_held = True

    def release(self) -> None:
        """Take everything again."""
        self._is_held = False
        self._schedule()

    def cut(self) -> None:
        """Break the link, as a pulled cable does: what is under way is lost."""
        error = LinkLost("the link was cut")
        self.end(error, error)

    # ----------------------------------------------------------------- inside

    def receive(self, lane: int, data: bytes) -> None:
        """The other end wrote."""
        if self._error is not None:
            return
        if self._receiver is None:
            self._early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    def end(self, here: MicroError, there: MicroError) -> None:
        """End both ends, for these reasons."""
        if self._error is not None:
            return
        self._error = here
        self._unsent.clear()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        if self._receiver is not None:
            self._receiver.link_lost(here)
        if self.other is not None:
            self.other.end(there, here)

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_held and self._unsent:
            self._is_scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        # What is written meanwhile goes in the next turn: two ends that answer each other must not hold up the loop.
        for _ in range(len(self._unsent)):
            if self._is_held or not self._unsent:
                break
            lane, data = self._unsent.popleft()
            self._buffered[lane] -= len(data)
            if self.other is not None:
                self.other.receive(lane, data)
        self._tell_writable()
        self._schedule()
        if not self._unsent and self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def _tell_writable(self) -> None:
        for lane in range(self.lane_count):
            if self._is_above[lane] and self._buffered[lane] <= LOW_MARK_BYTES:
                self._is_above[lane] = False
                if self._receiver is not None and self._error is None:
                    self._receiver.lane_writable(lane)


class MemoryListener:
    """Implements `Listener`."""

    def __init__(self, address: str, place: str, driver: MemoryTunnel, accept: Callable[[Link], None]) -> None:
        self.address = address
        self.driver = driver
        self.accept = accept
        self._place = (asyncio.get_running_loop(), place)

    async def close(self) -> None:
        # The place may be another's by now.
        if _doors.get(self._place) is self:
            del _doors[self._place]


class MemoryTunnel:
    """Implements `LinkDriver`. Addresses are any words, the same in the whole process and loop.

    They are not kept apart by network, as host names are not: it is the handshake that refuses strangers.
    """

    scheme = SCHEME

    def __init__(self, options: MemoryTunnelOptions, context: DriverContext) -> None:
        if options.lanes not in (1, len(Priority)):
            raise OptionError(f"lanes = {options.lanes} is neither 1 nor {len(Priority)}")
        self._lanes = options.lanes
        self._random = context.random
        self._name = context.node_id
        self.links: list[MemoryLink] = []
        """Those dialled here, oldest first; ended ones stay, so that a test finds its own."""
        self.accepted_links: list[MemoryLink] = []
        self._listeners: list[MemoryListener] = []

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        for link in [*self.links, *self.accepted_links]:
            await link.close()

    async def dial(self, address: str, *, timeout_s: float) -> Link:  # noqa: ARG002 - nothing takes time here
        """As `LinkDriver.dial`. Both ends have the lanes of the end that has fewer."""
        place = address.removeprefix("memory://")
        door = _doors.get((asyncio.get_running_loop(), place))
        if door is None:
            raise Unreachable(f"nobody listens at memory://{place}", hint="start the other node first")
        lanes = min(self._lanes, door.driver._lanes)
        binding = self._random.getrandbits(256).to_bytes(32, "big")
        here = MemoryLink(f"memory://{self._name}", f"memory://{place}", lanes, binding)
        there = MemoryLink(f"memory://{place}", f"memory://{self._name}", lanes, binding)
        here.other, there.other = there, here
        self.links.append(here)
        door.driver.accepted_links.append(there)
        door.accept(there)
        return here

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """As `LinkDriver.listen`; empty means the node's own id."""
        place = address.removeprefix("memory://") or self._name
        if (asyncio.get_running_loop(), place) in _doors:
            raise Conflict(f"memory://{place} is taken", hint="choose another name")
        listener = MemoryListener(f"memory://{place}", place, self, accept)
        _doors[asyncio.get_running_loop(), place] = listener
        self._listeners.append(listener)
        return listener


def create(options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
    return MemoryTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    return Driver(
        name="memory",
        summary="Links within one process.",
        options=MemoryTunnelOptions,
        create=create,
    )
