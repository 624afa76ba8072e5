"""The cost of links, and when a change of it is advertised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.events import UNREACHABLE_US
from micro_core.routing.metric import LOSS_PENALTY_US, MIN_LINK_COST_US, SteadyCost, add, link_cost_us, loss_penalty_us

figures = st.floats(0, 3_600, allow_nan=False)


def test_cost_is_the_sum_of_round_trip_queueing_loss_and_configured_cost() -> None:
    cost = link_cost_us(rtt_s=0.020, queue_delay_s=0.003, loss=0.05, configured_us=500)
    assert cost == 20_000 + 3_000 + LOSS_PENALTY_US // 100 + 500


def test_single_lost_packet_of_a_calm_link_costs_nothing() -> None:
    assert loss_penalty_us(1 / 32) == loss_penalty_us(None) == 0
    assert loss_penalty_us(0.20) == pytest.approx(32_000)


def test_link_that_cannot_be_measured_is_not_preferred() -> None:
    assert link_cost_us(rtt_s=None, queue_delay_s=0.0, loss=None) >= 200_000


def test_cost_has_a_minimum() -> None:
    assert link_cost_us(rtt_s=0.0, queue_delay_s=0.0, loss=None) == MIN_LINK_COST_US
    assert link_cost_us(rtt_s=0.0, queue_delay_s=0.0, loss=0.0, configured_us=-5_000) == MIN_LINK_COST_US


def test_unmeasured_link_has_a_finite_cost_above_the_minimum() -> None:
    assert MIN_LINK_COST_US < link_cost_us(rtt_s=None, queue_delay_s=0.0, loss=None) < UNREACHABLE_US


@given(figures, figures, st.floats(0, 1), st.integers(0, 2**40))
def test_cost_is_within_its_bounds(rtt_s: float, queue_delay_s: float, loss: float, configured_us: int) -> None:
    cost = link_cost_us(rtt_s=rtt_s, queue_delay_s=queue_delay_s, loss=loss, configured_us=configured_us)
    assert MIN_LINK_COST_US <= cost <= UNREACHABLE_US


@given(st.integers(0, UNREACHABLE_US), st.integers(0, UNREACHABLE_US))
def test_sum_never_decreases_and_stops_at_unreachable(metric_us: int, cost_us: int) -> None:
    total = add(metric_us, cost_us)
    assert total == min(metric_us + cost_us, UNREACHABLE_US)
    assert total >= max(metric_us, cost_us)


@pytest.mark.parametrize("cost_us", [5_000, 20_000, 200_000])
def test_large_change_is_advertised_at_once(cost_us: int) -> None:
    steady = SteadyCost(10_000)
    assert steady.update(cost_us)
    assert steady.cost_us == cost_us


def test_changes_of_up_to_a_millisecond_are_not_advertised() -> None:
    steady = SteadyCost(200)
    assert not any(steady.update(cost_us) for cost_us in (1_200, 900, 100, 1_200) * 5)
    assert steady.update(1_201)


@pytest.mark.parametrize("cost_us", [7_500, 9_000, 12_500])
def test_changes_of_up_to_a_quarter_are_not_advertised(cost_us: int) -> None:
    steady = SteadyCost(10_000)
    assert not any(steady.update(cost_us) for _ in range(10))
    assert steady.cost_us == 10_000


@pytest.mark.parametrize("cost_us", [7_400, 12_600, 19_900])
def test_change_is_advertised_after_two_measurements(cost_us: int) -> None:
    steady = SteadyCost(10_000)
    assert not steady.update(cost_us)
    assert steady.update(cost_us)
    assert steady.cost_us == cost_us


def test_single_spikes_are_not_advertised() -> None:
    steady = SteadyCost(10_000)
    for _ in range(50):
        assert not steady.update(19_900)
        assert not steady.update(10_500)
    assert steady.cost_us == 10_000
