"""Flap damping: what is held, for how long at most, and what never is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.damping import FORGET_BELOW, Damper, DampingPolicy

POLICY = DampingPolicy()
EVENTS = st.lists(st.tuples(st.sampled_from("lcr"), st.floats(0.0, 30.0)), max_size=60)


def flapping(damper: Damper, period_s: float, count: int) -> tuple[float, int | None]:
    """Lose and bring back a service `count` times; (the time, which announcement was the first to be held)."""
    now, first_held = 0.0, None
    for number in range(1, count + 1):
        damper.lost("a", now)
        if not damper.may_announce("a", now + period_s / 2) and first_held is None:
            first_held = number
        now += period_s
    return now, first_held


def test_one_honest_restart_is_never_held() -> None:
    damper = Damper()
    damper.lost("a", 10.0)
    assert damper.may_announce("a", 10.1)


def test_three_restarts_in_a_minute_are_not_held() -> None:
    assert flapping(Damper(), 20.0, 3)[1] is None


@pytest.mark.parametrize(("period_s", "handful"), [(0.2, 5), (5.0, 7), (11.0, 8)])
def test_fast_and_slow_flapping_is_caught_after_a_handful(period_s: float, handful: int) -> None:
    first_held = flapping(Damper(), period_s, 30)[1]
    assert first_held is not None
    assert 3 < first_held <= handful


def test_a_rolling_restart_that_only_changes_what_is_offered_is_not_held() -> None:
    damper = Damper()
    for number in range(10):
        damper.changed("a", number * 3.0)
        assert damper.may_announce("a", number * 3.0)


def test_however_long_it_flapped_the_penalty_stays_below_a_ceiling_from_which_release_is_near() -> None:
    damper = Damper()
    now, _ = flapping(damper, 0.4, 2_000)
    (shown,) = damper.view(now)
    assert shown.penalty <= POLICY.ceiling
    calm = now + POLICY.max_suppress_s
    (shown,) = damper.view(calm)
    assert shown.penalty <= POLICY.reuse
    damper.due(calm)
    damper.lost("a", calm)
    assert damper.may_announce("a", calm), "one loss after two calm minutes is not held against it"


def test_release_comes_when_the_penalty_has_decayed_and_names_the_service_once() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    assert not damper.may_announce("a", now)
    wake_at = damper.wake_at
    assert wake_at is not None
    assert damper.due(wake_at - 0.01) == []
    assert damper.due(wake_at) == ["a"]
    assert damper.due(wake_at) == []
    assert damper.may_announce("a", wake_at)


def test_what_nobody_waits_for_is_released_in_silence() -> None:
    damper = Damper()
    for number in range(10):
        damper.lost("a", float(number))
    assert damper.due(1_000.0) == []


def test_history_outlives_release() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    damper.may_announce("a", now)
    damper.due(now + POLICY.max_suppress_s)
    (flap,) = damper.view(now + POLICY.max_suppress_s)
    assert flap.penalty > FORGET_BELOW
    assert flap.losses == 10
    assert not flap.is_held


def test_a_service_that_never_stops_flapping_is_let_out_once_in_the_longest_time() -> None:
    damper, now, announced = Damper(), 0.0, []
    while now < 1_200.0:
        damper.lost("a", now)
        if damper.may_announce("a", now + 0.5):
            announced.append(now)
        now += 1.0
    late = [when for when in announced if when > 60.0]
    assert 8 <= len(late) <= 11, "about once in max_suppress_s, and never not at all"


def test_a_dry_run_holds_nothing_and_shows_what_would_be() -> None:
    damper = Damper(DampingPolicy(dry_run=True))
    assert flapping(damper, 1.0, 20)[1] is None
    (flap,) = damper.view(20.0)
    assert flap.release_at is not None
    assert not flap.is_held


def test_an_operator_lets_one_out() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    assert not damper.may_announce("a", now)
    assert damper.release("a")
    assert damper.may_announce("a", now)
    assert not damper.release("a")


def test_histories_are_bounded_and_the_least_is_forgotten() -> None:
    damper = Damper(DampingPolicy(max_services=3))
    for number, service in enumerate(("a", "b", "c", "d")):
        for _ in range(number + 1 if service != "a" else 9):
            damper.lost(service, 0.0)
    assert {flap.service for flap in damper.view(0.0)} == {"a", "c", "d"}
    assert damper.forgotten == 1


def test_what_has_decayed_is_forgotten() -> None:
    damper = Damper()
    damper.lost("a", 0.0)
    damper.due(POLICY.half_life_s * math.log2(POLICY.withdrawal / FORGET_BELOW) + 1)
    assert damper.view(1_000.0) == []


@given(EVENTS)
def test_whatever_happens_the_penalty_is_bounded_and_release_is_certain(events: list[tuple[str, float]]) -> None:
    damper, now = Damper(), 0.0
    for kind, pause_s in events:
        if kind == "l":
            damper.lost("a", now)
        elif kind == "c":
            damper.changed("a", now)
        else:
            damper.may_announce("a", now)
        for flap in damper.view(now):
            assert flap.penalty <= POLICY.ceiling
            if flap.release_at is not None:
                assert flap.release_at - now <= POLICY.max_suppress_s + 1e-6
        now += pause_s
    assert damper.may_announce("a", now + POLICY.max_suppress_s + 1e-6)


@given(EVENTS)
def test_what_waits_is_named_when_its_time_has_come(events: list[tuple[str, float]]) -> None:
    damper, now, is_waiting = Damper(), 0.0, False
    for kind, pause_s in events:
        if damper.due(now):
            is_waiting = False
        if kind == "l":
            damper.lost("a", now)
        elif kind == "r":
            is_waiting = not damper.may_announce("a", now)
        now += pause_s
    named = damper.due(now + POLICY.max_suppress_s + 1e-6)
    assert not is_waiting or named == ["a"]
