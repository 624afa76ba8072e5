"""The cost of links and routes in microseconds. Costs are added up along a path and are never zero. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.routing.events import UNREACHABLE_US

UNMEASURED_RTT_S = 0.010
"""Assumed until the first ping is answered, which takes a second at most. A new link is usable, but not preferred."""

LOSS_PENALTY_US = 200_000
"""Cost of 100 % loss. A loss of 1 % costs 2 ms, about the average cost of retransmission at a round trip of 200 ms."""

MIN_LINK_COST_US = 100
"""Every hop has a cost, so that the shorter of two otherwise equal paths is preferred."""

SIGNIFICANT_CHANGE = 0.25
"""Relative changes of a cost up to this are not advertised (hysteresis)."""

SIGNIFICANT_US = 1_000
"""Changes of the metric of a route up to this are not advertised."""

INTERVALS_BEFORE_CHANGE = 2
"""Number of consecutive measurements that must deviate before the advertised cost changes."""


def link_cost_us(*, rtt_s: float | None, queue_delay_s: float, loss: float | None, configured_us: int = 0) -> int:
    """Return the cost of a link: smoothed round trip + queueing delay + loss penalty + configured cost.

    Args:
        rtt_s: Smoothed round-trip time in seconds. None before the first measurement.
        queue_delay_s: Queueing delay in seconds.
        loss: Share of lost packets, 0 to 1. None if it is unknown.
        configured_us: Cost that the operator adds, in microseconds.

    Returns:
        Microseconds, at least `MIN_LINK_COST_US` and at most `UNREACHABLE_US`.
    """
    rtt = UNMEASURED_RTT_S if rtt_s is None else rtt_s
    cost = (rtt + queue_delay_s) * 1e6 + LOSS_PENALTY_US * (loss or 0.0) + configured_us
    return max(MIN_LINK_COST_US, min(UNREACHABLE_US, round(cost)))


def add(metric_us: int, cost_us: int) -> int:
    """Return the metric of a route after one more hop with the given cost, at most `UNREACHABLE_US`."""
    return min(UNREACHABLE_US, metric_us + cost_us)


def is_significant(metric_us: int, advertised_us: int) -> bool:
    """Return whether a metric differs from the advertised one by more than a quarter and one millisecond (hysteresis)."""
    difference_us = abs(metric_us - advertised_us)
    return difference_us > SIGNIFICANT_US and difference_us > SIGNIFICANT_CHANGE * advertised_us


@dataclass(slots=True)
class SteadyCost:
    """The advertised cost of a link. It follows the measured cost only after a lasting, significant change."""

    cost_us: int
    _deviations: int = 0
    _is_guess: bool = True
    """No measurement was made yet. The first one replaces the guess immediately."""

    def update(self, cost_us: int) -> bool:
        """Process a measurement. Return whether the advertised cost changed."""
        was_guess, self._is_guess = self._is_guess, False
        if abs(cost_us - self.cost_us) <= SIGNIFICANT_CHANGE * self.cost_us:
            self._deviations = 0
            return False
        self._deviations += 1
        if self._deviations < INTERVALS_BEFORE_CHANGE and not was_guess:
            return False
        self._deviations = 0
        self.cost_us = cost_us
        return True
