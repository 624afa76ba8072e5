"""Credit of tunnel sessions, and the window of bulk transfers. Pure.

The layer below has no backpressure of its own (aioquic's `drain` never blocks and its receiver extends its window by itself), so
what may be under way is counted here: per session and per link, in bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from micro_core.contract.errors import Malformed

MIN_BULK_WINDOW_BYTES = 16 * 1024
MAX_BULK_WINDOW_BYTES = 8 * 1024 * 1024
START_BULK_WINDOW_BYTES = 32 * 1024

TARGET_DELAY_S = 0.002
"""Queueing that a bulk transfer may add. RFC 6817 allows up to 100 ms; calls here take less than one."""

BASE_WINDOW_S = 60.0
"""The smallest delay of this time is the path without our own queue."""


@dataclass(slots=True)
class SendCredit:
    """What may still be sent. Invariant: 0 <= available <= window."""

    available: int
    window: int

    def take(self, wanted: int) -> int:
        """Use up to `wanted` bytes; returns how many."""
        taken = min(wanted, self.available)
        self.available -= taken
        return taken

    def grant(self, count: int) -> None:
        """The peer has consumed `count`; raises Malformed for more than was ever sent."""
        if count <= 0 or self.available + count > self.window:
            raise Malformed(f"a grant of {count} bytes beyond the window of {self.window}")
        self.available += count


@dataclass(slots=True)
class ReceiveCredit:
    """What the peer may still send. `step` is how much is consumed before it is granted again."""

    window: int
    step: int
    outstanding: int = 0
    """Received and not granted again. Invariant: 0 <= outstanding <= window."""
    _consumed: int = 0

    def receive(self, count: int) -> None:
        """`count` bytes arrived; raises Malformed when they were not the peer's to send."""
        self.outstanding += count
        if self.outstanding > self.window:
            raise Malformed(f"{self.outstanding} bytes under way within a window of {self.window}")

    def consume(self, count: int) -> int:
        """The owner has taken `count`; returns what is to be granted now, 0 for not yet."""
        self._consumed += count
        if self._consumed < self.step:
            return 0
        granted, self._consumed = self._consumed, 0
        self.outstanding -= granted
        return granted


@dataclass(slots=True)
class BulkWindow:
    """How much bulk may be under way on a link: delay-based, so that small calls keep their latency (RFC 6817).

    Every acknowledgement tells how long its bytes took to arrive. Above the smallest such time plus `target_s` the window
    shrinks, below it grows; a transfer thus keeps a short queue whatever the path's speed.
    """

    target_s: float = TARGET_DELAY_S
    window: float = START_BULK_WINDOW_BYTES
    in_flight: int = 0
    _sent: int = 0
    _granted: int = 0
    _marks: deque[tuple[int, float]] = field(default_factory=deque)
    _bases: deque[tuple[float, float]] = field(default_factory=deque)

    def room(self) -> int:
        """Bytes that may be sent now."""
        return max(0, int(self.window) - self.in_flight)

    def sent(self, count: int, now: float) -> None:
        self._sent += count
        self.in_flight += count
        self._marks.append((self._sent, now))

    def granted(self, count: int, now: float) -> None:
        """`count` bytes of bulk have arrived at the far end."""
        count = min(count, self.in_flight)
        self.in_flight -= count
        self._granted += count
        sent_at = None
        while self._marks and self._marks[0][0] <= self._granted:
            sent_at = self._marks.popleft()[1]
        if sent_at is not None:
            self._adjust(count, now - sent_at, now)

    def _adjust(self, count: int, delay_s: float, now: float) -> None:
        while self._bases and self._bases[-1][1] >= delay_s:
            self._bases.pop()
        self._bases.append((now, delay_s))
        while now - self._bases[0][0] > BASE_WINDOW_S:
            self._bases.popleft()
        queueing_s = delay_s - self._bases[0][1]
        off_target = max(-1.0, min(1.0, (self.target_s - queueing_s) / self.target_s))
        self.window += off_target * count * (0.5 if off_target > 0 else 1.0)
        self.window = max(MIN_BULK_WINDOW_BYTES, min(MAX_BULK_WINDOW_BYTES, self.window))
