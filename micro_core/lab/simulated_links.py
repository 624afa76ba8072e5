"""The wires of the lab: links whose bytes take time, get lost and are sent again, and stop where somebody cut.

A link is what a tunnel driver supplies (ordered lanes), so loss shows as delay: what was lost is sent again, and holds
up its own lane alone. Bandwidth is shared by the lanes of one direction. A cut keeps what is under way; what heals it
delivers that late, as a retransmission would, unless the tunnel has given the link up by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.errors import Closed, Conflict, Ended, LinkLost, MicroError, Unreachable
from micro_core.contract.transport import Listener
from micro_core.contract.tunnel import Link, LinkReceiver

SCHEME = "lab"
LANES = 4
LOW_MARK_BYTES = 16 * 1024
PACKET_BYTES = 1_200
"""Bytes that are lost together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """One direction of a wire."""

    delay_s: float = 0.005
    """One way."""
    jitter_s: float = 0.0
    """Added to the delay, evenly from none to this."""
    loss: float = 0.0
    """Share of packets that have to be sent again."""
    bytes_per_s: float | None = None
    """None: as fast as one likes."""


class Wires:
    """Every wire of a lab: conditions by direction, and what is cut."""

    def __init__(self, random: Random, conditions: Conditions | None = None) -> None:
        self.random = random
        self.usual = conditions or Conditions()
        self.bytes_carried = 0
        self._special: dict[tuple[str, str], Conditions] = {}
        self._cut: set[tuple[str, str]] = set()
        self._blocked: set[tuple[str, str, str]] = set()
        """(scheme, source, target): what a firewall does to one driver."""
        self._doors: dict[tuple[str, str], LabListener] = {}
        self._links: dict[LabLink, None] = {}

    # ------------------------------------------------------------------ conditions

    def set(self, one: str, other: str, conditions: Conditions) -> None:
        """Both directions between two nodes; what is under way keeps its time."""
        self._special[one, other] = self._special[other, one] = conditions

    def conditions(self, source: str, target: str) -> Conditions:
        return self._special.get((source, target), self.usual)

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from `source` to `target` any more."""
        self._cut.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """It passes again, and what was held up arrives late."""
        self._cut.discard((source, target))
        self._go_on(source, target)

    def block(self, scheme: str, source: str, target: str) -> None:
        """Nothing of one driver passes from `source` to `target` any more; what others carry does."""
        self._blocked.add((scheme, source, target))

    def unblock(self, scheme: str, source: str, target: str) -> None:
        """It passes again, and what was held up arrives late."""
        self._blocked.discard((scheme, source, target))
        self._go_on(source, target)

    def is_cut(self, source: str, target: str, scheme: str = SCHEME) -> bool:
        """Whether nothing of this driver passes."""
        return (source, target) in self._cut or (scheme, source, target) in self._blocked

    def _go_on(self, source: str, target: str) -> None:
        for link in [*self._links]:
            if (link.source, link.target) == (source, target) and not self.is_cut(source, target, link.driver):
                link.go_on()

    def reset(self, one: str, other: str) -> None:
        """Break every link between two nodes, at both ends at once."""
        for link in [*self._links]:
            if {link.source, link.target} == {one, other}:
                link.break_off(LinkLost("the link was reset"))

    def silence(self, node: str) -> None:
        """The machine is gone: its ends of links say nothing any more, and what is sent to them reaches nobody."""
        for link in [*self._links]:
            if link.source == node:
                if link.other is not None:
                    link.other.other = None
                link.other = None
                self.forget(link)

    # --------------------------------------------------------------------- drivers

    def driver(self, node: str, scheme: str = SCHEME) -> LabTunnel:
        """A link driver of one node; one with another `scheme` is another driver, over the same wires."""
        return LabTunnel(self, node, scheme)

    def open(self, scheme: str, node: str, accept: Callable[[Link], None]) -> LabListener:
        if (scheme, node) in self._doors:
            raise Conflict(f"somebody listens at {scheme}://{node} already")
        door = self._doors[scheme, node] = LabListener(self, scheme, node, accept)
        return door

    def close(self, scheme: str, node: str) -> None:
        self._doors.pop((scheme, node), None)

    def connect(self, scheme: str, source: str, target: str) -> tuple[LabLink, LabLink, Callable[[Link], None]]:
        """Both ends of a new link, and who takes the far one. Raises Unreachable."""
        door = self._doors.get((scheme, target))
        if door is None:
            raise Unreachable(f"nobody listens at {scheme}://{target}")
        binding = self.random.getrandbits(256).to_bytes(32, "big")
        near = LabLink(self, scheme, source, target, binding)
        far = LabLink(self, scheme, target, source, binding)
        near.other, far.other = far, near
        self._links[near] = self._links[far] = None
        return near, far, door.accept

    def forget(self, link: LabLink) -> None:
        self._links.pop(link, None)


class LabTunnel:
    """Implements `LinkDriver`."""

    def __init__(self, wires: Wires, node: str, scheme: str) -> None:
        self.scheme = scheme
        self._wires = wires
        self._node = node

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        self._wires.close(self.scheme, self._node)

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """One round trip. Raises Unreachable: at once where nobody listens, late where the wire is cut."""
        target, wires, scheme = address, self._wires, self.scheme
        if wires.is_cut(self._node, target, scheme) or wires.is_cut(target, self._node, scheme):
            await asyncio.sleep(timeout_s)
            raise Unreachable(f"no answer from {scheme}://{target} within {timeout_s:.3g} s")
        there, back = wires.conditions(self._node, target), wires.conditions(target, self._node)
        await asyncio.sleep(there.delay_s + back.delay_s)
        near, far, accept = wires.connect(scheme, self._node, target)
        accept(far)
        return near

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:  # noqa: ARG002 - a node has one
        return self._wires.open(self.scheme, self._node, accept)


class LabListener:
    """Implements `Listener`."""

    def __init__(self, wires: Wires, scheme: str, node: str, accept: Callable[[Link], None]) -> None:
        self.address = f"{scheme}://{node}"
        self.accept = accept
        self._wires = wires
        self._scheme = scheme
        self._node = node

    async def close(self) -> None:
        self._wires.close(self._scheme, self._node)


class LabLink:
    """Implements `Link`: one end, which carries what is written here to the other."""

    lane_count = LANES

    def __init__(self, wires: Wires, driver: str, source: str, target: str, binding: bytes) -> None:
        self.driver = driver
        self.source = source
        self.target = target
        self.local = f"{driver}://{source}"
        self.remote = f"{driver}://{target}"
        self.channel_binding = binding
        self.other: LabLink | None = None
        self._wires = wires
        self._loop = asyncio.get_running_loop()
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._under_way: tuple[deque[tuple[float, bytes]], ...] = tuple(deque() for _ in range(LANES))
        self._timers: list[asyncio.TimerHandle | None] = [None] * LANES
        self._unsent = [0] * LANES
        self._is_above = [False] * LANES
        self._free_at = 0.0
        self._error: MicroError | None = None

    # ------------------------------------------------------------------------ Link

    def start(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self._error is not None:
            receiver.link_lost(self._error)

    def write(self, lane: int, data: bytes) -> None:
        if self._error is not None or not data:
            return
        conditions, now = self._wires.conditions(self.source, self.target), self._loop.time()
        self._wires.bytes_carried += len(data)
        leaves_at = now
        if conditions.bytes_per_s is not None:
            leaves_at = self._free_at = max(now, self._free_at) + len(data) / conditions.bytes_per_s
            self._unsent[lane] += len(data)
            self._is_above[lane] = self._is_above[lane] or self._unsent[lane] > LOW_MARK_BYTES
            self._loop.call_at(leaves_at, self._left, lane, len(data))
        queue = self._under_way[lane]
        arrives_at = leaves_at + self._time_of_way(conditions, len(data))
        if queue:
            # In order within a lane: who comes after something that was lost waits for it.
            arrives_at = max(arrives_at, queue[-1][0])
        queue.append((arrives_at, data))
        if self._timers[lane] is None:
            self._timers[lane] = self._loop.call_at(arrives_at, self._arrive, lane)

    def buffered_bytes(self, lane: int) -> int:
        return self._unsent[lane]

    def transport_rtt_s(self) -> float | None:
        return None

    async def close(self) -> None:
        """What is under way still arrives, and then the end of it."""
        if self._error is None:
            self._end(Closed(f"the link to {self.remote} was closed here"), drop=False)
            last = max((queue[-1][0] for queue in self._under_way if queue), default=self._loop.time())
            delay_s = self._wires.conditions(self.source, self.target).delay_s
            self._loop.call_at(max(last, self._loop.time() + delay_s), self._tell_end)

    # ---------------------------------------------------------------------- faults

    def break_off(self, error: MicroError) -> None:
        """End this end now, for `error`; what is under way is lost."""
        self._end(error, drop=True)

    def go_on(self) -> None:
        """The cut has healed: what waited is sent again."""
        conditions = self._wires.conditions(self.source, self.target)
        for lane, queue in enumerate(self._under_way):
            if queue and self._timers[lane] is None:
                again_at = self._loop.time() + self._time_of_way(conditions, PACKET_BYTES)
                self._timers[lane] = self._loop.call_at(again_at, self._arrive, lane)

    # ---------------------------------------------------------------------- inside

    def _time_of_way(self, conditions: Conditions, size: int) -> float:
        time_s = conditions.delay_s
        if conditions.jitter_s:
            time_s += self._wires.random.uniform(0.0, conditions.jitter_s)
        if conditions.loss:
            packets = -(-size // PACKET_BYTES)
            while self._wires.random.random() < 1 - (1 - conditions.loss) ** packets:
                # Noticed and sent again about three delays later (RFC 9002: a round trip and a half).
                time_s += 3 * conditions.delay_s + conditions.jitter_s
                packets = 1
        return time_s

    def _arrive(self, lane: int) -> None:
        self._timers[lane] = None
        queue, now = self._under_way[lane], self._loop.time()
        if self._wires.is_cut(self.source, self.target, self.driver):
            # `go_on` sets a new timer.
            return
        other = self.other
        while queue and queue[0][0] <= now:
            _, data = queue.popleft()
            if other is not None:
                other.receive(lane, data)
        if queue and self._timers[lane] is None:
            self._timers[lane] = self._loop.call_at(queue[0][0], self._arrive, lane)

    def receive(self, lane: int, data: bytes) -> None:
        """Bytes arrived from the other end."""
        if self._error is not None:
            return
        if self._receiver is None:
            self._early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    def _left(self, lane: int, count: int) -> None:
        self._unsent[lane] -= count
        if self._is_above[lane] and self._unsent[lane] <= LOW_MARK_BYTES:
            self._is_above[lane] = False
            if self._receiver is not None and self._error is None:
                self._receiver.lane_writable(lane)

    def _tell_end(self) -> None:
        if self.other is not None and not self._wires.is_cut(self.source, self.target, self.driver):
            self.other.break_off(Ended(f"{self.local} closed the link"))
        self._wires.forget(self)

    def _end(self, error: MicroError, *, drop: bool) -> None:
        if self._error is not None:
            return
        self._error = error
        if drop:
            for lane, queue in enumerate(self._under_way):
                queue.clear()
                timer = self._timers[lane]
                if timer is not None:
                    timer.cancel()
            self._wires.forget(self)
        if self._receiver is not None:
            self._receiver.link_lost(error)
