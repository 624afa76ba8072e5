"""Measures a link with pings, and detects a peer that does not answer.

Each ping reports what its sender has measured, so one exchange per interval serves both ends, and a calm link costs half as
much. Both ends ping when the link is new, and when the pings of the peer are missing. Otherwise:

- If the driver reports acknowledgements, the ends take turns. The acknowledgement, which the protocol of the link sends in any
  case, is the answer to the ping: it costs the other end no frame, and is not acknowledged itself. If the round trip is longer
  than before, the next ping asks for an answer that reports for how long the event loop of the peer may have delayed it.
- If not, the end that dialled pings, and the other one answers.
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


TAKES_TURNS = 1 << 63
"""Bit of the token of a ping whose sender takes turns with its peer if that does so, too."""

ACKNOWLEDGED = 1 << 62
"""Bit of the token of a ping whose sender needs no answer but the acknowledgement. Nodes that do not know these bits set none of
them, and answer all pings."""


class PingedLink(Protocol):
    """What the keepalive needs of its link."""

    def send_ping(self, token: int, measured_s: float | None) -> None:
        """Send a ping that reports the round trip that was measured last, if it was not reported before.

        If the token contains `ACKNOWLEDGED`, call `ping_acknowledged` of the keepalive later.
        """
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
    intervals is dead. `sees_acknowledgements` is whether `ping_acknowledged` is called.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        dead_after_missed: int,
        dialed: bool,
        sees_acknowledgements: bool,
        environment: Environment,
        loop_watch: LoopWatch,
        link: PingedLink,
    ) -> None:
        self.quality = LinkQuality(interval_s, dead_after_missed)
        self._interval_s = interval_s
        self._dead_after_missed = dead_after_missed
        self._dialed = dialed
        self._sees_acknowledgements = sees_acknowledgements
        self._takes_turns = False
        """Whether both ends see acknowledgements. It is known from a ping of the peer."""
        self._environment = environment
        self._loop_watch = loop_watch
        self._link = link
        self._pinged_at = 0.0
        self._ping_at = 0.0
        """When this end may ping again."""
        self._turn_at = 0.0
        """When it is the turn of this end."""
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
        """Account for data of the peer, whatever it is, or an acknowledgement."""
        self.quality.data_received(now)
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
        if self.quality.pong_received(token, now, peer_lag_s + self.lag_s()):
            self._measured(now, was_settled=was_settled, confirm_at=now + self._next_interval_s())

    def ping_acknowledged(self, token: int, rtt_s: float, now: float) -> None:
        """Account for the acknowledgement of a ping after `rtt_s`."""
        self.received(now)
        was_settled = self.quality.is_settled
        if self.quality.ping_acknowledged(token, rtt_s, now, self.lag_s()):
            self._measured(now, was_settled=was_settled, confirm_at=now)

    def ping_received(self, token: int, measured_s: float | None, now: float) -> bool:
        """Account for a ping of the peer, which reports a round trip that it has measured, or None.

        Returns whether it must be answered with a pong that reports `lag_s`.
        """
        self._takes_turns = self._sees_acknowledgements and bool(token & TAKES_TURNS)
        if measured_s is not None:
            self.quality.peer_measured(measured_s)
            self._report_measured()
        if self._takes_turns:
            self._take_turn(now)
        return not token & ACKNOWLEDGED

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
        if now >= self._ping_at and (self._is_turn(now) or quality.is_silent(now)):
            self._ping(now)
        self._schedule(now)

    def _ping(self, now: float) -> None:
        token = self._environment.random.getrandbits(62)
        if self._sees_acknowledgements:
            token |= TAKES_TURNS | ACKNOWLEDGED if self.quality.is_settled else TAKES_TURNS
        self.quality.ping_sent(token, now)
        self._link.send_ping(token, self.quality.pop_sample(now))
        self._pinged_at = now
        interval_s = self._next_interval_s()
        self._ping_at = self._near(now + interval_s, ALIGN_FACTOR * interval_s)
        self._turn_at = now + 2 * self._interval_s

    def _take_turn(self, now: float) -> None:
        """A ping of the peer has arrived: the next one is sent by this end, an interval after the peer has sent this one."""
        half_s = min(self._interval_s, self.quality.rtt_s or 0.0) / 2
        if now - self._pinged_at < half_s + self._interval_s / 2 and not self._dialed:
            # The pings have crossed. The end that dialled sends the next one.
            self._turn_at = self._pinged_at + 2 * self._interval_s
        else:
            self._turn_at = self._near(now - half_s + self._interval_s, ALIGN_FACTOR * self._interval_s)
        self._schedule(now)

    def _is_turn(self, now: float) -> bool:
        if not self._takes_turns:
            return self._dialed
        # An end that has measured another round trip than before confirms it, and does not wait for its turn.
        return now >= self._turn_at or not self.quality.is_settled

    def _near(self, when: float, shift_s: float) -> float:
        return self._loop_watch.near(when, earlier_s=shift_s, later_s=shift_s)

    def _measured(self, now: float, *, was_settled: bool, confirm_at: float) -> None:
        if was_settled and not self.quality.is_settled:
            # The path may have changed: confirm it sooner.
            self._ping_at = min(self._ping_at, confirm_at)
            self._schedule(now)
        self._report_measured()

    def _next_interval_s(self) -> float:
        factor = 1.0 if self.quality.is_settled else UNSETTLED_FACTOR
        return self._interval_s * factor * self._environment.random.uniform(0.9, 1.1)

    def _schedule(self, now: float) -> None:
        """Set the timer to the next ping that is due, or earlier to judge an unanswered one."""
        quality, ping_at = self.quality, self._ping_at
        if not self._is_turn(ping_at):
            # A ping of this end that is unanswered makes the link suspect by itself, without another ping.
            since = max(quality.last_received_at, self._pinged_at) if self._takes_turns else quality.last_received_at
            silent_at = since + SILENT_AFTER_KEEPALIVES * self._interval_s
            # Usually, a ping has arrived by then. If not, the next check is at the exact time.
            silent_at = self._loop_watch.near(silent_at, earlier_s=2 * ALIGN_FACTOR * self._interval_s)
            ping_at = max(ping_at, min(silent_at, self._turn_at) if self._takes_turns else silent_at)
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
