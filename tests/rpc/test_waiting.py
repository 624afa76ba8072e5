"""What counts as waiting, what an instance tells of it, and what it does not."""

from __future__ import annotations

import random

from micro_core.rpc.load import MAX_US, MIN_US, SAMPLES_BEFORE_CHANGE, STALLED_CALLS, LoadMeasure, quantised
from micro_core.rpc.waiting import HALF_LIFE_S, MAX_ENDPOINTS, USUAL_RISES_IN_S, Waiting


def after(
    durations: list[float], *, every_s: float = 0.01, waiting: Waiting | None = None, start: float = 0.0
) -> Waiting:
    waiting = waiting or Waiting()
    for number, duration_s in enumerate(durations):
        waiting.ended("Work.Do", duration_s, start + number * every_s)
    return waiting


def test_calls_that_take_what_they_take_do_not_wait() -> None:
    assert after([2.0] * 100).waiting_s(1.0) == 0.0


def test_calls_that_vary_do_not_count_as_waiting() -> None:
    source = random.Random(1)
    waiting, worst = Waiting(), 0.0
    for number in range(5_000):
        waiting.ended("Work.Do", source.expovariate(1 / 0.020), number * 0.01)
        worst = max(worst, waiting.waiting_s(number * 0.01))
    assert worst < MIN_US / 1e6


def test_calls_that_take_far_longer_than_usual_wait_for_each_other() -> None:
    waiting = after([0.020] * 100)
    after([0.500] * 50, waiting=waiting, start=1.0)
    assert 0.2 < waiting.waiting_s(1.5) < 0.5


def test_waiting_is_forgotten_while_nobody_calls_so_that_somebody_tries_again() -> None:
    waiting = after([0.020] * 100)
    after([0.500] * 50, waiting=waiting, start=1.0)
    now = 1.0 + 49 * 0.01
    assert waiting.waiting_s(now + HALF_LIFE_S) == waiting.waiting_s(now) / 2


def test_a_lasting_overload_is_not_taken_for_the_usual_within_minutes_and_a_slower_handler_is_in_the_end() -> None:
    waiting = after([0.020] * 100)
    after([0.200] * 1_200, every_s=0.1, waiting=waiting, start=1.0)
    assert waiting.waiting_s(121.0) > 0.05, "two minutes later"
    after([0.200] * 4_000, every_s=1.0, waiting=waiting, start=121.0)
    assert waiting.waiting_s(121.0 + 5 * USUAL_RISES_IN_S) == 0.0


def test_endpoints_are_judged_each_by_its_own() -> None:
    waiting = Waiting()
    for number in range(200):
        waiting.ended("Quick", 0.001, number * 0.01)
        waiting.ended("Slow", 5.0, number * 0.01)
    assert waiting.waiting_s(2.0) == 0.0


def test_names_of_endpoints_do_not_fill_the_memory() -> None:
    waiting = Waiting()
    for number in range(MAX_ENDPOINTS + 50):
        waiting.ended(f"e{number}", 1.0, 0.0)
    assert waiting.usual_s(f"e{MAX_ENDPOINTS - 1}") == 1.0
    assert waiting.usual_s(f"e{MAX_ENDPOINTS}") == 0.0


def test_load_is_told_in_powers_of_two_within_bounds() -> None:
    assert [quantised(us) for us in (0, MIN_US - 1, MIN_US, 2 * MIN_US - 1, 2 * MIN_US)] == [
        0,
        0,
        MIN_US,
        MIN_US,
        2 * MIN_US,
    ]
    assert quantised(10**12) == MAX_US


def overloaded(load: LoadMeasure, duration_s: float, start: float) -> float:
    """A second of calls that take so long; returns the moment after."""
    for number in range(100):
        load.ended("Work.Do", duration_s, start + number * 0.01)
    return start + 1.0


def test_a_step_is_told_when_it_has_lasted_and_not_again_while_it_merely_trembles() -> None:
    load, now = LoadMeasure(), overloaded(LoadMeasure(), 0.020, 0.0)
    now = overloaded(load, 0.020, 0.0)
    assert not load.look(now)
    looks = []
    for _ in range(SAMPLES_BEFORE_CHANGE):
        now = overloaded(load, 0.140, now)
        looks.append(load.look(now))
    assert looks == [False] * (SAMPLES_BEFORE_CHANGE - 1) + [True]
    told_us = load.level_us
    assert 60_000 < told_us < 100_000
    for duration_s in (0.150, 0.130, 0.145, 0.125):
        now = overloaded(load, duration_s, now)
        assert not load.look(now), "up and down within a step is no news"
    for _ in range(SAMPLES_BEFORE_CHANGE):
        now = overloaded(load, 0.020, now)
        is_told = load.look(now)
    assert is_told
    assert load.level_us == 0


def test_calls_that_never_end_tell_of_a_stall_and_one_long_call_does_not() -> None:
    load, now = LoadMeasure(), 0.0
    now = overloaded(load, 0.020, now)
    load.look(now)
    stuck = [("Work.Do", now)] * STALLED_CALLS
    for second in (1.0, 2.0, 3.0):
        load.look(now + second, stuck[:1])
    assert load.level_us == 0
    for second in (4.0, 5.0):
        load.look(now + second, stuck)
    assert load.level_us >= 4_000_000 // 1_024 * 1_000 // 2
