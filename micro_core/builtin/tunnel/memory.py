"""The driver `tunnel:memory`: links within one process, for tests. They have four lanes or one, as other drivers have."""

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
    """Options of `tunnel:memory`."""

    lanes: int = option(4, "Lanes of a link: 4 as with QUIC, or 1 as with TLS over TCP.")


LOW_WATER_BYTES = 16 * 1024
"""`lane_writable` is called when the buffer of a lane has shrunk to this size."""

_open_listeners: dict[tuple[asyncio.AbstractEventLoop, str], MemoryListener] = {}


class MemoryLink:
    """Implements `Link`. Data is delivered to the other end in the next loop iteration.

    For tests, `hold` and `release` simulate a network that is blocked for a while, and `cut` a pulled cable.
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
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self._error is not None:
            receiver.link_lost(self._error)

    def write(self, lane: int, data: bytes) -> None:
        """Queue bytes without blocking. Ignored after the end of the link."""
        if self._error is not None or self._closing is not None:
            return
        self._unsent.append((lane, data))
        self._buffered[lane] += len(data)
        self._is_above[lane] = self._is_above[lane] or self._buffered[lane] > LOW_WATER_BYTES
        self._schedule()

    def buffered_bytes(self, lane: int) -> int:
        """Return the number of bytes that are not delivered yet."""
        return self._buffered[lane]

    def transport_rtt_s(self) -> float | None:
        """Return None: memory has no protocol that measures."""
        return None

    async def close(self) -> None:
        """Deliver queued data for at most CLOSE_TIMEOUT_S, then close. Safe to call twice."""
        if self._error is not None:
            return
        if self._closing is None:
            self._closing = self._loop.create_future()
            if not self._unsent:
                self._closing.set_result(None)
        try:
            await asyncio.wait([self._closing], timeout=CLOSE_TIMEOUT_S)
        finally:
            self.end(
                Closed(f"the link to {self.remote} was closed at this end"), Ended(f"{self.local} closed the link")
            )

    # -------------------------------------------------------------- for tests

    def hold(self) -> None:
        """Deliver nothing until `release`. Data stays in the buffer."""
        self._is_held = True

    def release(self) -> None:
        """Deliver data again."""
        self._is_held = False
        self._schedule()

    def cut(self) -> None:
        """Break the link, like a pulled cable. Queued data is lost."""
        error = LinkLost("the link was cut")
        self.end(error, error)

    # ---------------------------------------------- called by the other end

    def receive(self, lane: int, data: bytes) -> None:
        """Deliver data of the other end, or keep it until `start`."""
        if self._error is not None:
            return
        if self._receiver is None:
            self._early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    def end(self, near_error: MicroError, far_error: MicroError) -> None:
        """End both ends with their errors."""
        if self._error is not None:
            return
        self._error = near_error
        self._unsent.clear()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        if self._receiver is not None:
            self._receiver.link_lost(near_error)
        if self.other is not None:
            self.other.end(far_error, near_error)

    # ---------------------------------------------------------------- private

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_held and self._unsent:
            self._is_scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        # Data written in the meantime is delivered in the next loop iteration, so that two ends that answer each other do
        # not block the loop.
        for _ in range(len(self._unsent)):
            if self._is_held or not self._unsent:
                break
            lane, data = self._unsent.popleft()
            self._buffered[lane] -= len(data)
            if self.other is not None:
                self.other.receive(lane, data)
        self._report_writable()
        self._schedule()
        if not self._unsent and self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def _report_writable(self) -> None:
        for lane in range(self.lane_count):
            if self._is_above[lane] and self._buffered[lane] <= LOW_WATER_BYTES:
                self._is_above[lane] = False
                if self._receiver is not None and self._error is None:
                    self._receiver.lane_writable(lane)


class MemoryListener:
    """Implements `Listener`."""

    def __init__(self, address: str, name: str, driver: MemoryTunnel, accept: Callable[[Link], None]) -> None:
        self.address = address
        self.driver = driver
        self.accept = accept
        self._key = (asyncio.get_running_loop(), name)

    async def close(self) -> None:
        """Stop accepting. Safe to call twice, also if the name has another listener by then."""
        if _open_listeners.get(self._key) is self:
            del _open_listeners[self._key]


class MemoryTunnel:
    """Implements `LinkDriver`. Addresses are arbitrary names, shared by the whole process and event loop.

    Nodes of different networks share the names, as they share host names. The handshake refuses nodes of other networks.

    Raises:
        OptionError: The number of lanes is invalid.
    """

    scheme = SCHEME

    def __init__(self, options: MemoryTunnelOptions, context: DriverContext) -> None:
        if options.lanes not in (1, len(Priority)):
            raise OptionError(f"invalid number of lanes {options.lanes}: neither 1 nor {len(Priority)}")
        self._lanes = options.lanes
        self._random = context.random
        self._name = context.node_id
        self.links: list[MemoryLink] = []
        """The links that this object has dialled, oldest first, including closed ones."""
        self.accepted_links: list[MemoryLink] = []
        """The links that this object has accepted, oldest first, including closed ones."""
        self._listeners: list[MemoryListener] = []

    async def start(self) -> None:
        """Do nothing: there is nothing to prepare."""

    async def close(self) -> None:
        """Close all listeners and links. Safe to call twice."""
        for listener in self._listeners:
            await listener.close()
        for link in [*self.links, *self.accepted_links]:
            await link.close()

    async def dial(self, address: str, *, timeout_s: float) -> Link:  # noqa: ARG002 - never waits
        """Connect to a listener. The link has the smaller number of lanes of both ends.

        Raises:
            Unreachable: The address has no listener.
        """
        name = address.removeprefix("memory://")
        listener = _open_listeners.get((asyncio.get_running_loop(), name))
        if listener is None:
            raise Unreachable(f"no listener at memory://{name}", hint="start the other node first")
        lanes = min(self._lanes, listener.driver._lanes)
        binding = self._random.getrandbits(256).to_bytes(32, "big")
        near = MemoryLink(f"memory://{self._name}", f"memory://{name}", lanes, binding)
        far = MemoryLink(f"memory://{name}", f"memory://{self._name}", lanes, binding)
        near.other, far.other = far, near
        self.links.append(near)
        listener.driver.accepted_links.append(far)
        listener.accept(far)
        return near

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen at a name; an empty address means the id of the node.

        Raises:
            Conflict: The name has a listener already.
        """
        name = address.removeprefix("memory://") or self._name
        if (asyncio.get_running_loop(), name) in _open_listeners:
            raise Conflict(f"memory://{name} is in use", hint="choose another name")
        listener = MemoryListener(f"memory://{name}", name, self, accept)
        _open_listeners[asyncio.get_running_loop(), name] = listener
        self._listeners.append(listener)
        return listener


def create(options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
    """Return the driver. Raises OptionError."""
    return MemoryTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    """Return the description of the driver."""
    return Driver(
        name="memory",
        summary="Links within one process.",
        options=MemoryTunnelOptions,
        create=create,
    )
