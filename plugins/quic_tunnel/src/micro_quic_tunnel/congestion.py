"""The congestion control of aioquic, extended by an observer of acknowledged and lost packets.

aioquic reports the fate of each packet to its congestion control only, which is registered by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

PREFIX = "observed-"
"""Precedes the names `cubic` and `reno`."""


class PacketObserver(Protocol):
    """Receives the fate of each packet that counts for congestion control."""

    def packet_acknowledged(self, packet: QuicSentPacket, now: float) -> None:
        """Account for a packet that arrived."""
        ...

    def packet_lost(self, packet: QuicSentPacket, now: float) -> None:
        """Account for a packet that is declared lost."""
        ...

    def packet_expired(self, packet: QuicSentPacket) -> None:
        """Account for a packet that was not acknowledged within the probe timeout, or whose keys were discarded."""
        ...


class _Observed(QuicCongestionControl):
    observer: PacketObserver | None = None

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        if self.observer is not None:
            self.observer.packet_acknowledged(packet, now)
        super().on_packet_acked(now=now, packet=packet)  # type: ignore[safe-super]  # the next class implements it

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        packets = list(packets)
        if self.observer is not None:
            for packet in packets:
                self.observer.packet_lost(packet, now)
        super().on_packets_lost(now=now, packets=packets)  # type: ignore[safe-super]  # as above

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        packets = list(packets)
        if self.observer is not None:
            for packet in packets:
                self.observer.packet_expired(packet)
        super().on_packets_expired(packets=packets)  # type: ignore[safe-super]  # as above


class ObservedCubic(_Observed, CubicCongestionControl):
    """CUBIC (RFC 9438) with an observer."""


class ObservedReno(_Observed, RenoCongestionControl):
    """Reno (RFC 9002 appendix B) with an observer."""


register_congestion_control(f"{PREFIX}cubic", ObservedCubic)
register_congestion_control(f"{PREFIX}reno", ObservedReno)
