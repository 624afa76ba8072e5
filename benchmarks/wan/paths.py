"""The paths between clouds: delay, jitter, loss, rate and MTU of each direction. Pure.

A `Path` decides when a packet arrives, or that it does not. Packets of a path keep their order, as in a queue of a router;
a change of the delay can only make a packet later than those before it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_QUEUE_S = 0.2
"""Longest time in seconds that a packet waits for the rate of a path; later ones are dropped."""

MIN_HEADER_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of one direction between two clouds."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """The delay is increased by a random time between 0 and this."""
    loss: float = 0.0
    """Share of lost packets, 0 to 1."""
    rate_bps: float = 0.0
    """Bits per second; 0: unlimited."""
    mtu: int = 0
    """Largest packet in bytes; 0: unlimited. Larger ones are dropped."""
    has_icmp: bool = False
    """Whether the sender of a packet that is too large is sent an ICMP message (RFC 1191)."""
    is_cut: bool = False


@dataclass(slots=True)
class Path:
    """One direction between two clouds. `random()` returns a number from 0 to 1."""

    conditions: Conditions
    random: Callable[[], float]
    counts: Counter[str] = field(default_factory=Counter)
    _free_at: float = 0.0
    _last_due: float = 0.0

    def change(self, conditions: Conditions) -> None:
        """Use other conditions for the packets from now on. Those under way arrive as they would have."""
        self.conditions = conditions

    def due(self, size: int, now: float) -> float | None:
        """Return when a packet of `size` bytes arrives, in seconds of `now`, or None if it is lost.

        The caller checks `is_too_large` before.
        """
        conditions, counts = self.conditions, self.counts
        if conditions.is_cut:
            counts["cut"] += 1
            return None
        if conditions.loss and self.random() < conditions.loss:
            counts["lost"] += 1
            return None
        sent_at = now
        if conditions.rate_bps:
            free_at = max(now, self._free_at)
            if free_at - now > MAX_QUEUE_S:
                counts["queue_full"] += 1
                return None
            sent_at = self._free_at = free_at + size * 8 / conditions.rate_bps
        due = sent_at + conditions.delay_s
        if conditions.jitter_s:
            due += conditions.jitter_s * self.random()
        if due < self._last_due and self._last_due - now <= conditions.delay_s + conditions.jitter_s + MAX_QUEUE_S:
            due = self._last_due
        self._last_due = due
        counts["packets"] += 1
        counts["bytes"] += size
        return due

    def is_too_large(self, size: int) -> bool:
        """Return whether the path drops packets of `size` bytes, and count the packet if it does."""
        mtu = self.conditions.mtu
        if not mtu or size <= mtu or self.conditions.is_cut:
            return False
        self.counts["too_large"] += 1
        return True


def fragmentation_needed(packet: bytes, mtu: int) -> bytes:
    """Return the ICMP message "fragmentation needed" (RFC 792, RFC 1191) that a router sends for `packet`.

    It comes from the destination of the packet: a router of the path would need an address of its own.
    """
    header_bytes = (packet[0] & 0x0F) * 4
    icmp = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + packet[: header_bytes + 8]
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, MIN_HEADER_BYTES + len(icmp), 0, 0, 64, 1, 0, packet[16:20], packet[12:16]
    )
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + icmp


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
