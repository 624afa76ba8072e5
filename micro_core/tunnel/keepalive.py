"""Measures a link with pings, and detects a peer that does not answer.

One end pings: the one that dialled. Its pings report what it has measured, so one exchange per interval serves both ends, and
a calm link costs half as much. The other end pings when the link is new, and when the pings of its peer are missing.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.loop_watch import LoopWatch
from micro_core.tunnel.measure import SILENT_AFTER_KEEPALIVES, LinkQuality

UNSETTLED_FACTOR = 0.5
"""Interval between two pings while the round trip may have changed, as a multiple of the usual one."""

RETRY_FACTOR = 0.25
"""Interval between two checks whether a link is suspect, as a multiple of the usual interval."""

MIN_DELAY_FACTOR = 0.001
"""Shortest delay of the timer, as a multiple of the usual interval: rounding may leave something due now that is judged later."""

ALIGN_FACTOR = 0.14
"""By how much the timer may be earlier or later to run together with those of other links, as a multiple of the interval."""

MIN_RELEVANT_LAG_S = 0.001
"""Timers of an idle event loop are late by up to this time, which does not delay answers."""


class PingedLink(Protocol):
    """What the keepalive needs of its link."""

    def send_ping(self, token: int, measured_s: float | None) -> None:
        """Send a ping that reports the round trip that was measured last, if it was not reported before."""
        ...

    def peer_measured(self) -> None:
        """Note that the first round trip is known. Called once."""
        ...

    def peer_suspect(self, is_suspect: bool) -> None:
        """Note that the peer may be unreachable, or that something has arrived from it again."""
        ...

    def peer_dead(self, silent_s: float) -> None:
        """End the link: nothing arrived for `silent_s` seconds."""
        ...


class Keepalive:
    """The timer of one link, and the quality that its pings measure.

    `interval_s` is the interval of the pings, jittered by a tenth. A peer from which nothing arrived for `dead_after_missed`
    intervals is dead.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        dead_after_missed: int,
        dialed: bool,
        environment: Environment,
        loop_watch: LoopWatch,
        link: PingedLink,
    ) -> None:
        self.quality = LinkQuality(interval_s, dead_after_missed)
        self._interval_s = interval_s
        self._dead_after_missed = dead_after_missed
        self._is_pinger = dialed
        self._environment = environment
        self._loop_watch = loop_watch
        self._link = link
        self._ping_at = 0.0
        self._due_at = 0.0
        self._is_measured = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Send the first ping, which both ends do, and start the timer. The caller has set `quality.last_received_at`."""
        self._ping(self._environment.clock.now())
        self._wake()

    def stop(self) -> None:
        """Send no more pings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def received(self, now: float) -> None:
        """Account for data of the peer, whatever it is."""
        self.quality.last_received_at = now
        if self.quality.is_suspect:
            self.quality.is_suspect = False
            self._link.peer_suspect(False)

    def transport_silent(self, is_silent: bool, now: float) -> None:
        """Account for what a driver reports that sees acknowledgements: nothing arrives any more, or something has arrived."""
        if is_silent is self.quality.is_suspect:
            return
        if is_silent:
            self.quality.is_suspect = True
            self._environment.counters.add("tunnel_links_suspect")
        else:
            self.quality.packet_received(now)
        self._link.peer_suspect(is_silent)

    def lag_s(self) -> float:
        """Return how long this end may delay an answer because its event loop is busy, in seconds."""
        lag_s = self._loop_watch.lag_s()
        return lag_s if lag_s > MIN_RELEVANT_LAG_S else 0.0

    def pong_received(self, token: int, now: float, peer_lag_s: float) -> None:
        """Account for an answer of the peer, which may have delayed it by `peer_lag_s`."""
        was_settled = self.quality.is_settled
        if not self.quality.pong_received(token, now, peer_lag_s + self.lag_s()):
            return
        if was_settled and not self.quality.is_settled:
            # The path may have changed: confirm it sooner.
            self._ping_at = min(self._ping_at, now + self._next_interval_s())
            self._schedule(now)
        self._report_measured()

    def ping_received(self, measured_s: float | None) -> None:
        """Account for a ping of the peer, which reports a round trip that it has measured, or None."""
        if measured_s is not None:
            self.quality.peer_measured(measured_s)
            self._report_measured()

    # --------------------------------------------------------------- internals

    def _wake(self) -> None:
        now = self._environment.clock.now()
        if self._timer is not None:
            self._loop_watch.timer_ran(self._due_at)
            self._timer = None
        quality = self.quality
        if quality.is_dead(now):
            self._environment.counters.add("tunnel_links_dead")
            self._link.peer_dead(self._interval_s * self._dead_after_missed)
            return
        if quality.check_suspect(now, self.lag_s()):
            self._environment.counters.add("tunnel_links_suspect")
            self._link.peer_suspect(True)
        if now >= self._ping_at and (self._is_pinger or quality.is_silent(now)):
            self._ping(now)
        self._schedule(now)

    def _ping(self, now: float) -> None:
        token = self._environment.random.getrandbits(63)
        self.quality.ping_sent(token, now)
        self._link.send_ping(token, self.quality.pop_sample())
        interval_s = self._next_interval_s()
        shift_s = ALIGN_FACTOR * interval_s
        self._ping_at = self._loop_watch.near(now + interval_s, earlier_s=shift_s, later_s=shift_s)

    def _next_interval_s(self) -> float:
        factor = 1.0 if self.quality.is_settled else UNSETTLED_FACTOR
        return self._interval_s * factor * self._environment.random.uniform(0.9, 1.1)

    def _schedule(self, now: float) -> None:
        """Set the timer to the next ping that is due, or earlier to judge an unanswered one."""
        quality, ping_at = self.quality, self._ping_at
        if not self._is_pinger:
            silent_at = quality.last_received_at + SILENT_AFTER_KEEPALIVES * self._interval_s
            # Usually, a ping has arrived by then. If not, the next check is at the exact time.
            silent_at = self._loop_watch.near(silent_at, earlier_s=2 * ALIGN_FACTOR * self._interval_s)
            ping_at = max(ping_at, silent_at)
        due_at = min(ping_at, quality.dead_at)
        suspect_at = quality.suspect_at
        if suspect_at is not None:
            # A lagging loop postpones the decision: try again later.
            due_at = min(due_at, max(suspect_at, now + RETRY_FACTOR * self._interval_s))
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(MIN_DELAY_FACTOR * self._interval_s, due_at - now)
        self._due_at = now + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _report_measured(self) -> None:
        if not self._is_measured:
            self._is_measured = True
            self._link.peer_measured()
