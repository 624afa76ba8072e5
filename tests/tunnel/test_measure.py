"""What is known of a link: round trips, loss, queueing, life."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.tunnel.backoff import Backoff
from micro_core.tunnel.measure import LOSS_GAIN, MAX_OUTSTANDING, LinkQuality


def ping(measure: LinkQuality, token: int, now: float, rtt_s: float) -> None:
    measure.ping_sent(token, now)
    assert measure.pong_received(token, now + rtt_s)


def test_the_first_round_trip_is_taken_whole_and_half_of_it_as_variance() -> None:
    """RFC 6298 section 2.2."""
    measure = LinkQuality()
    assert measure.rtt_s is None
    ping(measure, 1, 10.0, 0.100)
    assert measure.rtt_s == pytest.approx(0.100)
    assert measure.rtt_variance_s == pytest.approx(0.050)


def test_later_round_trips_are_smoothed() -> None:
    """RFC 6298 section 2.3: the variance first, with the old round trip."""
    measure = LinkQuality()
    ping(measure, 1, 10.0, 0.100)
    ping(measure, 2, 11.0, 0.200)
    assert measure.rtt_variance_s == pytest.approx(0.75 * 0.050 + 0.25 * 0.100)
    assert measure.rtt_s == pytest.approx(0.875 * 0.100 + 0.125 * 0.200)
    ping(measure, 3, 12.0, 0.100)
    assert measure.rtt_variance_s == pytest.approx(0.75 * 0.0625 + 0.25 * 0.0125)
    assert measure.rtt_s == pytest.approx(0.875 * 0.1125 + 0.125 * 0.100)


def test_answers_to_nothing_and_second_answers_count_for_nothing() -> None:
    measure = LinkQuality()
    assert not measure.pong_received(5, 1.0)
    ping(measure, 1, 1.0, 0.1)
    rtt_s = measure.rtt_s
    assert not measure.pong_received(1, 9.0)
    assert measure.rtt_s == rtt_s


def test_unanswered_pings_are_loss_and_answers_mend_it() -> None:
    measure = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    for number in range(200):
        measure.ping_sent(number, float(number))
    assert measure.loss > 0.99
    for number in range(200, 400):
        ping(measure, number, float(number), 0.01)
    assert measure.loss < 0.01


def test_one_lost_ping_weighs_a_sixteenth() -> None:
    measure = LinkQuality()
    measure.ping_sent(1, 0.0)
    ping(measure, 2, 1.0, 0.1)
    assert measure.loss == 0.0, "it may still be on its way"
    measure.ping_sent(3, 4.0)
    assert measure.loss == pytest.approx(LOSS_GAIN)
    assert not measure.pong_received(1, 4.1), "too late"


def test_outstanding_pings_are_bounded() -> None:
    measure = LinkQuality(keepalive_s=1_000.0)
    for number in range(1_000):
        measure.ping_sent(number, number / 1_000)
    assert len(measure._outstanding) <= MAX_OUTSTANDING


def test_queueing_is_what_exceeds_the_shortest_round_trip() -> None:
    measure = LinkQuality()
    for number in range(20):
        ping(measure, number, float(number), 0.010)
    assert measure.queue_delay_s == pytest.approx(0.0)
    for number in range(20, 45):
        ping(measure, number, float(number), 0.060)
    assert measure.queue_delay_s == pytest.approx(0.050, rel=0.05)
    for number in range(45, 140):
        ping(measure, number, float(number), 0.060)
    assert measure.queue_delay_s == pytest.approx(0.0, abs=0.001), "a longer path is no queue"


def test_a_silent_link_is_dead_after_three_keepalives() -> None:
    measure = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    measure.last_received_at = 10.0
    assert [measure.is_dead(now) for now in (11.0, 12.0, 12.9, 13.0)] == [False, False, False, True]


def test_any_sign_of_life_keeps_a_link_alive() -> None:
    measure = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    for number in range(100):
        measure.last_received_at = number + 0.5
        assert not measure.is_dead(float(number + 1))


def test_who_was_asleep_does_not_blame_the_peer() -> None:
    measure = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    measure.last_received_at = 10.0
    assert not measure.is_dead(10.5)
    assert not measure.is_dead(3_600.0)
    assert not measure.is_dead(3_601.0)
    assert not measure.is_dead(3_602.0)
    assert measure.is_dead(3_603.0), "but the peer gets no more than its whole patience again"


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_figures_stay_within_their_bounds(steps: list[tuple[float, bool]]) -> None:
    measure = LinkQuality()
    now = 0.0
    for token, (seconds, is_answered) in enumerate(steps):
        measure.ping_sent(token, now)
        now += seconds
        if is_answered:
            measure.pong_received(token, now)
        assert 0.0 <= measure.loss <= 1.0
        assert measure.queue_delay_s >= 0.0
        assert measure.rtt_s is None or measure.rtt_s >= 0.0


def test_pauses_between_attempts_double_up_to_their_bound_and_start_anew_after_success() -> None:
    backoff = Backoff(random=random.Random(1), initial_s=0.2, max_s=30.0)
    for bound in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0):
        assert bound / 2 <= backoff.next_s() <= bound
    for _ in range(2_000):
        assert 15.0 <= backoff.next_s() <= 30.0
    backoff.reset()
    assert backoff.next_s() <= 0.2
