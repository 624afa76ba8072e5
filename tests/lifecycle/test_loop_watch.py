"""The lag of an event loop, and the detection of a suspended process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from micro_core.lab.loop import VirtualLoop, run
from micro_core.lifecycle.beat import next_beat
from micro_core.lifecycle.loop_lag import SUSPENDED_AFTER_S, TICK_S, WINDOW_S, LoopLag
from micro_core.lifecycle.loop_watch import LoopWatch


def started() -> LoopLag:
    lag = LoopLag()
    lag.start(100.0, 5_000.0)
    return lag


def test_punctual_loop_has_no_lag() -> None:
    lag = started()
    for number in range(1, 50):
        lag.tick(100.0 + TICK_S * number, 5_000.0 + TICK_S * number)
        assert lag.recent_s(100.0 + TICK_S * number) == 0.0


def test_late_tick_counts_for_one_to_two_seconds() -> None:
    lag = started()
    now = 100.0 + TICK_S + 0.3
    lag.tick(now, 0.0)
    last = now
    while now < last + 4:
        if lag.recent_s(now) >= 0.29:
            late_until = now
        now += TICK_S
        lag.tick(now, 0.0)
    assert WINDOW_S <= late_until - last <= 2 * WINDOW_S


def test_overdue_tick_counts_before_it_runs() -> None:
    lag = started()
    assert lag.recent_s(100.0 + TICK_S + 0.8) == 0.8 or abs(lag.recent_s(100.0 + TICK_S + 0.8) - 0.8) < 1e-9


def test_timers_of_others_count() -> None:
    lag = started()
    lag.timer_ran(100.0, 100.2)
    assert abs(lag.recent_s(100.2) - 0.2) < 1e-9


@given(st.lists(st.floats(0, 3), max_size=40))
def test_lag_is_never_negative_and_at_most_the_longest_pause(pauses: list[float]) -> None:
    lag, now = started(), 100.0
    for pause_s in pauses:
        now += pause_s
        assert 0.0 <= lag.recent_s(now) <= max(pauses)
        lag.tick(now, 0.0)


def test_only_a_long_pause_is_a_suspension() -> None:
    lag = started()
    assert lag.suspended_s(5_000.0 + SUSPENDED_AFTER_S) == 0.0
    assert lag.suspended_s(5_030.0) == 30.0
    lag.start(100.0, 5_030.0)
    assert lag.suspended_s(5_030.0) == 0.0


@dataclass
class SleepyClock:
    """The clock of a computer that sleeps: `now` does not advance meanwhile, `elapsed` does."""

    loop: asyncio.AbstractEventLoop
    slept_s: float = 0.0

    def now(self) -> float:
        return self.loop.time()

    def elapsed(self) -> float:
        return self.loop.time() + self.slept_s

    def wall(self) -> float:
        return self.elapsed()


def test_sleep_of_the_computer_is_reported_once_although_the_monotonic_clock_did_not_advance() -> None:
    async def main() -> None:
        clock = SleepyClock(asyncio.get_running_loop())
        reported: list[float] = []
        watch = LoopWatch(clock, reported.append)
        assert not watch.check(), "not started"
        watch.start()
        await asyncio.sleep(10.0)
        assert reported == []
        clock.slept_s += 3_600.0
        await asyncio.sleep(2 * TICK_S)
        assert [round(seconds) for seconds in reported] == [3_600]
        await asyncio.sleep(10.0)
        assert len(reported) == 1
        watch.stop()

    run(main())


def test_suspension_is_found_before_the_timer_runs_if_a_component_asks() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        reported: list[float] = []
        watch = LoopWatch(SleepyClock(loop), reported.append)
        watch.start()
        await asyncio.sleep(1.0)
        loop._now += 30.0
        assert watch.check()
        assert len(reported) == 1
        assert not watch.check()
        await asyncio.sleep(1.0)
        assert len(reported) == 1
        watch.stop()
        assert watch.lag_s() == 0.0

    run(main())


def test_late_tick_does_not_move_the_following_ones() -> None:
    lag = started()
    for now in (100.26, 100.51, 101.6):
        lag.tick(now, 0.0)
    assert lag.due_at == 101.75


def test_timer_near_a_tick_runs_with_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        watch = LoopWatch(SleepyClock(loop), lambda _: None, "node")
        assert watch.near(loop.time() + 1.0, earlier_s=0.5, later_s=0.5) == loop.time() + 1.0, "not started"
        watch.start()
        await asyncio.sleep(10.0)
        tick = next_beat(loop.time(), TICK_S, "node")
        assert watch.near(tick + 1.1, earlier_s=0.125, later_s=0.125) == tick + 1.0
        assert watch.near(tick + 1.15, earlier_s=0.125, later_s=0.125) == tick + 1.25
        assert watch.near(tick + 1.15, earlier_s=0.2) == tick + 1.0
        assert watch.near(tick + 1.15, earlier_s=0.1) == tick + 1.15, "no tick in this time"
        assert watch.near(loop.time(), earlier_s=0.5) == loop.time(), "not in the past"
        watch.stop()

    run(main())


@given(st.floats(0, 1e6), st.sampled_from([0.25, 0.5, 1.0, 5.0]), st.text(max_size=8))
def test_beats_are_regular_and_common_to_all_work_of_a_node(now: float, interval_s: float, node_id: str) -> None:
    beat = next_beat(now, interval_s, node_id)
    assert interval_s / 2 - 1e-6 <= beat - now <= 1.5 * interval_s + 1e-6
    assert abs(next_beat(beat, interval_s, node_id) - beat - interval_s) < 1e-6
    shorter = (beat - next_beat(now, 0.25, node_id)) / 0.25
    assert abs(shorter - round(shorter)) < 1e-4


def test_nodes_have_different_beats() -> None:
    assert len({round(next_beat(0.0, 1.0, f"node {number}"), 3) for number in range(20)}) > 15
