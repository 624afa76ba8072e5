"""Pings the peer of a link at regular intervals and detects a dead peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.measure import LinkQuality


class Keepalive:
    """The keepalive timer of one link, and the quality that its pings measure.

    `send_ping(token)` is called for each ping, `on_dead(silent_s)` once when nothing arrived for `dead_after_missed`
    intervals.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        dead_after_missed: int,
        environment: Environment,
        send_ping: Callable[[int], None],
        on_dead: Callable[[float], None],
    ) -> None:
        self.quality = LinkQuality(interval_s, dead_after_missed)
        self._interval_s = interval_s
        self._dead_after_missed = dead_after_missed
        self._environment = environment
        self._send_ping = send_ping
        self._on_dead = on_dead
        self._timer: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Check the peer, send a ping and start the timer for the next one. The interval is jittered by a tenth."""
        environment = self._environment
        now = environment.clock.now()
        if self.quality.is_dead(now):
            environment.counters.add("tunnel_links_dead")
            self._on_dead(self._interval_s * self._dead_after_missed)
            return
        token = environment.random.getrandbits(63)
        self.quality.ping_sent(token, now)
        self._send_ping(token)
        delay_s = self._interval_s * environment.random.uniform(0.9, 1.1)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.run)

    def stop(self) -> None:
        """Send no more pings."""
        if self._timer is not None:
            self._timer.cancel()
