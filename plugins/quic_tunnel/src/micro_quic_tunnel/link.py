"""One QUIC connection as a link of four lanes: four streams, opened once, by the side that dialled.

aioquic is pure protocol: this file feeds it time and datagrams and writes what it wants written. Data is batched: all
datagrams of one wake-up are taken in before anything is answered, and all writes of one turn of the loop leave together,
because the cost of QUIC in Python is per packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aioquic.quic import events
from aioquic.quic.connection import QuicConnection

from micro_core.spec import Closed, Counters, Ended, LinkLost, LinkReceiver, Malformed, MicroError

LANES = 4
LOW_MARK_BYTES = 16 * 1024
EAGER_BYTES = 4_096
"""Buffered bytes that leave without waiting for the end of the turn: a datagram worth its cost, and the far end can begin."""
CLOSE_TIMEOUT_S = 1.0
PROTOCOL_VIOLATION = 0x0A
NO_ERROR = 0


class QuicLink:
    """Implements `Link`. `lane n` is the stream `4 n`."""

    lane_count = LANES
    driver = "quic"

    def __init__(
        self,
        quic: QuicConnection,
        *,
        dialed: bool,
        local: str,
        remote: str,
        send: Callable[[bytes, Any], None],
        counters: Counters,
        forget: Callable[[QuicLink], None],
    ) -> None:
        self.local = local
        self.remote = remote
        self.channel_binding = b""
        self.quic = quic
        self.dialed = dialed
        self.on_ready: Callable[[QuicLink], None] | None = None
        self.on_cid: Callable[[bytes], None] | None = None
        self.on_cid_retired: Callable[[bytes], None] | None = None
        self.ended: asyncio.Future[MicroError] = asyncio.get_running_loop().create_future()
        self._send = send
        self._counters = counters
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._lanes_seen: set[int] = set()
        self._is_ready = False
        self._is_closing = False
        self._is_above = [False] * LANES
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._transmit_scheduled = False
        self._acked: asyncio.Event | None = None

    # ------------------------------------------------------------------- Link

    def start(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self.ended.done():
            receiver.link_lost(self.ended.result())

    def write(self, lane: int, data: bytes) -> None:
        if self.ended.done() or self._is_closing:
            return
        self.quic.send_stream_data(4 * lane, data)
        buffered = self.buffered_bytes(lane)
        if buffered > LOW_MARK_BYTES:
            self._is_above[lane] = True
        if buffered >= EAGER_BYTES:
            self._transmit()
        else:
            self._schedule_transmit()

    def buffered_bytes(self, lane: int) -> int:
        # aioquic has no public figure for this; the sender's own offsets are the truth.
        stream = self.quic._streams.get(4 * lane)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def transport_rtt_s(self) -> float | None:
        rtt: float = self.quic._loss._rtt_smoothed
        return rtt if self.quic._loss._rtt_initialized else None

    async def close(self) -> None:
        if not self.ended.done() and not self._is_closing:
            await self._wait_acknowledged()
            self._is_closing = True
            self.quic.close(error_code=NO_ERROR, reason_phrase="closed")
            self._transmit()
            self.end(Closed(f"the link to {self.remote} was closed here"))

    # ------------------------------------------------------- from the endpoint

    def open_lanes(self) -> None:
        """The dialling side's first bytes: one on each lane, so that the other side has the streams."""
        for lane in range(LANES):
            self.quic.send_stream_data(4 * lane, bytes([lane]))

    def process(self) -> None:
        """After datagrams or a timer: take events, answer."""
        event = self.quic.next_event()
        while event is not None:
            self._handle(event)
            event = self.quic.next_event()
        self._transmit()

    def end(self, error: MicroError) -> None:
        """Over, once: for whatever reason."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        if self._timer is not None:
            self._timer.cancel()
        self._forget(self)
        if self._acked is not None:
            self._acked.set()
        if self._receiver is not None:
            self._receiver.link_lost(error)

    # ----------------------------------------------------------------- inside

    def _handle(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                self._data_received(event.stream_id, event.data, is_end=event.end_stream)
            case events.HandshakeCompleted():
                if self.dialed:
                    self._ready()
            case events.ConnectionTerminated():
                self.end(self._ending(event))
            case events.ConnectionIdIssued():
                if self.on_cid is not None:
                    self.on_cid(event.connection_id)
            case events.ConnectionIdRetired():
                if self.on_cid_retired is not None:
                    self.on_cid_retired(event.connection_id)
            case events.StreamReset() | events.StopSendingReceived():
                self._violate("a lane was reset")
            case _:
                pass

    def _data_received(self, stream_id: int, data: bytes, *, is_end: bool) -> None:
        if stream_id % 4 or stream_id >= 4 * LANES:
            self._violate(f"stream {stream_id} is no lane")
            return
        if is_end:
            self._violate("a lane was ended")
            return
        lane = stream_id // 4
        if not self.dialed and lane not in self._lanes_seen:
            if not data:
                return
            if data[0] != lane:
                self._violate("a lane did not begin with its number")
                return
            self._lanes_seen.add(lane)
            data = data[1:]
            if len(self._lanes_seen) == LANES:
                self._ready()
        if not data:
            return
        if self._receiver is None:
            self._early.append((lane, data))
        else:
            self._receiver.data_received(lane, data)

    def _ready(self) -> None:
        if not self._is_ready and self.on_ready is not None:
            self._is_ready = True
            self.on_ready(self)

    def _violate(self, what: str) -> None:
        self._counters.add("quic_protocol_violations")
        if not self.ended.done():
            self.quic.close(error_code=PROTOCOL_VIOLATION, reason_phrase=what)
            self._schedule_transmit()
            self.end(Malformed(f"{self.remote}: {what}"))

    def _ending(self, event: events.ConnectionTerminated) -> MicroError:
        if self._is_closing:
            return Closed(f"the link to {self.remote} was closed here")
        reason = event.reason_phrase or f"error {event.error_code:#x}"
        if reason == "closed" and event.error_code == NO_ERROR:
            return Ended(f"{self.remote} closed the link")
        return LinkLost(f"the link to {self.remote} broke: {reason}")

    def _schedule_transmit(self) -> None:
        if not self._transmit_scheduled:
            self._transmit_scheduled = True
            self._loop.call_soon(self._transmit_scheduled_for_now)

    def _transmit_scheduled_for_now(self) -> None:
        self._transmit_scheduled = False
        self._transmit()

    def _transmit(self) -> None:
        for data, address in self.quic.datagrams_to_send(now=self._loop.time()):
            self._send(data, address)
        self._arm()
        if self._acked is not None and self._is_acknowledged():
            self._acked.set()
        receiver = self._receiver
        if receiver is None or self.ended.done():
            return
        for lane in range(LANES):
            if self._is_above[lane] and self.buffered_bytes(lane) <= LOW_MARK_BYTES:
                self._is_above[lane] = False
                receiver.lane_writable(lane)

    def _arm(self) -> None:
        when = None if self.ended.done() and not self.quic._close_pending else self.quic.get_timer()
        if when == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = None if when is None else self._loop.call_at(when, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = self._timer_at = None
        self.quic.handle_timer(now=self._loop.time())
        self.process()

    def _is_acknowledged(self) -> bool:
        streams = [self.quic._streams.get(4 * lane) for lane in range(LANES)]
        return all(s is None or s.sender._buffer_start == s.sender._buffer_stop for s in streams)

    async def _wait_acknowledged(self) -> None:
        self._transmit()
        if self._is_acknowledged():
            return
        self._acked = asyncio.Event()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._acked.wait()
        except TimeoutError:
            self._counters.add("quic_closed_with_data_unread")
