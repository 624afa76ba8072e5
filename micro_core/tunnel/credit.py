"""Credit-based flow control of tunnel sessions, and the congestion window of bulk transfers. Pure.

The layer below has no backpressure of its own: the `drain` of aioquic never blocks, and its receiver extends its window
without asking. The bytes in flight are therefore counted here, per session and per link.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from micro_core.contract.errors import Malformed

MIN_BULK_WINDOW_BYTES = 16 * 1024
MAX_BULK_WINDOW_BYTES = 8 * 1024 * 1024
INITIAL_BULK_WINDOW_BYTES = 32 * 1024

TARGET_DELAY_S = 0.002
"""Queueing delay that a bulk transfer may add. RFC 6817 allows up to 100 ms, but a call here takes less than 1 ms."""

BASE_DELAY_WINDOW_S = 60.0
"""The minimum delay within this time counts as the delay of the path without queues."""


@dataclass(slots=True)
class SendCredit:
    """Number of bytes that may still be sent. Invariant: 0 <= available <= window."""

    available: int
    window: int

    def use(self, wanted: int) -> int:
        """Use up to `wanted` bytes of credit and return how many were available."""
        used = min(wanted, self.available)
        self.available -= used
        return used

    def grant(self, count: int) -> None:
        """Add `count` bytes that the peer has consumed. Raises Malformed when the peer grants more than was sent."""
        if count <= 0 or self.available + count > self.window:
            raise Malformed(f"a grant of {count} bytes exceeds the window of {self.window}")
        self.available += count


@dataclass(slots=True)
class ReceiveCredit:
    """Number of bytes that the peer may still send. Consumed bytes are granted again in steps of at least `step` bytes."""

    window: int
    step: int
    outstanding: int = 0
    """Bytes received and not yet granted again. Invariant: 0 <= outstanding <= window."""
    _consumed: int = 0

    def receive(self, count: int) -> None:
        """Account for `count` received bytes. Raises Malformed when the peer exceeded its credit."""
        self.outstanding += count
        if self.outstanding > self.window:
            raise Malformed(f"{self.outstanding} bytes in flight exceed the window of {self.window}")

    def consume(self, count: int) -> int:
        """Account for `count` bytes that the owner has consumed. Return how many to grant now; 0 means not yet."""
        self._consumed += count
        if self._consumed < self.step:
            return 0
        granted, self._consumed = self._consumed, 0
        self.outstanding -= granted
        return granted


@dataclass(slots=True)
class BulkWindow:
    """Limits the bytes of bulk data in flight on a link. Delay-based, so that calls keep their latency (RFC 6817).

    Each acknowledgement shows how long its bytes took to arrive. The window grows while this delay is less than the
    minimum delay plus `target_s`, and shrinks otherwise. A transfer thus keeps a short queue at any speed of the path.
    """

    target_s: float = TARGET_DELAY_S
    window: float = INITIAL_BULK_WINDOW_BYTES
    in_flight: int = 0
    _sent: int = 0
    _acknowledged: int = 0
    _sent_at: deque[tuple[int, float]] = field(default_factory=deque)
    """(bytes sent in total, time) after each frame that is not acknowledged yet."""
    _minima: deque[tuple[float, float]] = field(default_factory=deque)
    """(time, delay), both increasing: the first is the minimum of the current window."""

    def available_bytes(self) -> int:
        """Return how many bytes may be sent now."""
        return max(0, int(self.window) - self.in_flight)

    def sent(self, count: int, now: float) -> None:
        """Account for `count` bytes handed to the link."""
        self._sent += count
        self.in_flight += count
        self._sent_at.append((self._sent, now))

    def acknowledged(self, count: int, now: float) -> None:
        """Account for `count` bytes that arrived at the other end, and adjust the window."""
        count = min(count, self.in_flight)
        self.in_flight -= count
        self._acknowledged += count
        sent_at = None
        while self._sent_at and self._sent_at[0][0] <= self._acknowledged:
            sent_at = self._sent_at.popleft()[1]
        if sent_at is not None:
            self._adjust(count, now - sent_at, now)

    def _adjust(self, count: int, delay_s: float, now: float) -> None:
        while self._minima and self._minima[-1][1] >= delay_s:
            self._minima.pop()
        self._minima.append((now, delay_s))
        while now - self._minima[0][0] > BASE_DELAY_WINDOW_S:
            self._minima.popleft()
        queueing_s = delay_s - self._minima[0][1]
        off_target = max(-1.0, min(1.0, (self.target_s - queueing_s) / self.target_s))
        self.window += off_target * count * (0.5 if off_target > 0 else 1.0)
        self.window = max(MIN_BULK_WINDOW_BYTES, min(MAX_BULK_WINDOW_BYTES, self.window))
