"""The measured quality of a link: round-trip time, loss, queueing delay, liveness; and the backoff of attempts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.tunnel.backoff import Backoff
from micro_core.tunnel.measure import LOSS_GAIN, MAX_OUTSTANDING, MAX_RTT_S, PATH_SAMPLES, LinkQuality


def ping(quality: LinkQuality, token: int, now: float, rtt_s: float) -> None:
    quality.ping_sent(token, now)
    assert quality.pong_received(token, now + rtt_s)


def test_first_round_trip_sets_the_time_and_half_of_it_the_variance() -> None:
    """RFC 6298 section 2.2."""
    quality = LinkQuality()
    assert quality.rtt_s is None
    ping(quality, 1, 10.0, 0.100)
    assert quality.rtt_s == pytest.approx(0.100)
    assert quality.rtt_variance_s == pytest.approx(0.050)


def test_later_round_trips_are_smoothed() -> None:
    """RFC 6298 section 2.3: the variance is updated first, with the old round-trip time."""
    quality = LinkQuality()
    ping(quality, 1, 10.0, 0.100)
    ping(quality, 2, 11.0, 0.200)
    assert quality.rtt_variance_s == pytest.approx(0.75 * 0.050 + 0.25 * 0.100)
    assert quality.rtt_s == pytest.approx(0.875 * 0.100 + 0.125 * 0.200)
    ping(quality, 3, 12.0, 0.100)
    assert quality.rtt_variance_s == pytest.approx(0.75 * 0.0625 + 0.25 * 0.0125)
    assert quality.rtt_s == pytest.approx(0.875 * 0.1125 + 0.125 * 0.100)


def test_unexpected_and_repeated_answers_are_ignored() -> None:
    quality = LinkQuality()
    assert not quality.pong_received(5, 1.0)
    ping(quality, 1, 1.0, 0.1)
    rtt_s = quality.rtt_s
    assert not quality.pong_received(1, 9.0)
    assert quality.rtt_s == rtt_s


def test_unanswered_pings_raise_the_loss_and_answers_lower_it() -> None:
    quality = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    for number in range(200):
        quality.ping_sent(number, float(number))
    assert quality.loss > 0.99
    for number in range(200, 400):
        ping(quality, number, float(number), 0.01)
    assert quality.loss < 0.01


def test_one_lost_ping_weighs_one_sixteenth() -> None:
    quality = LinkQuality()
    quality.ping_sent(1, 0.0)
    ping(quality, 2, 1.0, 0.1)
    assert quality.loss == 0.0, "the answer may still arrive"
    quality.ping_sent(3, 4.0)
    assert quality.loss == pytest.approx(LOSS_GAIN)
    assert not quality.pong_received(1, 4.1), "the ping has timed out"


def test_number_of_outstanding_pings_is_bounded() -> None:
    quality = LinkQuality(keepalive_s=1_000.0)
    for number in range(1_000):
        quality.ping_sent(number, number / 1_000)
    assert len(quality._outstanding) <= MAX_OUTSTANDING


def test_slower_path_is_known_after_four_samples_and_is_not_taken_for_a_queue() -> None:
    quality = LinkQuality()
    for number in range(20):
        ping(quality, number, float(number), 0.040)
    costs = []
    for number in range(20, 30):
        ping(quality, number, float(number), 0.400)
        assert quality.path_rtt_s is not None
        costs.append(quality.path_rtt_s + quality.queue_delay_s)
    assert costs[0] == pytest.approx(0.040), "a single late answer does not count"
    assert costs[PATH_SAMPLES - 1 :] == [pytest.approx(0.400)] * (len(costs) - PATH_SAMPLES + 1)
    assert max(costs) <= 0.400 + 1e-9, "the additional delay counts once"


def test_faster_path_is_known_immediately() -> None:
    quality = LinkQuality()
    for number in range(8):
        ping(quality, number, float(number), 0.400)
    ping(quality, 9, 9.0, 0.040)
    assert quality.path_rtt_s == pytest.approx(0.040)


@given(st.integers(0, 40), st.floats(0.05, 60.0))
def test_single_late_answer_does_not_move_the_cost(position: int, late_s: float) -> None:
    quality = LinkQuality()
    for number in range(60):
        is_late = number == position + PATH_SAMPLES
        ping(quality, number, float(number), late_s if is_late else 0.040)
        assert quality.path_rtt_s == pytest.approx(0.040)
        assert quality.queue_delay_s == pytest.approx(0.0)


def test_queueing_delay_is_the_usual_time_above_the_smallest_round_trip() -> None:
    quality = LinkQuality()
    for number in range(60):
        ping(quality, number, float(number), 0.010 if number % 4 == 0 else 0.060)
    assert quality.path_rtt_s == pytest.approx(0.010)
    assert quality.queue_delay_s == pytest.approx(0.050, rel=0.05)
    for number in range(60, 90):
        ping(quality, number, float(number), 0.010)
    assert quality.queue_delay_s < 0.002


def test_load_of_the_event_loops_does_not_move_the_measurements() -> None:
    quality = LinkQuality()
    ping(quality, 0, 0.0, 0.040)
    for number in range(1, 60):
        quality.ping_sent(number, float(number))
        busy_s = 0.1 * (number % 5)
        assert quality.pong_received(number, number + 0.040 + busy_s, lag_s=0.5)
    assert quality.path_rtt_s == pytest.approx(0.040)
    assert quality.rtt_s == pytest.approx(0.040)
    assert quality.queue_delay_s == pytest.approx(0.0)


def test_change_of_the_path_that_load_cannot_explain_is_measured() -> None:
    quality = LinkQuality()
    ping(quality, 0, 0.0, 0.040)
    for number in range(1, 6):
        quality.ping_sent(number, float(number))
        assert quality.pong_received(number, number + 0.400, lag_s=0.1)
    assert quality.path_rtt_s == pytest.approx(0.300)
    quality.ping_sent(7, 7.0)
    assert quality.pong_received(7, 7.020, lag_s=0.1)
    assert quality.path_rtt_s == pytest.approx(0.020), "no load makes an answer early"


def test_samples_of_the_peer_count_and_are_bounded() -> None:
    quality = LinkQuality()
    for _ in range(PATH_SAMPLES):
        quality.peer_measured(0.080)
    assert quality.path_rtt_s == pytest.approx(0.080)
    assert quality.pop_sample(0.0) is None, "they are not reported back"
    for _ in range(PATH_SAMPLES):
        quality.peer_measured(1e9)
    assert quality.path_rtt_s == MAX_RTT_S


def test_each_sample_is_reported_once() -> None:
    quality = LinkQuality()
    ping(quality, 1, 1.0, 0.050)
    assert quality.pop_sample(1.1) == pytest.approx(0.050)
    assert quality.pop_sample(1.1) is None


def test_sample_is_not_reported_when_the_peer_has_a_later_one() -> None:
    quality = LinkQuality(keepalive_s=1.0)
    ping(quality, 1, 1.0, 0.050)
    assert quality.pop_sample(3.0) is None


def acknowledged(quality: LinkQuality, token: int, at: float, rtt_s: float) -> None:
    quality.ping_sent(token, at)
    assert quality.ping_acknowledged(token, rtt_s, at + rtt_s)


def test_acknowledgement_measures_what_agrees_with_the_last_round_trips() -> None:
    quality = LinkQuality()
    ping(quality, 1, 1.0, 0.050)
    acknowledged(quality, 2, 2.0, 0.051)
    assert quality.is_settled
    assert quality.pop_sample(2.1) == pytest.approx(0.051)
    acknowledged(quality, 3, 3.0, 0.020)
    assert quality.path_rtt_s == pytest.approx(0.020), "no load makes it early"
    assert not quality.ping_acknowledged(3, 0.020, 3.1), "counted already"


@pytest.mark.parametrize(("lag_s", "expected_s"), [(0.0, 0.400), (0.100, 0.300), (0.500, 0.050)])
def test_late_acknowledgements_count_only_as_far_as_the_next_answer_cannot_explain_them(
    lag_s: float, expected_s: float
) -> None:
    quality = LinkQuality()
    for number in range(PATH_SAMPLES):
        ping(quality, number, float(number), 0.050)
    for number in range(10, 10 + PATH_SAMPLES):
        acknowledged(quality, number, float(number), 0.400)
        assert quality.path_rtt_s == pytest.approx(0.050), "the peer may be busy"
        assert not quality.is_settled, "the next ping asks for an answer"
    quality.ping_sent(20, 20.0)
    assert quality.pong_received(20, 20.400, lag_s=lag_s)
    assert quality.path_rtt_s == pytest.approx(expected_s)
    assert quality.is_settled


def test_link_is_suspect_when_a_ping_is_unanswered_for_one_and_a_quarter_keepalives() -> None:
    quality = LinkQuality(keepalive_s=1.0)
    quality.last_received_at = 9.5
    quality.ping_sent(1, 10.0)
    assert quality.suspect_at == 11.25
    quality.ping_sent(2, 11.0)
    assert quality.suspect_at == 11.25, "of the first unanswered ping"
    assert not quality.check_suspect(11.2, 0.0)
    assert not quality.check_suspect(11.3, 0.2), "the answer may wait in a busy event loop"
    assert quality.check_suspect(11.5, 0.2)
    assert quality.is_suspect
    assert not quality.check_suspect(11.6, 0.0), "reported once"


def test_anything_that_arrives_counts_as_an_answer() -> None:
    quality = LinkQuality(keepalive_s=1.0)
    quality.last_received_at = 9.5
    quality.ping_sent(1, 10.0)
    quality.last_received_at = 10.2
    assert quality.suspect_at is None
    quality.ping_sent(2, 11.0)
    assert quality.suspect_at == 12.25


def test_end_that_missed_a_ping_of_the_peer_suspects_it_sooner() -> None:
    quality = LinkQuality(keepalive_s=1.0)
    quality.last_received_at = 9.0
    assert quality.is_silent(10.25)
    quality.ping_sent(1, 10.25)
    assert quality.suspect_at == 10.75


def test_long_path_is_not_suspect_before_an_answer_can_arrive() -> None:
    quality = LinkQuality(keepalive_s=1.0)
    for number in range(20):
        ping(quality, number, 3.0 * number, 2.0)
    quality.last_received_at = 59.0
    quality.ping_sent(100, 60.0)
    assert quality.suspect_at is not None
    assert quality.suspect_at > 62.0


def test_silent_link_is_dead_after_three_keepalives() -> None:
    quality = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    quality.last_received_at = 10.0
    assert [quality.is_dead(now) for now in (11.0, 12.0, 12.9, 13.0)] == [False, False, False, True]


def test_any_received_data_keeps_a_link_alive() -> None:
    quality = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    for number in range(100):
        quality.last_received_at = number + 0.5
        assert not quality.is_dead(float(number + 1))


def test_suspension_of_this_process_does_not_make_the_peer_dead() -> None:
    quality = LinkQuality(keepalive_s=1.0, dead_after_missed=3)
    quality.last_received_at = 10.0
    assert not quality.is_dead(10.5)
    assert not quality.is_dead(3_600.0)
    assert not quality.is_dead(3_601.0)
    assert not quality.is_dead(3_602.0)
    assert quality.is_dead(3_603.0), "the timeout of the peer starts again only once"


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_measurements_stay_within_their_bounds(steps: list[tuple[float, bool]]) -> None:
    quality = LinkQuality()
    now = 0.0
    for token, (seconds, is_answered) in enumerate(steps):
        quality.ping_sent(token, now)
        now += seconds
        if is_answered:
            quality.pong_received(token, now)
        assert 0.0 <= quality.loss <= 1.0
        assert quality.queue_delay_s >= 0.0
        assert quality.rtt_s is None or quality.rtt_s >= 0.0


def test_backoff_doubles_up_to_its_bound_and_restarts_after_success() -> None:
    backoff = Backoff(random=random.Random(1), initial_s=0.2, max_s=30.0)
    for bound in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0):
        assert bound / 2 <= backoff.next_s() <= bound
    for _ in range(2_000):
        assert 15.0 <= backoff.next_s() <= 30.0
    backoff.reset()
    assert backoff.next_s() <= 0.2
