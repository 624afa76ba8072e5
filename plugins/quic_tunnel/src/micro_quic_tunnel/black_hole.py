"""Detects a path that no longer carries large datagrams (RFC 8899 section 4.3). Pure.

The handshake proves the datagram size of the path, which may shrink later: the route changes to one through a tunnel, and the
report of its router (ICMP) is lost or filtered. Large datagrams then vanish while small ones arrive. Two signs of it:

- A burst: many large packets are lost in succession, while small ones that were sent among them arrive.
- Timeouts: QUIC probes after a timeout. Small probes are answered, but no large packet is, again and again. An outage of the
  whole path counts as one timeout, however long it is.

Random loss can cause both, but rarely; the only consequence is that packets are smaller.
"""

from __future__ import annotations

BURST_PACKETS = 10
"""At a loss of 20 %, one of ten million large packets starts such a burst."""

TIMEOUTS = 3
"""They take about three times a probe timeout and a round trip: 1.5 s on a path of 150 ms."""


class BlackHoleDetector:
    """Judges the large packets of one connection, i.e. those of more than `small_bytes` bytes."""

    __slots__ = ("_first_lost", "_last_lost", "_lost", "_small_bytes", "_small_numbers", "_timeouts", "is_probing")

    def __init__(self, small_bytes: int) -> None:
        self.is_probing = False
        """Whether a large packet has timed out and nothing was acknowledged since: send small packets meanwhile."""
        self._small_bytes = small_bytes
        self._reset()

    def _reset(self) -> None:
        self._lost = self._timeouts = 0
        self._first_lost = self._last_lost = -1
        self._small_numbers: list[int] = []

    def acknowledged(self, number: int, size: int) -> None:
        """Account for a packet that arrived."""
        self.is_probing = False
        if size > self._small_bytes:
            self._reset()
        elif self._lost and len(self._small_numbers) < BURST_PACKETS:
            self._small_numbers.append(number)

    def lost(self, number: int, size: int) -> None:
        """Account for a packet that is declared lost."""
        if size > self._small_bytes:
            self._first_lost = number if not self._lost else min(self._first_lost, number)
            self._last_lost = max(self._last_lost, number)
            self._lost += 1

    def timed_out(self, number: int, size: int) -> None:
        """Account for a packet that was not acknowledged within the probe timeout."""
        if size > self._small_bytes:
            self.lost(number, size)
            if not self.is_probing:
                self.is_probing = True
                self._timeouts += 1

    def is_black_hole(self) -> bool:
        """Return whether the path no longer carries large datagrams."""
        if self._timeouts >= TIMEOUTS and not self.is_probing:
            return True
        has_arrived = any(self._first_lost < number < self._last_lost for number in self._small_numbers)
        return self._lost >= BURST_PACKETS and has_arrived
