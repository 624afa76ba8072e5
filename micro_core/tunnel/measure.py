"""Measured quality of a link: round-trip time and variance (RFC 6298), loss of pings, queueing delay, liveness.

Pure: callers pass `now` in seconds. Each ping carries a token, and only the answer with that token counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

ALPHA = 1 / 8
BETA = 1 / 4
"""Gains of the smoothed round-trip time and of its variance, RFC 6298 section 2.3."""

LOSS_GAIN = 1 / 16
"""Weight of one ping in the loss estimate."""

MAX_OUTSTANDING = 16
"""Maximum number of unanswered pings; older ones count as lost."""

MIN_RTT_WINDOW_S = 30.0
"""The minimum round-trip time within this time counts as that of the path without queues."""


@dataclass(slots=True)
class LinkQuality:
    """The measurements of one link."""

    keepalive_s: float = 1.0
    dead_after_missed: int = 3
    rtt_s: float | None = None
    rtt_variance_s: float | None = None
    loss: float = 0.0
    queue_delay_s: float = 0.0
    last_received_at: float = 0.0
    """When any data last arrived. Set by the owner."""
    _outstanding: dict[int, float] = field(default_factory=dict)
    _minima: deque[tuple[float, float]] = field(default_factory=deque)
    _checked_at: float | None = None

    def ping_sent(self, token: int, now: float) -> None:
        """Account for a ping that was sent. Pings that have been unanswered for too long count as lost."""
        timeout_s = self.keepalive_s * self.dead_after_missed
        for old, sent_at in list(self._outstanding.items()):
            if now - sent_at > timeout_s or len(self._outstanding) >= MAX_OUTSTANDING:
                del self._outstanding[old]
                self.loss += LOSS_GAIN * (1.0 - self.loss)
        self._outstanding[token] = now

    def pong_received(self, token: int, now: float) -> bool:
        """Account for an answer. Return False when the ping was never sent, was answered already, or timed out."""
        sent_at = self._outstanding.pop(token, None)
        if sent_at is None:
            return False
        self.loss -= LOSS_GAIN * self.loss
        self._sample(now - sent_at, now)
        return True

    def is_dead(self, now: float) -> bool:
        """Return whether nothing arrived for `dead_after_missed` keepalives. Call this once per keepalive.

        If this is called much too late, then this process itself was suspended (a blocked event loop, a sleeping
        laptop). The silence is then no sign of a lost peer, and its timeout starts again.
        """
        if self._checked_at is not None and now - self._checked_at > 2 * self.keepalive_s:
            self.last_received_at = max(self.last_received_at, now)
        self._checked_at = now
        return now - self.last_received_at >= self.keepalive_s * self.dead_after_missed

    def _sample(self, rtt_s: float, now: float) -> None:
        if self.rtt_s is None or self.rtt_variance_s is None:
            self.rtt_s, self.rtt_variance_s = rtt_s, rtt_s / 2
        else:
            self.rtt_variance_s += BETA * (abs(self.rtt_s - rtt_s) - self.rtt_variance_s)
            self.rtt_s += ALPHA * (rtt_s - self.rtt_s)
        while self._minima and self._minima[-1][1] >= rtt_s:
            self._minima.pop()
        self._minima.append((now, rtt_s))
        while now - self._minima[0][0] > MIN_RTT_WINDOW_S:
            self._minima.popleft()
        self.queue_delay_s += ALPHA * (rtt_s - self._minima[0][1] - self.queue_delay_s)
