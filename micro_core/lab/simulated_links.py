"""The simulated links of the lab, with delay, jitter, loss and limited bandwidth. They can be cut and repaired.

A link has ordered lanes, as a tunnel driver provides them. Lost packets are sent again, so that loss appears as delay of
one lane. The lanes of one direction share its bandwidth. If a link is cut, the data in transit is kept. It arrives when
the cut is repaired, like a retransmission, unless the tunnel has closed the link before.
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
LOW_WATER_BYTES = 16 * 1024
"""`lane_writable` is called when the unsent bytes of a lane fall to this."""
PACKET_BYTES = 1_200
"""Number of bytes that are lost together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The properties of one direction of a link."""

    delay_s: float = 0.005
    """One-way delay."""
    jitter_s: float = 0.0
    """Maximum random addition to the delay, uniformly distributed."""
    loss: float = 0.0
    """Share of packets that are lost and sent again, 0 to 1."""
    bytes_per_s: float | None = None
    """Bandwidth. None means unlimited."""


class SimulatedLinks:
    """All links of a lab: the conditions of each direction, and where they are cut or blocked."""

    def __init__(self, random: Random, conditions: Conditions | None = None) -> None:
        self.random = random
        self.default_conditions = conditions or Conditions()
        self.bytes_carried = 0
        self._conditions: dict[tuple[str, str], Conditions] = {}
        self._cut: set[tuple[str, str]] = set()
        self._blocked: set[tuple[str, str, str]] = set()
        """(scheme, source, target): directions in which one driver is blocked, as by a firewall."""
        self._listeners: dict[tuple[str, str], LabListener] = {}
        self._links: dict[LabLink, None] = {}

    # ------------------------------------------------------------------ conditions

    def set(self, one: str, other: str, conditions: Conditions) -> None:
        """Set the conditions of both directions between two nodes. Data in transit is not affected."""
        self._conditions[one, other] = self._conditions[other, one] = conditions

    def conditions(self, source: str, target: str) -> Conditions:
        """Return the conditions from `source` to `target`."""
        return self._conditions.get((source, target), self.default_conditions)

    def cut(self, source: str, target: str) -> None:
        """Stop all data from `source` to `target`."""
        self._cut.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Undo `cut`. The retained data arrives late."""
        self._cut.discard((source, target))
        self._resume(source, target)

    def block(self, scheme: str, source: str, target: str) -> None:
        """Stop the data of one driver from `source` to `target`."""
        self._blocked.add((scheme, source, target))

    def unblock(self, scheme: str, source: str, target: str) -> None:
        """Undo `block`. The retained data arrives late."""
        self._blocked.discard((scheme, source, target))
        self._resume(source, target)

    def is_cut(self, source: str, target: str, scheme: str = SCHEME) -> bool:
        """Return whether data of a driver cannot pass from `source` to `target`."""
        return (source, target) in self._cut or (scheme, source, target) in self._blocked

    def _resume(self, source: str, target: str) -> None:
        for link in [*self._links]:
            if (link.source, link.target) == (source, target) and not self.is_cut(source, target, link.driver):
                link.resume()

    def reset(self, one: str, other: str) -> None:
        """Break every link between two nodes, at both ends at once."""
        for link in [*self._links]:
            if {link.source, link.target} == {one, other}:
                link.fail(LinkLost("the link was reset"))

    def disconnect_silently(self, node: str) -> None:
        """Disconnect a crashed node: its links send nothing any more, and data sent to it is lost."""
        for link in [*self._links]:
            if link.source == node:
                if link.other is not None:
                    link.other.other = None
                link.other = None
                self.forget(link)

    # --------------------------------------------------------------------- drivers

    def driver(self, node: str, scheme: str = SCHEME) -> LabTunnel:
        """Return a link driver for a node. Drivers with different schemes use the same conditions."""
        return LabTunnel(self, node, scheme)

    def open(self, scheme: str, node: str, accept: Callable[[Link], None]) -> LabListener:
        """Open the listener of a node. Raises Conflict if it is open already."""
        if (scheme, node) in self._listeners:
            raise Conflict(f"cannot listen at {scheme}://{node}: address already in use")
        listener = self._listeners[scheme, node] = LabListener(self, scheme, node, accept)
        return listener

    def close(self, scheme: str, node: str) -> None:
        """Close the listener of a node if it is open."""
        self._listeners.pop((scheme, node), None)

    def connect(self, scheme: str, source: str, target: str) -> tuple[LabLink, LabLink, Callable[[Link], None]]:
        """Create a link. Returns its ends at `source` and `target`, and the function that accepts the latter.

        Raises Unreachable if the target has no listener.
        """
        listener = self._listeners.get((scheme, target))
        if listener is None:
            raise Unreachable(f"cannot connect to {scheme}://{target}: no listener")
        binding = self.random.getrandbits(256).to_bytes(32, "big")
        near = LabLink(self, scheme, source, target, binding)
        far = LabLink(self, scheme, target, source, binding)
        near.other, far.other = far, near
        self._links[near] = self._links[far] = None
        return near, far, listener.accept

    def forget(self, link: LabLink) -> None:
        """Remove one end of a link."""
        self._links.pop(link, None)


class LabTunnel:
    """Implements `LinkDriver` for one node over simulated links."""

    def __init__(self, links: SimulatedLinks, node: str, scheme: str) -> None:
        self.scheme = scheme
        self._links = links
        self._node = node

    async def start(self) -> None:
        """Do nothing: the driver has no resources."""

    async def close(self) -> None:
        """Close the listener."""
        self._links.close(self.scheme, self._node)

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Open a link, which takes one round trip.

        Raises Unreachable: after the round trip if the target has no listener, after `timeout_s` if the link is cut.
        """
        target, links, scheme = address, self._links, self.scheme
        if links.is_cut(self._node, target, scheme) or links.is_cut(target, self._node, scheme):
            await asyncio.sleep(timeout_s)
            raise Unreachable(f"no answer from {scheme}://{target} within {timeout_s:.3g} s")
        outbound, inbound = links.conditions(self._node, target), links.conditions(target, self._node)
        await asyncio.sleep(outbound.delay_s + inbound.delay_s)
        near, far, accept = links.connect(scheme, self._node, target)
        accept(far)
        return near

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:  # noqa: ARG002 - the node's name is its address
        """Accept links to this node. Raises Conflict if it listens already."""
        return self._links.open(self.scheme, self._node, accept)


class LabListener:
    """Implements `Listener`."""

    def __init__(self, links: SimulatedLinks, scheme: str, node: str, accept: Callable[[Link], None]) -> None:
        self.address = f"{scheme}://{node}"
        self.accept = accept
        self._links = links
        self._scheme = scheme
        self._node = node

    async def close(self) -> None:
        """Stop accepting links."""
        self._links.close(self._scheme, self._node)


class LabLink:
    """Implements `Link`: one end of a simulated link. Written data is delivered to the other end."""

    lane_count = LANES

    def __init__(self, links: SimulatedLinks, driver: str, source: str, target: str, binding: bytes) -> None:
        self.driver = driver
        self.source = source
        self.target = target
        self.local = f"{driver}://{source}"
        self.remote = f"{driver}://{target}"
        self.channel_binding = binding
        self.other: LabLink | None = None
        """The other end, None if it is disconnected."""
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._receiver: LinkReceiver | None = None
        self._received_early: list[tuple[int, bytes]] = []
        """Data that arrived before `start`."""
        self._in_transit: tuple[deque[tuple[float, bytes]], ...] = tuple(deque() for _ in range(LANES))
        self._timers: list[asyncio.TimerHandle | None] = [None] * LANES
        self._unsent = [0] * LANES
        self._is_above = [False] * LANES
        self._free_at = 0.0
        """When the bandwidth is available for the next data."""
        self._error: MicroError | None = None

    # ------------------------------------------------------------------------ Link

    def start(self, receiver: LinkReceiver) -> None:
        """Deliver received data and the end of the link to `receiver`."""
        self._receiver = receiver
        early, self._received_early = self._received_early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self._error is not None:
            receiver.link_lost(self._error)

    def write(self, lane: int, data: bytes) -> None:
        """Send data on a lane. Data written after the end of the link is dropped."""
        if self._error is not None or not data:
            return
        conditions, now = self._links.conditions(self.source, self.target), self._loop.time()
        self._links.bytes_carried += len(data)
        sent_at = now
        if conditions.bytes_per_s is not None:
            sent_at = self._free_at = max(now, self._free_at) + len(data) / conditions.bytes_per_s
            self._unsent[lane] += len(data)
            self._is_above[lane] = self._is_above[lane] or self._unsent[lane] > LOW_WATER_BYTES
            self._loop.call_at(sent_at, self._sent, lane, len(data))
        queue = self._in_transit[lane]
        arrives_at = sent_at + self._transit_time_s(conditions, len(data))
        if queue:
            # Lanes are ordered: data that follows a lost packet waits for it.
            arrives_at = max(arrives_at, queue[-1][0])
        queue.append((arrives_at, data))
        if self._timers[lane] is None:
            self._timers[lane] = self._loop.call_at(arrives_at, self._arrive, lane)

    def buffered_bytes(self, lane: int) -> int:
        """Return the number of bytes of a lane that wait for bandwidth."""
        return self._unsent[lane]

    def transport_rtt_s(self) -> float | None:
        """Return None: the driver does not measure the round-trip time."""
        return None

    async def close(self) -> None:
        """Close the link. Data in transit still arrives before the other end sees the end."""
        if self._error is None:
            self._end(Closed(f"the link to {self.remote} was closed at this end"), drop=False)
            last_arrival = max((queue[-1][0] for queue in self._in_transit if queue), default=self._loop.time())
            delay_s = self._links.conditions(self.source, self.target).delay_s
            self._loop.call_at(max(last_arrival, self._loop.time() + delay_s), self._deliver_end)

    # ---------------------------------------------------------------------- faults

    def fail(self, error: MicroError) -> None:
        """End this end of the link with `error`. Data in transit is lost."""
        self._end(error, drop=True)

    def resume(self) -> None:
        """Retransmit the data that was retained during a cut."""
        conditions = self._links.conditions(self.source, self.target)
        for lane, queue in enumerate(self._in_transit):
            if queue and self._timers[lane] is None:
                arrives_at = self._loop.time() + self._transit_time_s(conditions, PACKET_BYTES)
                self._timers[lane] = self._loop.call_at(arrives_at, self._arrive, lane)

    # ---------------------------------------------------------------------- internals

    def _transit_time_s(self, conditions: Conditions, size: int) -> float:
        time_s = conditions.delay_s
        if conditions.jitter_s:
            time_s += self._links.random.uniform(0.0, conditions.jitter_s)
        if conditions.loss:
            packets = -(-size // PACKET_BYTES)
            while self._links.random.random() < 1 - (1 - conditions.loss) ** packets:
                # A loss is detected and repaired after about three one-way delays (RFC 9002: 1.5 round trips).
                time_s += 3 * conditions.delay_s + conditions.jitter_s
                packets = 1
        return time_s

    def _arrive(self, lane: int) -> None:
        self._timers[lane] = None
        queue, now = self._in_transit[lane], self._loop.time()
        if self._links.is_cut(self.source, self.target, self.driver):
            # `resume` sets a new timer.
            return
        other = self.other
        while queue and queue[0][0] <= now:
            _, data = queue.popleft()
            if other is not None:
                other.receive(lane, data)
        if queue and self._timers[lane] is None:
            self._timers[lane] = self._loop.call_at(queue[0][0], self._arrive, lane)

    def receive(self, lane: int, data: bytes) -> None:
        """Process data that arrived from the other end."""
        if self._error is not None:
            return
        if self._receiver is None:
            self._received_early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    def _sent(self, lane: int, count: int) -> None:
        self._unsent[lane] -= count
        if self._is_above[lane] and self._unsent[lane] <= LOW_WATER_BYTES:
            self._is_above[lane] = False
            if self._receiver is not None and self._error is None:
                self._receiver.lane_writable(lane)

    def _deliver_end(self) -> None:
        if self.other is not None and not self._links.is_cut(self.source, self.target, self.driver):
            self.other.fail(Ended(f"{self.local} closed the link"))
        self._links.forget(self)

    def _end(self, error: MicroError, *, drop: bool) -> None:
        if self._error is not None:
            return
        self._error = error
        if drop:
            for lane, queue in enumerate(self._in_transit):
                queue.clear()
                timer = self._timers[lane]
                if timer is not None:
                    timer.cancel()
            self._links.forget(self)
        if self._receiver is not None:
            self._receiver.link_lost(error)
