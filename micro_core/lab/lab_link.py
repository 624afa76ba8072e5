"""One end of a simulated link, with ordered lanes as a tunnel driver provides them.

Lost packets are sent again, so that loss appears as delay of one lane. The lanes of one direction share its bandwidth.
Received data waits until the process of the receiver has time for it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.errors import Closed, Ended, MicroError
from micro_core.contract.tunnel import LinkReceiver
from micro_core.lab.paths import Conditions, Paths
from micro_core.lab.process import PROCESS

LANES = 4
LOW_WATER_BYTES = 16 * 1024
"""`lane_writable` is called when the unsent bytes of a lane fall to this."""
PACKET_BYTES = 1_200
"""Number of bytes that are lost together."""
ACKNOWLEDGEMENT_BYTES = 40
SAME_PACKET_S = 1e-6
"""Time between data and the acknowledgement in the same packet, so that their order is certain."""
MAX_WATCHES = 16
"""Acknowledgements that are watched at a time. Older ones are forgotten."""
SILENCE_S = 0.3
SILENCE_ROUND_TRIPS = 3
"""Data that is unanswered for this number of round trips, and for this time, is reported as by the QUIC driver."""


@dataclass(slots=True)
class LinkEnvironment:
    """What all links of a lab share."""

    paths: Paths
    random: Random
    forget: Callable[[LabLink], None]
    """Called with each end of a link that has ended."""
    bytes_carried: int = 0


END_RETRY_S = 0.001
"""Delay until the end of a link is delivered again while data before it is still under way."""

FALLBACK_ROUND_TRIPS = 7
FALLBACK_S = 0.1
"""Three probe timeouts of QUIC, each with the round trip of its probe, take this number of round trips and seconds."""


class LabLink:
    """Implements `Link`: one end of a simulated link. Written data is delivered to the other end.

    `context` is that of the process at this end.
    """

    lane_count = LANES

    def __init__(
        self,
        environment: LinkEnvironment,
        driver: str,
        ends: tuple[str, str],
        addresses: tuple[str, str],
        *,
        binding: bytes,
        context: contextvars.Context,
    ) -> None:
        self.driver = driver
        self.source, self.target = ends
        self.local, self.remote = addresses
        self.channel_binding = binding
        self.context = context
        self.process = context.get(PROCESS)
        self.other: LabLink | None = None
        """The other end, None if it is disconnected."""
        self._environment = environment
        self._paths = environment.paths
        self._loop = asyncio.get_running_loop()
        self._receiver: LinkReceiver | None = None
        self._received_early: list[tuple[int, bytes]] = []
        """Data that arrived before `start`."""
        self._in_transit: tuple[deque[tuple[float, float, bytes]], ...] = tuple(deque() for _ in range(LANES))
        """Per lane: when data arrives, when it was written, the data."""
        self._timers: list[asyncio.TimerHandle | None] = [None] * LANES
        self._unsent = [0] * LANES
        self._is_above = [False] * LANES
        self._free_at = 0.0
        """When the bandwidth is available for the next data."""
        self._datagram_bytes = self._paths.largest_datagram(self.source, self.target)
        """Size of the datagrams of this link, chosen when it was dialled."""
        self._is_stalled = False
        """Whether datagrams are lost because they are larger than those which the path carries now."""
        self._error: MicroError | None = None
        self._report_silence: Callable[[bool], None] | None = None
        self._received_at = 0.0
        """When data last arrived; also when an acknowledgement did, while there is doubt."""
        self._doubt: asyncio.TimerHandle | None = None
        """Judges whether the other end is silent."""
        self._is_silent = False
        self._watches: deque[tuple[float, Callable[[float], None]]] = deque(maxlen=MAX_WATCHES)

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
        conditions, written_at = self._paths.conditions(self.source, self.target), self._loop.time()
        sent_at = written_at
        self._environment.bytes_carried += len(data)
        if self.process is not None:
            sent_at = max(sent_at, self.process.work(len(data)))
        if conditions.bytes_per_s is not None:
            sent_at = self._free_at = max(sent_at, self._free_at) + len(data) / conditions.bytes_per_s
            self._unsent[lane] += len(data)
            self._is_above[lane] = self._is_above[lane] or self._unsent[lane] > LOW_WATER_BYTES
            self._loop.call_at(sent_at, self._sent, lane, len(data), context=self.context)
        is_too_large = min(len(data), self._datagram_bytes) > self._paths.largest_datagram(self.source, self.target)
        if is_too_large and not self._is_stalled:
            # The lost datagrams fill the congestion window, so that nothing follows them on any lane.
            self._is_stalled = True
            round_trip_s = conditions.delay_s + self._paths.conditions(self.target, self.source).delay_s
            after_s = FALLBACK_ROUND_TRIPS * round_trip_s + FALLBACK_S
            self._loop.call_at(sent_at + after_s, self._fall_back, context=self.context)
        if self.other is not None and self.other.process is not None and self.other.process.is_held:
            # A busy process acknowledges late, and a stopped one not at all.
            self._begin_doubt(sent_at)
        queue = self._in_transit[lane]
        arrives_at = sent_at + self._transit_time_s(conditions, len(data))
        if queue:
            # Lanes are ordered: data that follows a lost packet waits for it.
            arrives_at = max(arrives_at, queue[-1][0])
        queue.append((arrives_at, written_at, data))
        if self._timers[lane] is None:
            self._set_timer(lane, arrives_at)

    def buffered_bytes(self, lane: int) -> int:
        """Return the number of bytes of a lane that wait for bandwidth."""
        return self._unsent[lane]

    def transport_rtt_s(self) -> float | None:
        """Return None: the driver does not measure the round-trip time."""
        return None

    def watch_silence(self, report: Callable[[bool], None]) -> None:
        """Call `report(True)` when nothing is acknowledged any more, and `report(False)` when anything arrives."""
        self._report_silence = report

    def watch_acknowledgement(self, report: Callable[[float], None]) -> None:
        """Call `report(rtt_s)` once, when data that is written from now on has been acknowledged."""
        self._watches.append((self._loop.time(), report))

    async def close(self) -> None:
        """Close the link. Data in transit still arrives before the other end sees the end."""
        if self._error is None:
            self._end(Closed(f"the link to {self.remote} was closed at this end"), drop=False)
            last_arrival = max((queue[-1][0] for queue in self._in_transit if queue), default=self._loop.time())
            delay_s = self._paths.conditions(self.source, self.target).delay_s
            when = max(last_arrival, self._loop.time() + delay_s)
            self._loop.call_at(when, self._deliver_end, context=self._far_context())

    # ---------------------------------------------------------------------- faults

    @property
    def is_stuck(self) -> bool:
        """Whether no data arrives at the other end: the link is cut, or stalled by datagrams that are too large."""
        return self._is_stalled or self._paths.is_cut(self.source, self.target, self.driver)

    def fail(self, error: MicroError) -> None:
        """End this end of the link with `error`. Data in transit is lost."""
        self._end(error, drop=True)

    def fail_from_outside(self, error: MicroError) -> None:
        """Do the same in the process of this end, when it has time."""
        if self.process is not None and self.process.is_held:
            self._loop.call_soon(self.fail, error, context=self.context)
        else:
            self.context.run(self.fail, error)

    def resume(self) -> None:
        """Retransmit the data that was retained during a cut or a stall."""
        self._is_stalled = False
        conditions = self._paths.conditions(self.source, self.target)
        for lane, queue in enumerate(self._in_transit):
            if queue and self._timers[lane] is None:
                self._set_timer(lane, self._loop.time() + self._transit_time_s(conditions, PACKET_BYTES))

    # ---------------------------------------------------------------------- internals

    def _fall_back(self) -> None:
        """Use smaller datagrams, as the QUIC driver does after three probe timeouts, and send the lost data again."""
        if self._error is None and self._is_stalled:
            self._datagram_bytes = min(self._datagram_bytes, self._paths.largest_datagram(self.source, self.target))
            self.resume()

    def _far_context(self) -> contextvars.Context:
        return self.other.context if self.other is not None else contextvars.Context()

    def _set_timer(self, lane: int, when: float) -> None:
        # The data arrives in the process of the receiver, where it waits if the process is busy or stopped.
        self._timers[lane] = self._loop.call_at(when, self._arrive, lane, context=self._far_context())

    def _transit_time_s(self, conditions: Conditions, size: int) -> float:
        time_s = conditions.delay_s
        random = self._environment.random
        if conditions.jitter_s:
            time_s += random.uniform(0.0, conditions.jitter_s)
        if conditions.loss:
            packets = -(-size // PACKET_BYTES)
            while random.random() < 1 - (1 - conditions.loss) ** packets:
                # A loss is detected and repaired after about three one-way delays (RFC 9002: 1.5 round trips).
                time_s += 3 * conditions.delay_s + conditions.jitter_s
                packets = 1
        return time_s

    def _arrive(self, lane: int) -> None:
        self._timers[lane] = None
        if self.is_stuck:
            # `resume` sets a new timer.
            now = self._loop.time()
            self._begin_doubt(now - self._paths.conditions(self.source, self.target).delay_s)
            return
        queue, now, other = self._in_transit[lane], self._loop.time(), self.other
        is_acknowledged = other is not None and other._error is None and not other.is_stuck
        if not is_acknowledged:
            self._begin_doubt(now - self._paths.conditions(self.source, self.target).delay_s)
        while queue and queue[0][0] <= now:
            _, written_at, data = queue.popleft()
            if is_acknowledged and self._is_acknowledgement_relevant(written_at):
                # After what the other end writes in response, which leads to the same packet.
                self._loop.call_soon(self._acknowledged, written_at, context=self._far_context())
            if other is not None:
                other.receive(lane, data)
                if other.process is not None and other.process.is_held:
                    break
        if queue and self._timers[lane] is None:
            self._set_timer(lane, max(now, queue[0][0]))

    def receive(self, lane: int, data: bytes) -> None:
        """Process data that arrived from the other end."""
        if self._error is not None:
            return
        self._packet_arrived()
        if self.process is not None:
            self.process.work(len(data))
        if self._receiver is None:
            self._received_early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    # Only the acknowledgements that matter are simulated: the others would double the number of events of a lab.

    def _begin_doubt(self, sent_at: float) -> None:
        """Data has not reached the other end, or its acknowledgement will not reach this one. Judge this a moment later."""
        if self._doubt is None and not self._is_silent and self._error is None and self._report_silence is not None:
            # A delay that changes meanwhile does not matter: the silence is judged a bit earlier or later.
            delay_s = self._paths.conditions(self.source, self.target).delay_s
            round_trip_s = delay_s + self._paths.conditions(self.target, self.source).delay_s
            due_at = sent_at + max(SILENCE_S, SILENCE_ROUND_TRIPS * round_trip_s)
            self._doubt = self._loop.call_at(due_at, self._judge, sent_at, context=self.context)

    def _judge(self, sent_at: float) -> None:
        self._doubt = None
        if self._received_at < sent_at and self._error is None and self._report_silence is not None:
            self._is_silent = True
            self._report_silence(True)

    def _is_acknowledgement_relevant(self, written_at: float) -> bool:
        is_watched = bool(self._watches) and self._watches[0][0] <= written_at
        return is_watched or self._doubt is not None or self._is_silent

    def _acknowledged(self, written_at: float) -> None:
        """Data of this end has arrived at the other one, whose acknowledgement arrives later."""
        now, other = self._loop.time(), self.other
        arrives_at = now + self._transit_time_s(self._paths.conditions(self.target, self.source), ACKNOWLEDGEMENT_BYTES)
        if other is not None and other._in_transit[0] and other._in_transit[0][-1][1] == now:
            # It is in the same packet as the data that the other end has written in response, which is delivered before.
            arrives_at = max(arrives_at, other._in_transit[0][-1][0] + SAME_PACKET_S)
        self._loop.call_at(arrives_at, self._acknowledgement_arrived, written_at, context=self.context)

    def _acknowledgement_arrived(self, written_at: float) -> None:
        if self._error is not None:
            return
        self._packet_arrived()
        while self._watches and self._watches[0][0] <= written_at:
            since, report = self._watches.popleft()
            report(self._loop.time() - since)

    def _packet_arrived(self) -> None:
        """Note that data or an acknowledgement has arrived."""
        self._received_at = self._loop.time()
        if self._is_silent:
            self._is_silent = False
            if self._report_silence is not None and self._error is None:
                self._report_silence(False)

    def _sent(self, lane: int, count: int) -> None:
        self._unsent[lane] -= count
        if self._is_above[lane] and self._unsent[lane] <= LOW_WATER_BYTES:
            self._is_above[lane] = False
            if self._receiver is not None and self._error is None:
                self._receiver.lane_writable(lane)

    def _deliver_end(self) -> None:
        if self.other is not None and not self.is_stuck:
            if any(self._in_transit):
                # The other end is busy and has not processed the data before the end yet, or data was sent again after a cut.
                self._loop.call_later(END_RETRY_S, self._deliver_end, context=self._far_context())
                return
            self.other.fail(Ended(f"{self.local} closed the link"))
        self._environment.forget(self)

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
            self._environment.forget(self)
        if self._receiver is not None:
            self._receiver.link_lost(error)
