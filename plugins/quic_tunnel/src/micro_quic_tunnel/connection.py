"""aioquic's connection, extended by values that a link needs and that aioquic does not make public.

Only this file uses private attributes of aioquic. Tests check the behaviour of each value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import NetworkAddress, QuicConnection, QuicConnectionState, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from cryptography import x509

from micro_quic_tunnel.black_hole import BlackHoleDetector
from micro_quic_tunnel.congestion import ObservedCubic, ObservedReno
from micro_quic_tunnel.loss import LossMeter
from micro_quic_tunnel.silence import SilenceDetector

MAX_EXPIRED = 64
"""Packets whose probe timeout has expired, and which may still turn out to have arrived."""

MAX_WATCHES = 16
"""Packets whose acknowledgement is watched at a time. Older ones are forgotten."""

QUIET_S = 0.05
"""A link is quiet if it has not sent an acknowledgement for this time, in seconds. The next one is then not delayed: nothing that
it could be sent with is likely to follow, and a timer costs more than a packet."""


class LaneConnection(QuicConnection):
    """One QUIC connection without I/O: it receives datagrams and the time, and returns the datagrams to send.

    It measures the loss of packets, and falls back to the smallest datagrams when the path no longer carries large ones.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        ack_delay_s: float,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        # Delay acknowledgements so that they are sent with data. Peers expect up to 25 ms (RFC 9000 section 18.2).
        self._ack_delay = ack_delay_s
        self.has_fallen_back = False
        """Whether the datagrams have become smaller than the configuration allows, because the path does not carry them."""
        self.silence = SilenceDetector()
        self._loss_meter = LossMeter()
        self._has_judged = False
        self._black_hole = BlackHoleDetector(SMALLEST_MAX_DATAGRAM_SIZE)
        self._large_bytes = configuration.max_datagram_size
        self._expired: dict[int, None] = {}
        self._watches: deque[tuple[float, Callable[[float], None]]] = deque(maxlen=MAX_WATCHES)
        """Functions that wait for the acknowledgement of a packet that is sent at a time or later."""
        self._acknowledged_sent_at = 0.0
        """When the last packet was sent of those that were acknowledged."""
        self._acknowledged: list[tuple[Callable[[float], None], float]] = []
        self._now = 0.0
        self._acknowledged_at = 0.0
        control = self._loss._cc
        assert isinstance(control, (ObservedCubic, ObservedReno)), "see QuicTunnel._configuration"
        control.observer = self
        self._process_ack = self._loss.on_ack_received
        self._loss.on_ack_received = self._ack_received  # type: ignore[method-assign]  # the only way to see its ranges

    def has_decrypted_nothing(self) -> bool:
        """Return whether no packet could be decrypted so far."""
        return self._state is QuicConnectionState.FIRSTFLIGHT

    def termination(self) -> ConnectionTerminated | None:
        """Return why the connection ends, or None. aioquic's event follows only three probe timeouts later."""
        return self._close_event

    def unsent_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a stream were never sent in a packet. Lost bytes are not counted again."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def has_unacknowledged(self) -> bool:
        """Return whether any stream has bytes that the peer has not acknowledged."""
        return any(stream.sender._buffer_start != stream.sender._buffer_stop for stream in self._streams.values())

    def stream_count(self) -> int:
        """Return how many streams either end has opened, including those without delivered data."""
        return len(self._streams)

    def reassembly_bytes(self) -> int:
        """Return the size of the largest reassembly buffer of a stream. It holds out-of-order data and the gaps before it."""
        largest = 0
        for stream in self._streams.values():
            if (size := len(stream.receiver._buffer)) > largest:
                largest = size
        return largest

    def smoothed_rtt_s(self) -> float | None:
        """Return the smoothed round-trip time in seconds (RFC 9002 section 5.3), or None before the first sample."""
        return float(self._loss._rtt_smoothed) if self._loss._rtt_initialized else None

    def lost_share(self) -> float | None:
        """Return the share of packets sent by this end that were lost, or None before the first one was acknowledged."""
        return self._loss_meter.share() if self._has_judged else None

    def watch_acknowledgement(self, report: Callable[[float], None], now: float) -> None:
        """Let `pop_acknowledged` return `report` once a packet with data that is sent from now on was acknowledged."""
        self._watches.append((now, report))

    def pop_acknowledged(self) -> list[tuple[Callable[[float], None], float]]:
        """Return the functions whose packet was acknowledged since the last call, each with its round trip in seconds."""
        acknowledged, self._acknowledged = self._acknowledged, []
        return acknowledged

    def silence_due_at(self) -> float | None:
        """Return when the peer becomes silent unless a packet arrives, or None. See `SilenceDetector`."""
        loss = self._loss
        return self.silence.due_at(loss._rtt_smoothed, loss._rtt_variance) if loss._rtt_initialized else None

    def fall_back(self) -> None:
        """Use the smallest datagrams from now on: the path does not carry larger ones."""
        self.has_fallen_back = self.has_fallen_back or self._large_bytes > SMALLEST_MAX_DATAGRAM_SIZE
        self._large_bytes = SMALLEST_MAX_DATAGRAM_SIZE
        self._set_datagram_bytes(SMALLEST_MAX_DATAGRAM_SIZE)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Return the datagrams to send now, with their destinations.

        On a quiet link, an acknowledgement is sent now, together with the data if there is any. aioquic waits until its delay
        is over, also if it sends data.
        """
        space = self._loss.spaces[-1] if self._loss.spaces else None
        is_pending = space is not None and space.ack_at is not None
        if space is not None and is_pending and now - self._acknowledged_at >= QUIET_S:
            space.ack_at = now - K_GRANULARITY
        datagrams = super().datagrams_to_send(now)
        if space is not None and is_pending and space.ack_at is None:
            self._acknowledged_at = now
        self.silence.packets_sent(self._loss._time_of_last_sent_ack_eliciting_packet)
        return datagrams

    def has_nothing_to_send(self, now: float) -> bool:
        """Return whether `datagrams_to_send` would certainly return nothing. It costs ten times as much to ask it."""
        if (
            self._state is not QuicConnectionState.CONNECTED
            or not self._handshake_confirmed
            or self._close_pending
            or self._probe_pending
            or self._ping_pending
            or self._datagrams_pending
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._remote_preferred_address is not None
            or len(self._network_paths) != 1
        ):
            return False
        ack_at = self._loss.spaces[-1].ack_at
        if ack_at is not None and (ack_at <= now or now - self._acknowledged_at >= QUIET_S):
            return False
        path, data = self._network_paths[0], self._local_max_data
        if not path.is_validated or path.remote_challenges or data.used * 2 > data.value:
            return False
        for limit in (data, self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.value != limit.sent:
                return False
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                return False
        for stream in self._streams.values():
            sender, receiver, limit_bytes = stream.sender, stream.receiver, stream.max_stream_data_local
            if not sender.buffer_is_empty or sender.reset_pending or receiver.stop_pending:
                return False
            if receiver.highest_offset * 2 > limit_bytes or stream.max_stream_data_local_sent != limit_bytes:
                return False
        # Session tickets, and new keys.
        return bool(self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty)

    def handle_timer(self, now: float) -> None:
        """Handle the timer of `get_timer`."""
        self._now = now
        super().handle_timer(now)
        self._adapt_datagram_bytes()

    # ---------------------------------------------------------- PacketObserver

    def packet_acknowledged(self, packet: QuicSentPacket, now: float) -> None:
        """Account for a packet that arrived."""
        if packet.epoch is tls.Epoch.ONE_RTT:
            self._acknowledged_sent_at = max(self._acknowledged_sent_at, packet.sent_time or 0.0)
            self._has_judged = True
            self._loss_meter.acknowledged(now)
            self._black_hole.acknowledged(packet.packet_number, packet.sent_bytes)

    def packet_lost(self, packet: QuicSentPacket, now: float) -> None:
        """Account for a packet that is declared lost."""
        if packet.epoch is tls.Epoch.ONE_RTT:
            self._loss_meter.lost(now)
            self._black_hole.lost(packet.packet_number, packet.sent_bytes)

    def packet_expired(self, packet: QuicSentPacket) -> None:
        """Account for a packet that was not acknowledged within the probe timeout."""
        if packet.epoch is tls.Epoch.ONE_RTT:
            self._loss_meter.lost(self._now)
            self._black_hole.timed_out(packet.packet_number, packet.sent_bytes)
            self._expired[packet.packet_number] = None
            if len(self._expired) > MAX_EXPIRED:
                del self._expired[next(iter(self._expired))]

    # --------------------------------------------------------------- internals

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        # Only packets that were decrypted reach this: a third party cannot end the silence of the peer.
        self.silence.packet_received(context.time)
        return super()._payload_received(context, plain, crypto_frame_required=crypto_frame_required)

    def _ack_received(self, *, ack_rangeset: RangeSet, now: float, space: Any, **others: Any) -> None:
        if self._expired and space.is_application_data:
            # A late acknowledgement: the path has become slower, or the peer was busy. Nothing was lost.
            for number in [number for number in self._expired if number in ack_rangeset]:
                del self._expired[number]
                self._loss_meter.arrived_after_all()
        self._process_ack(ack_rangeset=ack_rangeset, now=now, space=space, **others)
        if self._watches and self._watches[0][0] <= self._acknowledged_sent_at:
            self._report_acknowledged(now, others["ack_delay"])
        self._adapt_datagram_bytes()

    def _report_acknowledged(self, now: float, ack_delay_s: float) -> None:
        rtt_s = now - self._acknowledged_sent_at
        if rtt_s - ack_delay_s >= self._loss._rtt_min:
            # As in RFC 9002 section 5.3: a delay that would make the path faster than it is was not one.
            rtt_s -= ack_delay_s
        while self._watches and self._watches[0][0] <= self._acknowledged_sent_at:
            self._acknowledged.append((self._watches.popleft()[1], rtt_s))

    def _adapt_datagram_bytes(self) -> None:
        if self._large_bytes == SMALLEST_MAX_DATAGRAM_SIZE or not self._handshake_confirmed:
            return
        if self._black_hole.is_black_hole():
            self.fall_back()
            return
        self._set_datagram_bytes(SMALLEST_MAX_DATAGRAM_SIZE if self._black_hole.is_probing else self._large_bytes)

    def _set_datagram_bytes(self, count: int) -> None:
        if count != self._max_datagram_size:
            self._max_datagram_size = count
            self._loss._pacer._max_datagram_size = count

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the certificate of the listener; None at the listener itself and before the handshake."""
        found: x509.Certificate | None = self.tls._peer_certificate
        return found
