"""Damping of links that flap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.link_damping import LinkDamper, LinkDampingPolicy

POLICY = LinkDampingPolicy()


def flapped(losses: int, every_s: float, *, down_s: float = 1.0) -> tuple[LinkDamper, float]:
    """Returns a damper after `losses` losses, and the time at which the link is up again."""
    damper, now = LinkDamper(), 100.0
    damper.link_up("p", now)
    for _ in range(losses):
        now += every_s - down_s
        damper.link_lost("p", now)
        now += down_s
        damper.link_up("p", now)
    return damper, now


def hold_after(losses: int, every_s: float) -> float:
    damper, now = flapped(losses, every_s)
    reuse_at = damper.reuse_at("p")
    return 0.0 if reuse_at is None else reuse_at - now


def test_first_loss_does_not_damp_the_link() -> None:
    damper, now = flapped(1, 5.0)
    assert not damper.is_damped("p", now)
    assert damper.penalty_us("p", now) == 0
    assert damper.reuse_at("p") is None
    assert damper.wake_at is None


def test_second_loss_within_a_minute_damps_the_link_and_a_later_one_does_not() -> None:
    assert hold_after(2, 59.0) == pytest.approx(10.0, abs=0.2)
    assert hold_after(2, 61.0) == 0.0


def test_hold_time_grows_with_each_loss_up_to_the_maximum() -> None:
    holds = [hold_after(losses, 3.0) for losses in range(1, 9)]
    assert holds[0] == 0.0
    assert 10.0 <= holds[1] <= 20.0
    assert holds == sorted(holds)
    assert 1.5 <= holds[2] / holds[1] <= 2.0
    assert holds[-1] == POLICY.max_hold_s


@pytest.mark.parametrize("every_s", [3.0, 5.0, 11.0, 30.0])
def test_link_that_keeps_flapping_is_not_used_any_more(every_s: float) -> None:
    damper, now = flapped(10, every_s)
    for _ in range(10):
        assert damper.is_damped("p", now + every_s - 1.001), "it is lost again before its hold ends"
        damper.link_lost("p", now + every_s - 1.0)
        now += every_s
        damper.link_up("p", now)


def test_hold_begins_when_the_link_is_up() -> None:
    damper, _ = flapped(2, 5.0)
    damper.link_lost("p", 200.0)
    assert damper.is_damped("p", 230.0), "the link is down"
    assert damper.wake_at is None
    damper.link_up("p", 230.0)
    reuse_at = damper.reuse_at("p")
    assert reuse_at is not None
    assert reuse_at >= 240.0
    assert damper.wake_at == reuse_at
    damper.link_up("p", 235.0)
    assert damper.reuse_at("p") == reuse_at, "a second report does not extend the hold"


def test_hold_ends_once() -> None:
    damper, _ = flapped(2, 5.0)
    at = damper.wake_at
    assert at is not None
    assert damper.penalty_us("p", at - 0.001) == POLICY.last_resort_us
    assert damper.advance(at - 0.001) == []
    assert damper.advance(at) == ["p"]
    assert damper.advance(at) == []
    assert damper.penalty_us("p", at) == 0
    assert damper.wake_at is None


def test_later_loss_does_not_shorten_a_hold() -> None:
    damper, now = flapped(6, 3.0)
    assert damper.reuse_at("p") == pytest.approx(now + POLICY.max_hold_s)
    now += POLICY.max_hold_s - 1.0
    damper.link_lost("p", now)
    damper.link_up("p", now)
    assert damper.reuse_at("p") == pytest.approx(now + POLICY.max_hold_s), "though most of the penalty has decayed"


def test_link_that_flapped_for_long_is_forgotten_as_soon_as_one_that_reached_the_ceiling() -> None:
    damper, now = flapped(100, 3.0)
    (status,) = damper.statuses(now)
    assert status.losses == 100
    assert status.penalty <= POLICY.ceiling
    (status,) = damper.statuses(now + 2 * POLICY.half_life_s)
    assert status.penalty <= POLICY.hold_above


def test_graceful_close_adds_no_penalty() -> None:
    damper = LinkDamper()
    for number in range(10):
        damper.link_up("p", number * 3.0)
        damper.link_lost("p", number * 3.0 + 2.0, is_graceful=True)
    assert damper.statuses(30.0) == []


def test_graceful_close_does_not_end_a_hold() -> None:
    damper, now = flapped(3, 5.0)
    before = damper.reuse_at("p")
    assert before is not None
    damper.link_lost("p", now + 1.0, is_graceful=True)
    assert damper.is_damped("p", before + 1.0)
    damper.link_up("p", before + 1.0)
    assert damper.is_damped("p", before + 2.0)


def test_hold_that_has_ended_is_not_revived_by_a_loss_long_after() -> None:
    damper, _ = flapped(2, 5.0)
    damper.link_lost("p", 1_000.0)  # without `advance` in between
    damper.link_up("p", 1_001.0)
    assert not damper.is_damped("p", 1_001.0)


def test_histories_are_forgotten_after_they_have_decayed() -> None:
    damper, now = flapped(4, 5.0)
    damper.link_lost("q", now)
    assert [status.peer for status in damper.statuses(now)] == ["p", "q"]
    damper.advance(now + 3_600.0)
    assert damper.statuses(now + 3_600.0) == []


def test_held_history_of_a_peer_that_never_returns_is_forgotten() -> None:
    damper, now = flapped(4, 5.0)
    damper.link_lost("p", now)
    damper.advance(now + 3_600.0)
    assert damper.statuses(now + 3_600.0) == []


def test_number_of_histories_is_bounded_and_the_smallest_penalty_goes_first() -> None:
    damper = LinkDamper(LinkDampingPolicy(max_peers=10))
    for _ in range(3):
        damper.link_lost("flapping", 0.0)
    for number in range(50):
        damper.link_lost(f"p{number}", 1.0 + number)
    assert len(damper.statuses(60.0)) == 10
    assert damper.is_damped("flapping", 60.0)
    assert damper.forgotten == 41


def test_status_contains_when_a_damped_link_is_used_again() -> None:
    damper, now = flapped(3, 4.0)
    (status,) = damper.statuses(now)
    assert (status.peer, status.losses, status.is_damped) == ("p", 3, True)
    assert status.reuse_at == damper.reuse_at("p")
    assert 2_000 < status.penalty <= 3_000
    (later,) = damper.statuses(now + 130.0)
    assert (later.is_damped, later.reuse_at) == (False, None)


@given(st.lists(st.tuples(st.sampled_from(["lost", "closed", "up", "advance"]), st.floats(0.0, 100.0)), max_size=60))
def test_link_that_stays_up_is_used_again_within_the_longest_hold(events: list[tuple[str, float]]) -> None:
    damper, now = LinkDamper(), 0.0
    for name, after_s in events:
        now += after_s
        match name:
            case "lost":
                damper.link_lost("p", now)
            case "closed":
                damper.link_lost("p", now, is_graceful=True)
            case "up":
                damper.link_up("p", now)
            case _:
                damper.advance(now)
        assert (damper.penalty_us("p", now) > 0) is damper.is_damped("p", now)
    damper.link_up("p", now)
    assert not damper.is_damped("p", now + POLICY.max_hold_s)
    damper.advance(now + POLICY.max_hold_s)
    assert damper.wake_at is None
