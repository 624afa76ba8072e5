"""One QUIC connection as a link of four lanes: four streams, opened once, by the side that dialled.

aioquic is pure protocol: this file feeds it time and datagrams and sends what it wants sent. Work is batched, because
the cost of QUIC in Python is per packet: all datagrams of one wake-up are taken in before anything is answered, and what
is written in one turn of the loop leaves in as few packets as hold it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aioquic.quic import events

from micro_core.contract import Closed, Counters, Ended, LinkLost, LinkReceiver, MicroError
from micro_quic_tunnel.connection import LaneConnection

LANES = 4

LOW_MARK_BYTES = 16 * 1024
"""`lane_writable` is told when a lane holds no more than this, after having held more."""

EAGER_BYTES = 2_048
"""Unsent bytes that leave without waiting for the end of the turn: worth their packets, and the far end can begin."""

EARLY_BYTES = 1024 * 1024
"""Held of a peer's bytes before `start`; core starts a link at once, so more is an attack."""

HELD_BYTES = 16 * 1024 * 1024
"""Room that bytes behind a gap may take: twice the first window, so only who widens it without filling it meets this."""

CLOSE_TIMEOUT_S = 1.0
MAX_REASON_CHARS = 200
PROTOCOL_VIOLATION = 0x0A
NO_ERROR = 0
CLOSED_REASON = "closed"


class QuicLink:
    """Implements `Link`. Lane n is the stream 4 n; its first byte, from the dialling side, is n and belongs to us."""

    lane_count = LANES
    driver = "quic"

    def __init__(
        self,
        quic: LaneConnection,
        *,
        dialed: bool,
        local: str,
        remote: str,
        send: Callable[[bytes, Any], None],
        counters: Counters,
    ) -> None:
        self.local = local
        self.remote = remote
        self.channel_binding = b""
        self.quic = quic
        self.dialed = dialed
        self.on_ready: Callable[[QuicLink], None] = _nothing
        self.on_end: Callable[[QuicLink], None] = _nothing
        self.on_cid: Callable[[QuicLink, bytes], None] = _no_cid
        self.on_cid_retired: Callable[[QuicLink, bytes], None] = _no_cid
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[MicroError] = self._loop.create_future()
        self._send = send
        self._counters = counters
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._lanes_seen: set[int] = set()
        self._is_ready = False
        self._is_closing = False
        self._is_above = [False] * LANES
        self._is_held_back = False
        self._is_scheduled = False
        self._has_news = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at: float | None = None
        self._acknowledged: asyncio.Event | None = None

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
        self._has_news = True
        unsent = self.quic.unsent_bytes(4 * lane)
        if unsent > LOW_MARK_BYTES:
            self._is_above[lane] = True
        if unsent >= EAGER_BYTES and not self._is_held_back:
            self._send_datagrams()
            # What congestion control holds back now it holds back for the rest of the turn.
            self._is_held_back = self.quic.unsent_bytes(4 * lane) > 0
        if self._has_news or True in self._is_above:
            self._schedule()

    def buffered_bytes(self, lane: int) -> int:
        return self.quic.unsent_bytes(4 * lane)

    def transport_rtt_s(self) -> float | None:
        return self.quic.smoothed_rtt_s()

    async def close(self) -> None:
        if self.ended.done():
            return
        if self._is_closing:
            await asyncio.wait([self.ended])
            return
        self._is_closing = True
        try:
            if self._is_ready:
                await self._wait_acknowledged()
        finally:
            self._close_connection(NO_ERROR, CLOSED_REASON)
            self.end(Closed(f"the link to {self.remote} was closed here"))

    # ------------------------------------------------------- from the endpoint

    def open_lanes(self) -> None:
        """The dialling side's first bytes: one on each lane, so that the other side has the streams."""
        for lane in range(LANES):
            self.quic.send_stream_data(4 * lane, bytes([lane]))
        self._send_datagrams()

    def process(self) -> None:
        """After datagrams or a timer: take events; the answer leaves at the end of the turn, with what core says to it."""
        event = self.quic.next_event()
        while event is not None:
            self._handle(event)
            event = self.quic.next_event()
        termination = self.quic.termination()
        if termination is not None:
            # Ours is sent before the end, theirs needs no answer.
            self._send_datagrams()
            self.end(self._ending(termination))
        if self.ended.done():
            return
        self._check_streams()
        self._has_news = True
        self._schedule()

    def abandon(self, error: MicroError, reason: str = "") -> None:
        """End without ceremony, telling the other side if that is possible yet."""
        if not self.ended.done():
            try:
                self._close_connection(NO_ERROR, reason)
            finally:
                self.end(error)

    def end(self, error: MicroError) -> None:
        """Over, once: for whatever reason."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        self._set_timer(None)
        if self._acknowledged is not None:
            self._acknowledged.set()
        self.on_end(self)
        if self._receiver is not None:
            self._receiver.link_lost(error)

    # ----------------------------------------------------------------- events

    def _handle(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                self._data_received(event.stream_id, event.data, is_end=event.end_stream)
            case events.HandshakeCompleted():
                if self.dialed:
                    self._ready()
            case events.ConnectionIdIssued():
                self.on_cid(self, event.connection_id)
            case events.ConnectionIdRetired():
                self.on_cid_retired(self, event.connection_id)
            case events.StreamReset() | events.StopSendingReceived():
                self._violate("a lane was reset")
            case _:
                # ConnectionTerminated has been seen as `termination`; nothing here depends on the others.
                pass

    def _data_received(self, stream_id: int, data: bytes, *, is_end: bool) -> None:
        if self.ended.done():
            return
        if stream_id % 4 or stream_id >= 4 * LANES:
            self._violate(f"stream {stream_id} is no lane")
            return
        if is_end:
            self._violate("a lane was ended")
            return
        lane = stream_id // 4
        if not self.dialed and lane not in self._lanes_seen:
            data = self._first_of_lane(lane, data)
        if data and not self.ended.done():
            self._deliver(lane, data)

    def _first_of_lane(self, lane: int, data: bytes) -> bytes:
        """Take off the byte that opened the lane."""
        if not data:
            return data
        if data[0] != lane:
            self._violate("a lane did not begin with its number")
            return b""
        self._lanes_seen.add(lane)
        if len(self._lanes_seen) == LANES:
            self._ready()
        return data[1:]

    def _deliver(self, lane: int, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.data_received(lane, data)
            return
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_BYTES:
            self._early.clear()
            self._violate("too much was sent before anybody read")
            return
        self._early.append((lane, data))

    def _ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self.on_ready(self)

    def _check_streams(self) -> None:
        """What makes no event: streams beyond the lanes, and bytes far beyond a gap."""
        quic = self.quic
        if quic.stream_count() > LANES:
            self._violate("a stream that is no lane was opened")
        elif any(quic.held_bytes(4 * lane) > HELD_BYTES for lane in range(LANES)):
            self._violate("too much was sent behind a gap")

    def _violate(self, what: str) -> None:
        if not self.ended.done():
            self._counters.add("quic_protocol_violations")
            self._close_connection(PROTOCOL_VIOLATION, what)
            self.end(LinkLost(f"{self.remote} broke the protocol: {what}"))

    def _ending(self, event: events.ConnectionTerminated) -> MicroError:
        reason = event.reason_phrase or f"error {event.error_code:#x}"
        if reason == CLOSED_REASON and event.error_code == NO_ERROR:
            return Ended(f"{self.remote} closed the link")
        # The words may be the peer's: bounded, and printable.
        shown = "".join(char if char.isprintable() else "?" for char in reason[:MAX_REASON_CHARS])
        return LinkLost(f"the link to {self.remote} broke: {shown}")

    # ---------------------------------------------------------------- sending

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn_ended)

    def _turn_ended(self) -> None:
        self._is_scheduled = self._is_held_back = False
        if self._has_news:
            self._send_datagrams()
        if True in self._is_above:
            self._tell_writable()
        if self._acknowledged is not None and not self.quic.has_unacknowledged():
            self._acknowledged.set()

    def _send_datagrams(self) -> None:
        self._has_news = False
        for data, address in self.quic.datagrams_to_send(now=self._loop.time()):
            self._send(data, address)
        self._set_timer(None if self.ended.done() else self.quic.get_timer())

    def _tell_writable(self) -> None:
        for lane in range(LANES):
            if self._is_above[lane] and self.buffered_bytes(lane) <= LOW_MARK_BYTES:
                self._is_above[lane] = False
                if self._receiver is not None and not self.ended.done():
                    self._receiver.lane_writable(lane)

    def _close_connection(self, error_code: int, reason: str) -> None:
        self.quic.close(error_code=error_code, reason_phrase=reason)
        self._send_datagrams()

    async def _wait_acknowledged(self) -> None:
        self._send_datagrams()
        if not self.quic.has_unacknowledged():
            return
        self._acknowledged = asyncio.Event()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._acknowledged.wait()
        except TimeoutError:
            self._counters.add("quic_closed_with_data_unread")

    # ------------------------------------------------------------------ timer

    def _set_timer(self, when: float | None) -> None:
        """Wake at `when`. A timer that is early anyway is left alone: with each packet sent the time moves on."""
        self._wake_at = when
        timer = self._timer
        if timer is not None and (when is None or when < timer.when()):
            timer.cancel()
            timer = self._timer = None
        if timer is None and when is not None:
            self._timer = self._loop.call_at(when, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._wake_at is None or self.ended.done():
            return
        if now < self._wake_at:
            self._set_timer(self._wake_at)
            return
        self.quic.handle_timer(now=now)
        self.process()


def _nothing(link: QuicLink) -> None:
    """For callbacks that nobody has set."""


def _no_cid(link: QuicLink, cid: bytes) -> None:
    """For callbacks that nobody has set."""
