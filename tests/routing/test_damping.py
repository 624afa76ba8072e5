"""Flap damping: which services are suppressed, and for how long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.damping import MIN_RECORDED_PENALTY, Damper, DampingPolicy

POLICY = DampingPolicy()
EVENTS = st.lists(st.tuples(st.sampled_from("lcr"), st.floats(0.0, 30.0)), max_size=60)


def flapping(damper: Damper, period_s: float, count: int) -> tuple[float, int | None]:
    """Remove and restore a service `count` times. Returns (time, number of the first suppressed announcement)."""
    now, first_suppressed = 0.0, None
    for number in range(1, count + 1):
        damper.record_loss("a", now)
        if not damper.may_announce("a", now + period_s / 2) and first_suppressed is None:
            first_suppressed = number
        now += period_s
    return now, first_suppressed


def test_single_restart_is_not_suppressed() -> None:
    damper = Damper()
    damper.record_loss("a", 10.0)
    assert damper.may_announce("a", 10.1)


def test_three_restarts_in_a_minute_are_not_suppressed() -> None:
    assert flapping(Damper(), 20.0, 3)[1] is None


@pytest.mark.parametrize(("period_s", "max_losses"), [(0.2, 5), (5.0, 7), (11.0, 8)])
def test_fast_and_slow_flapping_is_suppressed_after_a_few_losses(period_s: float, max_losses: int) -> None:
    first_suppressed = flapping(Damper(), period_s, 30)[1]
    assert first_suppressed is not None
    assert 3 < first_suppressed <= max_losses


def test_rolling_restart_that_only_changes_the_version_is_not_suppressed() -> None:
    damper = Damper()
    for number in range(10):
        damper.record_change("a", number * 3.0)
        assert damper.may_announce("a", number * 3.0)


def test_penalty_has_a_ceiling_from_which_it_decays_in_time() -> None:
    damper = Damper()
    now, _ = flapping(damper, 0.4, 2_000)
    (status,) = damper.statuses(now)
    assert status.penalty <= POLICY.ceiling
    later = now + POLICY.max_suppress_s
    (status,) = damper.statuses(later)
    assert status.penalty <= POLICY.reuse
    damper.advance(later)
    damper.record_loss("a", later)
    assert damper.may_announce("a", later), "one loss after two minutes without losses is not suppressed"


def test_service_is_reused_once_when_its_penalty_has_decayed() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    assert not damper.may_announce("a", now)
    wake_at = damper.wake_at
    assert wake_at is not None
    assert damper.advance(wake_at - 0.01) == []
    assert damper.advance(wake_at) == ["a"]
    assert damper.advance(wake_at) == []
    assert damper.may_announce("a", wake_at)


def test_suppression_without_pending_announcement_ends_silently() -> None:
    damper = Damper()
    for number in range(10):
        damper.record_loss("a", float(number))
    assert damper.advance(1_000.0) == []


def test_history_is_kept_after_the_suppression() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    damper.may_announce("a", now)
    damper.advance(now + POLICY.max_suppress_s)
    (flap,) = damper.statuses(now + POLICY.max_suppress_s)
    assert flap.penalty > MIN_RECORDED_PENALTY
    assert flap.losses == 10
    assert not flap.is_suppressed


def test_service_that_keeps_flapping_is_announced_once_per_maximum_suppression_time() -> None:
    damper, now, announced = Damper(), 0.0, []
    while now < 1_200.0:
        damper.record_loss("a", now)
        if damper.may_announce("a", now + 0.5):
            announced.append(now)
        now += 1.0
    late = [when for when in announced if when > 60.0]
    assert 8 <= len(late) <= 11, "about once per max_suppress_s"


def test_dry_run_suppresses_nothing_and_shows_what_would_be_suppressed() -> None:
    damper = Damper(DampingPolicy(dry_run=True))
    assert flapping(damper, 1.0, 20)[1] is None
    (flap,) = damper.statuses(20.0)
    assert flap.reuse_at is not None
    assert not flap.is_suppressed


def test_operator_ends_a_suppression() -> None:
    damper = Damper()
    now, _ = flapping(damper, 1.0, 10)
    assert not damper.may_announce("a", now)
    assert damper.reuse("a")
    assert damper.may_announce("a", now)
    assert not damper.reuse("a")


def test_history_with_the_smallest_penalty_is_deleted_at_the_limit() -> None:
    damper = Damper(DampingPolicy(max_services=3))
    for number, service in enumerate(("a", "b", "c", "d")):
        for _ in range(number + 1 if service != "a" else 9):
            damper.record_loss(service, 0.0)
    assert {flap.service for flap in damper.statuses(0.0)} == {"a", "c", "d"}
    assert damper.forgotten == 1


def test_decayed_history_is_deleted() -> None:
    damper = Damper()
    damper.record_loss("a", 0.0)
    damper.advance(POLICY.half_life_s * math.log2(POLICY.withdrawal / MIN_RECORDED_PENALTY) + 1)
    assert damper.statuses(1_000.0) == []


@given(EVENTS)
def test_penalty_is_bounded_and_reuse_is_guaranteed(events: list[tuple[str, float]]) -> None:
    damper, now = Damper(), 0.0
    for kind, pause_s in events:
        if kind == "l":
            damper.record_loss("a", now)
        elif kind == "c":
            damper.record_change("a", now)
        else:
            damper.may_announce("a", now)
        for flap in damper.statuses(now):
            assert flap.penalty <= POLICY.ceiling
            if flap.reuse_at is not None:
                assert flap.reuse_at - now <= POLICY.max_suppress_s + 1e-6
        now += pause_s
    assert damper.may_announce("a", now + POLICY.max_suppress_s + 1e-6)


@given(EVENTS)
def test_pending_announcement_is_reported_when_the_suppression_ends(events: list[tuple[str, float]]) -> None:
    damper, now, is_pending = Damper(), 0.0, False
    for kind, pause_s in events:
        if damper.advance(now):
            is_pending = False
        if kind == "l":
            damper.record_loss("a", now)
        elif kind == "r":
            is_pending = not damper.may_announce("a", now)
        now += pause_s
    reusable = damper.advance(now + POLICY.max_suppress_s + 1e-6)
    assert not is_pending or reusable == ["a"]
