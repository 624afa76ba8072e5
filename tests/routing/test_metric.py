"""The cost of links, and when a change of it is advertised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.events import UNREACHABLE_US
from micro_core.routing.metric import LOSS_PENALTY_US, MIN_LINK_COST_US, SteadyCost, add, link_cost_us

figures = st.floats(0, 3_600, allow_nan=False)


def test_cost_is_the_sum_of_round_trip_queueing_loss_and_configured_cost() -> None:
    cost = link_cost_us(rtt_s=0.020, queue_delay_s=0.003, loss=0.01, configured_us=500)
    assert cost == 20_000 + 3_000 + LOSS_PENALTY_US // 100 + 500


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


def measured_once(cost_us: int) -> SteadyCost:
    steady = SteadyCost(cost_us)
    assert not steady.update(cost_us)
    return steady


def test_first_measurement_replaces_the_guess_at_once() -> None:
    steady = SteadyCost(10_000)
    assert steady.update(40_000)
    assert steady.cost_us == 40_000


@pytest.mark.parametrize("cost_us", [7_500, 9_000, 12_500])
def test_changes_of_up_to_a_quarter_are_not_advertised(cost_us: int) -> None:
    steady = measured_once(10_000)
    assert not any(steady.update(cost_us) for _ in range(10))
    assert steady.cost_us == 10_000


@pytest.mark.parametrize("cost_us", [7_400, 12_600, 100_000])
def test_change_is_advertised_after_two_measurements(cost_us: int) -> None:
    steady = measured_once(10_000)
    assert not steady.update(cost_us)
    assert steady.update(cost_us)
    assert steady.cost_us == cost_us


def test_single_spikes_are_not_advertised() -> None:
    steady = measured_once(10_000)
    for _ in range(50):
        assert not steady.update(500_000)
        assert not steady.update(10_500)
    assert steady.cost_us == 10_000
