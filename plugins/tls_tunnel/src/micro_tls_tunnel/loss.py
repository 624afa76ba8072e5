"""The share of sent TCP segments that are lost, from what the Linux kernel counts. Other systems do not count enough.

The pings of core cannot measure it: TCP repairs losses, so a lost segment delays them only.
"""

from __future__ import annotations

import math
import socket as sockets
import struct
import sys

TIME_CONSTANT_S = 10.0
"""Segments count less the longer ago they were sent: after this time, 37 % of a segment."""

MIN_SEGMENTS = 32.0
"""Segments count for longer on a calm link, which sends a few per second, so that at least this many are considered. A single
lost segment is then about 3 %."""

SAMPLE_S = 1.0
"""Minimum time between two queries of the kernel."""

INFO_BYTES = 220
"""Size of the part of `struct tcp_info` that is needed. Linux has it since 4.19."""

_COUNTS = struct.Struct("=100xI52xI56xI")
"""tcpi_total_retrans, tcpi_data_segs_out and tcpi_dsack_dups of `struct tcp_info` (linux/tcp.h)."""


class LossMeter:
    """The loss of the segments that one end of a connection sends. Pure: callers pass `now` in seconds."""

    def __init__(self) -> None:
        self._sent = MIN_SEGMENTS
        self._lost = 0.0
        self._counts = (0, 0)
        """Lost segments and sent segments since the connection was established."""
        self._at: float | None = None

    def is_due(self, now: float) -> bool:
        """Return whether the kernel should be queried again."""
        return self._at is None or now - self._at >= SAMPLE_S

    def add(self, info: bytes, now: float) -> None:
        """Account for the counts of the kernel, which start at 0 with the connection."""
        retransmitted, sent, unnecessary = _COUNTS.unpack_from(info)
        # A segment that the peer received twice was not lost (RFC 2883).
        lost = max(0, retransmitted - unnecessary)
        if self._at is not None and now > self._at:
            rest = math.exp((self._at - now) / TIME_CONSTANT_S)
            rest = max(rest, min(1.0, MIN_SEGMENTS / (self._sent + sent - self._counts[1])))
            self._sent *= rest
            self._lost *= rest
        self._sent += sent - self._counts[1]
        # The peer reports a duplicate later than the retransmission was counted, so the difference can be negative.
        self._lost = max(0.0, self._lost + lost - self._counts[0])
        self._counts, self._at = (lost, sent), now

    def share(self) -> float:
        """Return the share of lost segments, 0 to 1."""
        return min(1.0, self._lost / self._sent)


def tcp_info(socket: sockets.socket) -> bytes | None:
    """Return the counts of the kernel for a connected socket, or None if this system does not have them."""
    if sys.platform != "linux":
        return None
    try:
        info = socket.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, INFO_BYTES)
    except OSError:
        # The socket is closed.
        return None
    return info if len(info) >= INFO_BYTES else None
