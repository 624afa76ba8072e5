"""One QUIC connection as a link with four lanes. The lanes are four streams that the dialling end opens once.

aioquic does no I/O: this file passes time and received datagrams to it, and sends the datagrams that it returns. Work is
batched, because QUIC in Python costs CPU time per packet: all datagrams of one wake-up are processed before anything is
sent, and the data written in one iteration of the event loop is sent in as few packets as possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aioquic.quic import events

from micro_core.contract import Closed, Counters, Ended, LinkLost, LinkReceiver, MicroError
from micro_quic_tunnel.connection import LaneConnection
from micro_quic_tunnel.datagrams import socket_address
from micro_quic_tunnel.link_timer import LinkTimer

LANES = 4

LOW_WATER_BYTES = 16 * 1024
"""`lane_writable` is called when the unsent bytes of a lane fall to this value after they were above it."""

EAGER_BYTES = 2_048
"""From this number of unsent bytes, data is sent immediately and not at the end of the event loop iteration: the packets
are full enough, and the peer can start to process them."""

MAX_EARLY_BYTES = 1024 * 1024
"""Maximum number of bytes buffered before `start`. Core calls `start` immediately, so more is an attack."""

MAX_REASSEMBLY_BYTES = 16 * 1024 * 1024
"""Maximum size of a reassembly buffer: twice the initial window. Only a peer that enlarges the window and leaves a gap
open exceeds it."""

CLOSE_TIMEOUT_S = 1.0
MAX_REASON_CHARS = 200
PROTOCOL_VIOLATION = 0x0A
NO_ERROR = 0
CLOSED_REASON = "closed"


class QuicLink:
    """A `Link` over one QUIC connection.

    Lane n is the stream 4 n. The first byte that the dialling end sends on it is n, and is not part of the data.
    """

    lane_count = LANES
    driver = "quic"

    def __init__(
        self,
        quic: LaneConnection,
        *,
        dialed: bool,
        local: str,
        remote: str,
        send: Callable[[bytes, Any], bool],
        counters: Counters,
    ) -> None:
        self.local = local
        self.remote = remote
        self.channel_binding = b""
        self.quic = quic
        self.dialed = dialed
        self.on_ready: Callable[[QuicLink], None] = _ignore
        self.on_fallback: Callable[[QuicLink], None] = _ignore
        self.on_end: Callable[[QuicLink], None] = _ignore
        self.on_cid: Callable[[QuicLink, bytes], None] = _ignore_cid
        self.on_cid_retired: Callable[[QuicLink, bytes], None] = _ignore_cid
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[MicroError] = self._loop.create_future()
        self._send = send
        self._counters = counters
        self._receiver: LinkReceiver | None = None
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._lanes_seen: set[int] = set()
        self._is_ready = False
        self._remote_address: Any = None
        self._has_reported_fallback = False
        self._is_closing = False
        self._is_above = [False] * LANES
        self._is_congested = False
        self._is_scheduled = False
        self._has_unsent = False
        self._has_processed = False
        self._timer = LinkTimer(self._timed_out)
        self._acknowledged: asyncio.Event | None = None
        self._report_silence: Callable[[bool], None] | None = None
        self._was_silent = False

    # ------------------------------------------------------------------- Link

    def start(self, receiver: LinkReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        early, self._early = self._early, []
        for lane, data in early:
            receiver.data_received(lane, data)
        if self.ended.done():
            receiver.link_lost(self.ended.result())

    def write(self, lane: int, data: bytes) -> None:
        """Queue data for the end of the event loop iteration, or send it immediately from 2,048 bytes on."""
        if self.ended.done() or self._is_closing:
            return
        self.quic.send_stream_data(4 * lane, data)
        self._has_unsent = True
        unsent = self.quic.unsent_bytes(4 * lane)
        if unsent > LOW_WATER_BYTES:
            self._is_above[lane] = True
        if unsent >= EAGER_BYTES and not self._is_congested:
            self._send_datagrams()
            # If congestion control leaves data unsent now, it does so for the rest of this iteration.
            self._is_congested = self.quic.unsent_bytes(4 * lane) > 0
        if self._has_unsent or True in self._is_above:
            self._schedule()

    def buffered_bytes(self, lane: int) -> int:
        """Return how many bytes of a lane were never sent in a packet."""
        return self.quic.unsent_bytes(4 * lane)

    def transport_rtt_s(self) -> float | None:
        """Return the smoothed round-trip time of QUIC in seconds, or None before the first sample."""
        return self.quic.smoothed_rtt_s()

    def transport_loss(self) -> float | None:
        """Return the share of packets sent by this end that were lost recently, 0 to 1, or None before the first sample."""
        return self.quic.lost_share()

    def watch_silence(self, report: Callable[[bool], None]) -> None:
        """Call `report(True)` when nothing is acknowledged any more, and `report(False)` with the next packet of the peer."""
        self._report_silence = report

    def watch_acknowledgement(self, report: Callable[[float], None]) -> None:
        """Call `report(rtt_s)` once, when a packet with data that is sent from now on has been acknowledged."""
        self.quic.watch_acknowledgement(report, self._loop.time())

    async def close(self) -> None:
        """Wait up to one second for acknowledgements of all data, then close the connection. Safe to call twice."""
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
            self.end(Closed(f"the link to {self.remote} was closed at this end"))

    # ------------------------------------------------------- from the endpoint

    def open_lanes(self) -> None:
        """Send one byte on each lane, which opens the streams at the other end. Only the dialling end does this."""
        for lane in range(LANES):
            self.quic.send_stream_data(4 * lane, bytes([lane]))
        self._send_datagrams()

    def process(self) -> None:
        """Handle the events of aioquic after received datagrams or a timer.

        Replies are sent at the end of the event loop iteration, together with the data that core writes in response.
        """
        self._check_silence()
        event = self.quic.next_event()
        has_events = event is not None
        while event is not None:
            self._handle(event)
            event = self.quic.next_event()
        termination = self.quic.termination()
        if termination is not None:
            # If this end closes the connection, the closing packet still has to be sent.
            self._send_datagrams()
            self.end(self._error_of(termination))
        for report, rtt_s in self.quic.pop_acknowledged():
            report(rtt_s)
        if self.ended.done():
            return
        self._check_streams()
        if not has_events and self._is_idle() and self.quic.has_nothing_to_send(self._loop.time()):
            # Usually an acknowledgement.
            self._timer.set(self._next_timer())
            return
        self._has_processed = True
        self._schedule()

    def abandon(self, error: MicroError, reason: str = "") -> None:
        """End the link immediately with `error`, and notify the other end if possible."""
        if not self.ended.done():
            try:
                self._close_connection(NO_ERROR, reason)
            finally:
                self.end(error)

    def end(self, error: MicroError) -> None:
        """Mark the link as ended and notify the endpoint and the receiver. Does nothing if it has ended already."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        self._timer.set(None)
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
                self._violate("it reset a lane")
            case _:
                # ConnectionTerminated is handled by `termination` earlier. The other events are not needed.
                pass

    def _data_received(self, stream_id: int, data: bytes, *, is_end: bool) -> None:
        if self.ended.done():
            return
        if stream_id % 4 or stream_id >= 4 * LANES:
            self._violate(f"stream {stream_id} is not a lane")
            return
        if is_end:
            self._violate("it ended a lane")
            return
        lane = stream_id // 4
        if not self.dialed and lane not in self._lanes_seen:
            data = self._first_of_lane(lane, data)
        if data and not self.ended.done():
            self._deliver(lane, data)

    def _first_of_lane(self, lane: int, data: bytes) -> bytes:
        """Return `data` without the byte that opened the lane."""
        if not data:
            return data
        if data[0] != lane:
            self._violate("the first byte of a lane is not its number")
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
        if self._early_bytes > MAX_EARLY_BYTES:
            self._early.clear()
            self._violate("too much data before the link was started")
            return
        self._early.append((lane, data))

    def _ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self.on_ready(self)

    def _check_streams(self) -> None:
        """Check what aioquic reports no events for: additional streams, and data far behind a gap."""
        quic = self.quic
        if quic.stream_count() > LANES:
            self._violate("it opened a stream that is not a lane")
        elif quic.reassembly_bytes() > MAX_REASSEMBLY_BYTES:
            self._violate("too much data behind a gap")

    def _violate(self, what: str) -> None:
        if not self.ended.done():
            self._counters.add("quic_protocol_violations")
            self._close_connection(PROTOCOL_VIOLATION, what)
            self.end(LinkLost(f"{self.remote} violated the protocol: {what}"))

    def _error_of(self, event: events.ConnectionTerminated) -> MicroError:
        reason = event.reason_phrase or f"error {event.error_code:#x}"
        if reason == CLOSED_REASON and event.error_code == NO_ERROR:
            return Ended(f"{self.remote} closed the link")
        # The reason may come from the peer, so it is shortened and made printable.
        printable = "".join(char if char.isprintable() else "?" for char in reason[:MAX_REASON_CHARS])
        return LinkLost(f"the link to {self.remote} was lost: {printable}")

    # ---------------------------------------------------------------- sending

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _is_idle(self) -> bool:
        """Return whether nothing waits for the next flush."""
        return not (self._is_scheduled or self._has_unsent or True in self._is_above or self._acknowledged is not None)

    def _flush(self) -> None:
        self._is_scheduled = self._is_congested = False
        if self._has_unsent or (self._has_processed and not self.quic.has_nothing_to_send(self._loop.time())):
            self._send_datagrams()
        elif self._has_processed:
            self._has_processed = False
            self._timer.set(None if self.ended.done() else self._next_timer())
        if True in self._is_above:
            self._report_writable()
        if self._acknowledged is not None and not self.quic.has_unacknowledged():
            self._acknowledged.set()

    def _send_datagrams(self) -> None:
        self._has_unsent = self._has_processed = False
        for data, address in self.quic.datagrams_to_send(now=self._loop.time()):
            if address != self._remote_address:
                # The first datagram, or the peer has another address since its NAT was rebound (RFC 9000 section 9).
                self._remote_address, self.remote = address, socket_address(address)
            if not self._send(data, address):
                # The kernel has learned that the path does not carry this size. QUIC repairs the loss.
                self.quic.fall_back()
        if self.quic.has_fallen_back and not self._has_reported_fallback:
            self._has_reported_fallback = True
            self.on_fallback(self)
        self._timer.set(None if self.ended.done() else self._next_timer())

    def _report_writable(self) -> None:
        for lane in range(LANES):
            if self._is_above[lane] and self.buffered_bytes(lane) <= LOW_WATER_BYTES:
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

    def _next_timer(self) -> float | None:
        when, silence_at = self.quic.get_timer(), self.quic.silence_due_at()
        return when if silence_at is None or (when is not None and when < silence_at) else silence_at

    def _timed_out(self) -> None:
        if self.ended.done():
            return
        now = self._loop.time()
        silence_at = self.quic.silence_due_at()
        if silence_at is not None and now >= silence_at:
            # Packets that arrived meanwhile were processed before: the event loop runs readers before timers.
            self.quic.silence.is_silent = True
        self.quic.handle_timer(now=now)
        self.process()

    def _check_silence(self) -> None:
        is_silent = self.quic.silence.is_silent
        if is_silent is not self._was_silent:
            self._was_silent = is_silent
            if self._report_silence is not None and not self.ended.done():
                self._report_silence(is_silent)


def _ignore(link: QuicLink) -> None:
    """Default callback."""


def _ignore_cid(link: QuicLink, cid: bytes) -> None:
    """Default callback."""
