"""The queueing delay of calls, and the load level that an instance advertises."""

from __future__ import annotations

import random

from micro_core.rpc.load import MAX_US, MIN_STALLED_CALLS, MIN_US, SAMPLES_BEFORE_CHANGE, LoadMeasure, quantize
from micro_core.rpc.queueing_delay import BASELINE_RISE_S, HALF_LIFE_S, MAX_ENDPOINTS, QueueingDelay


def after_calls(
    durations: list[float], *, every_s: float = 0.01, delay: QueueingDelay | None = None, start: float = 0.0
) -> QueueingDelay:
    delay = delay or QueueingDelay()
    for number, duration_s in enumerate(durations):
        delay.call_ended("Work.Do", duration_s, start + number * every_s)
    return delay


def test_constant_durations_have_no_queueing_delay() -> None:
    assert after_calls([2.0] * 100).delay_s(1.0) == 0.0


def test_varying_durations_do_not_count_as_queueing_delay() -> None:
    source = random.Random(1)
    delay, max_delay_s = QueueingDelay(), 0.0
    for number in range(5_000):
        delay.call_ended("Work.Do", source.expovariate(1 / 0.020), number * 0.01)
        max_delay_s = max(max_delay_s, delay.delay_s(number * 0.01))
    assert max_delay_s < MIN_US / 1e6


def test_durations_far_above_the_baseline_count_as_queueing_delay() -> None:
    delay = after_calls([0.020] * 100)
    after_calls([0.500] * 50, delay=delay, start=1.0)
    assert 0.2 < delay.delay_s(1.5) < 0.5


def test_one_call_that_takes_seconds_is_not_mistaken_for_a_queue() -> None:
    delay = after_calls([0.020] * 100)
    delay.call_ended("Work.Do", 5.0, 1.0)
    assert delay.delay_s(1.0) == 0.0
    after_calls([5.0] * 30, delay=delay, start=1.0)
    assert delay.delay_s(1.3) > 1.0, "many such calls are"


def test_durations_of_zero_do_not_hide_a_later_queue() -> None:
    delay = after_calls([0.0] * 100)
    after_calls([0.200] * 60, delay=delay, start=1.0)
    assert delay.delay_s(1.6) > 0.1


def test_delay_halves_while_no_call_ends() -> None:
    delay = after_calls([0.020] * 100)
    after_calls([0.500] * 50, delay=delay, start=1.0)
    now = 1.0 + 49 * 0.01
    assert delay.delay_s(now + HALF_LIFE_S) == delay.delay_s(now) / 2


def test_overload_of_minutes_is_not_in_the_baseline_and_a_permanently_slower_handler_is() -> None:
    delay = after_calls([0.020] * 100)
    after_calls([0.200] * 1_200, every_s=0.1, delay=delay, start=1.0)
    assert delay.delay_s(121.0) > 0.05, "two minutes later"
    after_calls([0.200] * 4_000, every_s=1.0, delay=delay, start=121.0)
    assert delay.delay_s(121.0 + 5 * BASELINE_RISE_S) == 0.0


def test_each_endpoint_has_its_own_baseline() -> None:
    delay = QueueingDelay()
    for number in range(200):
        delay.call_ended("Quick", 0.001, number * 0.01)
        delay.call_ended("Slow", 5.0, number * 0.01)
    assert delay.delay_s(2.0) == 0.0


def test_number_of_endpoints_is_bounded() -> None:
    delay = QueueingDelay()
    for number in range(MAX_ENDPOINTS + 50):
        delay.call_ended(f"e{number}", 1.0, 0.0)
    assert delay.baseline_s(f"e{MAX_ENDPOINTS - 1}") == 1.0
    assert delay.baseline_s(f"e{MAX_ENDPOINTS}") == 0.0


def test_load_level_is_a_power_of_two_within_bounds() -> None:
    assert [quantize(us) for us in (0, MIN_US - 1, MIN_US, 2 * MIN_US - 1, 2 * MIN_US)] == [
        0,
        0,
        MIN_US,
        MIN_US,
        2 * MIN_US,
    ]
    assert quantize(10**12) == MAX_US


def add_second_of_calls(load: LoadMeasure, duration_s: float, start: float) -> float:
    """Add one second of calls with this duration and return the time after it."""
    for number in range(100):
        load.call_ended("Work.Do", duration_s, start + number * 0.01)
    return start + 1.0


def test_load_level_changes_after_consecutive_samples_and_ignores_fluctuation() -> None:
    load = LoadMeasure()
    now = add_second_of_calls(load, 0.020, 1.0)
    assert not load.sample(now)
    changes = []
    for _ in range(SAMPLES_BEFORE_CHANGE):
        now = add_second_of_calls(load, 0.140, now)
        changes.append(load.sample(now))
    assert changes == [False] * (SAMPLES_BEFORE_CHANGE - 1) + [True]
    assert 60_000 < load.level_us < 100_000
    for duration_s in (0.150, 0.130, 0.145, 0.125):
        now = add_second_of_calls(load, duration_s, now)
        assert not load.sample(now), "the level changed although the delay stayed within one step"
    levels = [load.level_us]
    while load.level_us and len(levels) < 50:
        now = add_second_of_calls(load, 0.020, now)
        load.sample(now)
        levels.append(load.level_us)
    assert levels == [
        level for level in (64_000, 32_000, 16_000, 8_000, 4_000) for _ in range(SAMPLES_BEFORE_CHANGE)
    ] + [0], "the level falls one step at a time"


def test_several_calls_that_do_not_end_raise_the_load_level_and_one_long_call_does_not() -> None:
    load = LoadMeasure()
    now = add_second_of_calls(load, 0.020, 0.0)
    load.sample(now)
    stalled = [("Work.Do", now)] * MIN_STALLED_CALLS
    for second in (1.0, 2.0, 3.0):
        load.sample(now + second, stalled[:1])
    assert load.level_us == 0
    for second in (4.0, 5.0):
        load.sample(now + second, stalled)
    assert load.level_us >= 4_000_000 // 1_024 * 1_000 // 2
