"""The window of a destination: how many calls one site gets at a time."""

from __future__ import annotations

import heapq
import itertools

import pytest

from micro_core.proxy.destination import (
    ANSWERS_PER_CHANGE,
    FRESH_S,
    MIN_ALLOWED_S,
    MIN_STALLED_CALLS,
    MIN_WINDOW,
    RELEASE_S,
    Destination,
)

UNLIMITED = float("inf")
SERVICE_S, SERVERS = 0.040, 4
"""The simulated site serves 100 calls per second."""


class Site:
    """A queue in front of `servers` servers. Calls that the window does not permit are counted as sent elsewhere."""

    def __init__(self, *, servers: int = SERVERS, rtt_s: float = 0.0) -> None:
        self.servers, self.rtt_s = servers, rtt_s
        self.destination = Destination(0.0)
        self.now = 0.0
        self.sent, self.elsewhere = 0, 0
        self.max_wait_s = 0.0
        self._free_at = [0.0] * servers
        self._ends: list[tuple[float, int, float]] = []
        self._numbers = itertools.count()

    def run(self, per_s: float, seconds: float, *, allowed_s: float = 0.05, servers: int = 0) -> float:
        """Call at a rate for some seconds. Returns the share of the calls that were sent elsewhere."""
        if servers:
            self.servers = servers
            self._free_at = sorted(self._free_at)[-servers:]
        self.sent = self.elsewhere = 0
        self.max_wait_s = 0.0
        until, next_adjust = self.now + seconds, self.now
        while self.now < until:
            self.now += 1 / per_s
            while self._ends and self._ends[0][0] <= self.now:
                ended_at, _, began_at = heapq.heappop(self._ends)
                self.destination.call_ended()
                self.destination.answered("Work.Do", ended_at - began_at, ended_at)
            if self.now >= next_adjust:
                self.destination.adjust(allowed_s, self.now)
                next_adjust = self.now + 0.1
            if self.destination.outstanding >= self.destination.window:
                self.destination.filled(self.now)
                self.elsewhere += 1
                continue
            self.sent += 1
            self.destination.call_started(self.now)
            free_at = heapq.heappop(self._free_at)
            begins_at = max(free_at, self.now)
            self.max_wait_s = max(self.max_wait_s, begins_at - self.now)
            if len(self._free_at) < self.servers:
                heapq.heappush(self._free_at, begins_at + SERVICE_S)
            heapq.heappush(self._ends, (begins_at + SERVICE_S + self.rtt_s, next(self._numbers), self.now))
        return self.elsewhere / (self.sent + self.elsewhere)


@pytest.mark.parametrize("per_s", [5.0, 60.0, 99.0])
def test_destination_with_capacity_gets_all_calls(per_s: float) -> None:
    site = Site()
    assert site.run(per_s, 30.0) == 0.0
    assert site.destination.window == UNLIMITED


@pytest.mark.parametrize("rtt_s", [0.0, 0.050, 0.150])
@pytest.mark.parametrize("per_s", [110.0, 150.0, 400.0])
def test_calls_beyond_the_capacity_go_elsewhere_and_no_others(per_s: float, rtt_s: float) -> None:
    site = Site(rtt_s=rtt_s)
    site.run(60.0, 5.0)
    site.run(per_s, 10.0)
    for _ in range(5):
        assert site.run(per_s, 3.0) == pytest.approx(1 - 100 / per_s, abs=0.05)


def test_waiting_time_is_limited_to_what_the_way_to_another_site_is_worth() -> None:
    waits = []
    for allowed_s in (0.030, 0.150, 0.500):
        site = Site()
        site.run(60.0, 5.0)
        site.run(150.0, 20.0, allowed_s=allowed_s)
        site.run(150.0, 10.0, allowed_s=allowed_s)
        # A wait counts only beyond twice the usual duration.
        assert site.max_wait_s < 2 * (allowed_s + SERVICE_S)
        waits.append(site.max_wait_s)
    assert waits == sorted(waits)


def test_window_follows_a_loss_of_half_of_the_capacity_and_its_return() -> None:
    site = Site()
    site.run(150.0, 10.0)
    site.run(150.0, 4.0, servers=2)
    assert site.run(150.0, 4.0) == pytest.approx(1 - 50 / 150, abs=0.05)
    site = Site(servers=2)
    site.run(90.0, 10.0)
    site._free_at += [site.now] * 2
    site.servers = 4
    site.run(90.0, 6.0)
    assert site.run(90.0, 4.0) == 0.0, "all calls have returned"


def test_calls_return_at_once_when_the_rate_falls_and_the_window_is_removed_later() -> None:
    site = Site()
    site.run(150.0, 10.0)
    assert site.destination.window < UNLIMITED
    site.run(60.0, 0.5)
    assert site.run(60.0, 5.0) == 0.0
    site.run(60.0, RELEASE_S)
    assert site.destination.window == UNLIMITED


def test_destination_that_stops_answering_gets_a_window() -> None:
    site = Destination(0.0)
    for number in range(50):
        site.call_started(number * 0.01)
        site.call_ended()
        site.answered("Work.Do", 0.005, number * 0.01)
    for _ in range(MIN_STALLED_CALLS - 1):
        site.call_started(0.5)
    site.adjust(0.05, 5.0)
    assert site.window == UNLIMITED, "a few calls may simply be long"
    site.call_started(0.5)
    site.adjust(0.05, 5.0)
    assert site.window <= MIN_STALLED_CALLS
    assert site.outstanding >= site.window


def test_refusal_as_overloaded_reduces_the_window_to_what_the_destination_accepts() -> None:
    site = Destination(0.0)
    for _ in range(10):
        site.call_started(1.0)
    site.refused(1.0)
    assert 5.0 < site.window < 10.0
    for number in range(50):
        site.refused(1.0 + number)
    assert site.window == MIN_WINDOW, "one call at a time shows when it recovers"


def test_own_measurements_replace_the_advertised_load() -> None:
    site = Destination(0.0)
    site.advertised_s = 0.3
    assert site.waiting_s(1.0) == site.unmeasured_s(1.0) == 0.3
    for _ in range(ANSWERS_PER_CHANGE):
        site.call_started(1.0)
        site.call_ended()
        site.answered("Work.Do", 0.02, 1.0)
    assert site.waiting_s(1.0) == site.unmeasured_s(1.0) == 0.0
    assert site.waiting_s(1.1 + FRESH_S) == 0.3, "the measurement is too old"


def test_small_waiting_times_never_make_calls_leave() -> None:
    site = Site()
    site.run(60.0, 5.0)
    site.run(101.0, 60.0, allowed_s=0.0)
    assert site.run(101.0, 10.0, allowed_s=0.0) < 0.05
    assert MIN_ALLOWED_S >= 0.010


def test_calls_that_wait_for_less_than_the_minimum_get_no_window() -> None:
    site, now = Destination(0.0), 0.0
    for number in range(320):
        now += 0.01
        site.call_started(now)
        site.call_ended()
        site.answered("Work.Do", 0.005 if number < 20 else 0.025, now)
        site.adjust(0.0, now)
    assert 0.005 < site.queueing_delay.delay_s(now) < MIN_ALLOWED_S
    assert site.window == UNLIMITED
