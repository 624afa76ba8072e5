"""Measured quality of a link: round-trip time, queueing delay, loss of pings, liveness.

Pure: callers pass `now` in seconds. Each ping carries a token, and only the answer with that token counts.

Two values describe the round trip. `rtt_s` is smoothed as in RFC 6298 and is for display. `path_rtt_s` is for routing: the
smallest of the last few samples. It follows a path that became slower after a few pings, a single late answer does not
move it, and whatever is above it is queueing delay. So a slower path is never counted as a queue, too.

A sample is late by the time for which the event loops of both ends were busy. That time is known only as an upper
bound, so the round trip lies between the sample minus this bound and the sample. It is recorded as
the value in that interval that is closest to the present `path_rtt_s`: a node under load keeps what it has
measured before, unless the path has changed by more than the load can explain.
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

PATH_SAMPLES = 4
"""Number of samples of which `path_rtt_s` is the smallest. With 20 % loss, repairs delay a third of the answers: four late
ones in succession are rare, three are not."""

QUEUE_SAMPLES = 3
"""The queueing delay is estimated from the median of this many samples, so that one late answer does not count."""

MAX_RTT_S = 60.0
"""Larger samples, which only a peer could report, count as this."""

UNSETTLED_CHANGE = 0.25
UNSETTLED_CHANGE_S = 0.002
"""The round trip may have changed if a sample differs from `path_rtt_s` by more than both. The next pings then follow sooner."""

SUSPECT_AFTER_KEEPALIVES = 1.25
"""A link is suspect when a ping is unanswered for this many keepalive intervals and nothing else arrived meanwhile."""

SILENT_AFTER_KEEPALIVES = 1.25
"""An end that leaves the pings to the other one sends one itself after a silence of this many keepalive intervals."""

MAX_REPORT_AGE_KEEPALIVES = 1.5
"""A sample older than this many keepalive intervals is not reported to the peer. If the ends take turns, it is older than the last
sample of the peer, and would hide a change of the path."""

SUSPECT_AFTER_SILENT_KEEPALIVES = 0.5
"""A link that was that silent is suspect when the ping that follows is unanswered for this many keepalive intervals. The
evidence is the same: an expected ping and an expected answer are missing."""


@dataclass(slots=True)
class LinkQuality:
    """The measurements of one link."""

    keepalive_s: float = 1.0
    dead_after_missed: int = 3
    rtt_s: float | None = None
    rtt_variance_s: float | None = None
    path_rtt_s: float | None = None
    loss: float = 0.0
    queue_delay_s: float = 0.0
    last_received_at: float = 0.0
    """When any data last arrived. Set by `data_received`, and by the owner at the start."""
    is_suspect: bool = False
    """Whether the peer may be unreachable. Set by `check_suspect` and by the owner, who resets it when anything arrives."""
    _outstanding: dict[int, float] = field(default_factory=dict)
    _samples: deque[float] = field(default_factory=lambda: deque(maxlen=PATH_SAMPLES))
    _unexplained: deque[float] = field(default_factory=lambda: deque(maxlen=PATH_SAMPLES))
    """Round trips that were longer than before, either on the path or because the peer is busy."""
    _unreported_s: float | None = None
    _unreported_at: float = 0.0
    _asked_at: float | None = None
    """When the first ping was sent after which nothing has arrived yet."""
    _answer_within_s: float = 0.0
    _checked_at: float | None = None

    def ping_sent(self, token: int, now: float) -> None:
        """Account for a ping that was sent. Pings that have been unanswered for too long count as lost."""
        timeout_s = self.keepalive_s * self.dead_after_missed
        for old, sent_at in list(self._outstanding.items()):
            if now - sent_at > timeout_s or len(self._outstanding) >= MAX_OUTSTANDING:
                del self._outstanding[old]
                self.loss += LOSS_GAIN * (1.0 - self.loss)
        self._outstanding[token] = now
        if self._asked_at is None or self.last_received_at >= self._asked_at:
            intervals = SUSPECT_AFTER_SILENT_KEEPALIVES if self.is_silent(now) else SUSPECT_AFTER_KEEPALIVES
            usual_s = (self.rtt_s or 0.0) + 4 * (self.rtt_variance_s or 0.0)
            self._asked_at, self._answer_within_s = now, max(intervals * self.keepalive_s, usual_s)

    def pong_received(self, token: int, now: float, lag_s: float = 0.0) -> bool:
        """Account for an answer. Return False when the ping was never sent, was answered already, or timed out.

        `lag_s` is the longest time for which the event loops of both ends, together, may have delayed the answer.
        """
        sent_at = self._outstanding.pop(token, None)
        if sent_at is None:
            return False
        self.loss -= LOSS_GAIN * self.loss
        for rtt_s in (*self._unexplained, now - sent_at):
            self._sampled(self._likely(rtt_s, lag_s), now)
        self._unexplained.clear()
        return True

    def ping_acknowledged(self, token: int, rtt_s: float, now: float, lag_s: float = 0.0) -> bool:
        """Account for a ping that the transport of the peer has acknowledged after `rtt_s`. Return False as `pong_received`.

        `lag_s` is the lag of this end. That of the peer is not known. If the round trip is longer than before, the next
        answer of the peer, which reports its lag, decides whether the path has changed.
        """
        if self._outstanding.pop(token, None) is None:
            return False
        self.loss -= LOSS_GAIN * self.loss
        sample_s = self._likely(rtt_s, lag_s)
        if self.path_rtt_s is None or (sample_s > self.path_rtt_s and not self._agrees(sample_s)):
            self._unexplained.append(sample_s)
        else:
            self._sampled(sample_s, now)
        return True

    def data_received(self, now: float) -> None:
        """Account for data of the peer, whatever it is. This process has not been blocked, either."""
        self.last_received_at = self._checked_at = now

    def packet_received(self, now: float) -> None:
        """Account for a packet without data, which ends the suspicion. The time for the answer to a ping starts again."""
        self.is_suspect = False
        if self._asked_at is not None and self.last_received_at < self._asked_at:
            self._asked_at = max(self._asked_at, now)

    def peer_measured(self, rtt_s: float) -> None:
        """Account for a sample that the peer has measured, whose pings serve both ends."""
        self._add(min(MAX_RTT_S, rtt_s))

    def pop_sample(self, now: float) -> float | None:
        """Return the last sample of this end if it is recent and was not returned before: the next ping reports it to the peer."""
        sample_s, self._unreported_s = self._unreported_s, None
        return sample_s if now - self._unreported_at <= MAX_REPORT_AGE_KEEPALIVES * self.keepalive_s else None

    @property
    def is_settled(self) -> bool:
        """Whether the last sample agrees with `path_rtt_s`. If not, the path may have changed: measure sooner."""
        return self.path_rtt_s is not None and not self._unexplained and self._agrees(self._samples[-1])

    def is_silent(self, now: float) -> bool:
        """Return whether nothing has arrived for so long that a ping of the peer must be missing."""
        return now - self.last_received_at >= SILENT_AFTER_KEEPALIVES * self.keepalive_s

    def is_dead(self, now: float) -> bool:
        """Return whether nothing arrived for `dead_after_missed` keepalives and a round trip.

        Call this at least every two keepalives while nothing arrives.

        If nothing was received and this was not called for two keepalives, then this process itself did not run (a blocked
        event loop). The silence is then no sign of a lost peer, and its timeout starts again.
        """
        if self._checked_at is not None and now - self._checked_at > 2 * self.keepalive_s:
            self.last_received_at = max(self.last_received_at, now)
        self._checked_at = now
        return now >= self.dead_at

    @property
    def dead_at(self) -> float:
        """When the peer is dead unless something arrives. An answer takes a round trip, of which up to a keepalive counts."""
        usual_s = min(self.keepalive_s, self.rtt_s or 0.0)
        return self.last_received_at + self.keepalive_s * self.dead_after_missed + usual_s

    @property
    def suspect_at(self) -> float | None:
        """When the link becomes suspect unless something arrives. None if no ping is unanswered, or it is suspect already."""
        if self.is_suspect or self._asked_at is None or self.last_received_at >= self._asked_at:
            return None
        return self._asked_at + self._answer_within_s

    def check_suspect(self, now: float, lag_s: float) -> bool:
        """Return whether the link has just become suspect. A lag of this end's event loop delays it by as much."""
        suspect_at = self.suspect_at
        if suspect_at is None or now < suspect_at + lag_s:
            return False
        self.is_suspect = True
        return True

    def _agrees(self, sample_s: float) -> bool:
        assert self.path_rtt_s is not None
        change_s = abs(sample_s - self.path_rtt_s)
        return change_s <= UNSETTLED_CHANGE_S or change_s <= UNSETTLED_CHANGE * self.path_rtt_s

    def _sampled(self, sample_s: float, now: float) -> None:
        self._unreported_s, self._unreported_at = sample_s, now
        self._add(sample_s)

    def _likely(self, sample_s: float, lag_s: float) -> float:
        if self.path_rtt_s is None:
            return sample_s
        return min(sample_s, max(sample_s - lag_s, self.path_rtt_s))

    def _add(self, rtt_s: float) -> None:
        if self.rtt_s is None or self.rtt_variance_s is None:
            self.rtt_s, self.rtt_variance_s = rtt_s, rtt_s / 2
        else:
            self.rtt_variance_s += BETA * (abs(self.rtt_s - rtt_s) - self.rtt_variance_s)
            self.rtt_s += ALPHA * (rtt_s - self.rtt_s)
        self._samples.append(rtt_s)
        path_rtt_s = min(self._samples)
        if self.path_rtt_s is not None:
            # The additional delay was taken for a queue until now. It is the path itself.
            self.queue_delay_s = max(0.0, self.queue_delay_s - max(0.0, path_rtt_s - self.path_rtt_s))
        self.path_rtt_s = path_rtt_s
        latest = sorted(list(self._samples)[-QUEUE_SAMPLES:])
        above_s = latest[(len(latest) - 1) // 2] - path_rtt_s
        self.queue_delay_s += ALPHA * (max(0.0, above_s) - self.queue_delay_s)
