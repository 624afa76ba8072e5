"""What is known of a link's quality: round trip and its variance (RFC 6298), loss of pings, queueing, signs of life.

Pure: callers pass `now` in seconds. Each ping carries a token, and only its own answer counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

ALPHA = 1 / 8
BETA = 1 / 4
"""Gains of the smoothed round trip and its variance, RFC 6298 section 2.3."""

LOSS_GAIN = 1 / 16
"""Weight of one ping in the loss estimate."""

MAX_OUTSTANDING = 16
"""Pings remembered; older ones count as lost."""

MIN_WINDOW_S = 30.0
"""The shortest round trip of this time is the path without queues."""


@dataclass(slots=True)
class LinkMeasure:
    """The figures of one link."""

    keepalive_s: float = 1.0
    dead_after_missed: int = 3
    rtt_s: float | None = None
    rtt_variance_s: float | None = None
    loss: float = 0.0
    queue_delay_s: float = 0.0
    last_heard_at: float = 0.0
    _outstanding: dict[int, float] = field(default_factory=dict)
    _minima: deque[tuple[float, float]] = field(default_factory=deque)
    _checked_at: float | None = None

    def ping_sent(self, token: int, now: float) -> None:
        """A ping has gone out; those long unanswered count as lost."""
        patience_s = self.keepalive_s * self.dead_after_missed
        for old, sent_at in list(self._outstanding.items()):
            if now - sent_at > patience_s or len(self._outstanding) >= MAX_OUTSTANDING:
                del self._outstanding[old]
                self.loss += LOSS_GAIN * (1.0 - self.loss)
        self._outstanding[token] = now

    def pong_received(self, token: int, now: float) -> bool:
        """The answer to a ping; False for one that was never sent, was answered, or came too late."""
        sent_at = self._outstanding.pop(token, None)
        if sent_at is None:
            return False
        self.loss -= LOSS_GAIN * self.loss
        self._sample(now - sent_at, now)
        return True

    def heard(self, now: float) -> None:
        """Anything at all arrived."""
        self.last_heard_at = now

    def is_dead(self, now: float) -> bool:
        """Nothing was heard for `dead_after_missed` keepalives, while this side was awake to hear it.

        Called once a keepalive. A caller that comes much too late was itself asleep (a busy loop, a suspended
        laptop): the silence of that time says nothing about the peer, which gets its whole patience again.
        """
        if self._checked_at is not None and now - self._checked_at > 2 * self.keepalive_s:
            self.last_heard_at = max(self.last_heard_at, now)
        self._checked_at = now
        return now - self.last_heard_at >= self.keepalive_s * self.dead_after_missed

    def _sample(self, rtt_s: float, now: float) -> None:
        if self.rtt_s is None or self.rtt_variance_s is None:
            self.rtt_s, self.rtt_variance_s = rtt_s, rtt_s / 2
        else:
            self.rtt_variance_s += BETA * (abs(self.rtt_s - rtt_s) - self.rtt_variance_s)
            self.rtt_s += ALPHA * (rtt_s - self.rtt_s)
        while self._minima and self._minima[-1][1] >= rtt_s:
            self._minima.pop()
        self._minima.append((now, rtt_s))
        while now - self._minima[0][0] > MIN_WINDOW_S:
            self._minima.popleft()
        self.queue_delay_s += ALPHA * (rtt_s - self._minima[0][1] - self.queue_delay_s)
