"""What a link costs, in microseconds: additive, never a product, never zero. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.routing.events import UNREACHABLE_US

UNMEASURED_RTT_S = 0.010
"""Assumed until the first ping is answered, a second at most: good enough to be used, not so good as to draw all."""

LOSS_PENALTY_US = 200_000
"""Cost of certain loss; of 1 % loss, 2 ms: about what a retransmission costs on average at 200 ms."""

MIN_LINK_COST_US = 100
"""A hop costs something however near it is, so that a shorter path wins among equals."""

SIGNIFICANT_CHANGE = 0.25
"""Changes below a quarter are not worth telling (hysteresis)."""

INTERVALS_BEFORE_CHANGE = 2
"""A change is believed when it has lasted so many measurements."""


def link_cost_us(*, rtt_s: float | None, queue_delay_s: float, loss: float | None, configured_us: int = 0) -> int:
    """Smoothed round trip + queue delay + loss penalty + what the operator adds, at least `MIN_LINK_COST_US`."""
    rtt = UNMEASURED_RTT_S if rtt_s is None else rtt_s
    cost = (rtt + queue_delay_s) * 1e6 + LOSS_PENALTY_US * (loss or 0.0) + configured_us
    return max(MIN_LINK_COST_US, min(UNREACHABLE_US, round(cost)))


def add(metric_us: int, cost_us: int) -> int:
    """The metric one hop further; stops at `UNREACHABLE_US`."""
    return min(UNREACHABLE_US, metric_us + cost_us)


@dataclass(slots=True)
class SteadyCost:
    """A link's cost as it is advertised: follows the measured one only when it has moved for good."""

    cost_us: int
    _away: int = 0
    _is_guess: bool = True
    """Nothing was measured yet: the first figure is better than none, and is taken at once."""

    def measured(self, cost_us: int) -> bool:
        """Take a measurement; True when the advertised cost changed."""
        was_guess, self._is_guess = self._is_guess, False
        if abs(cost_us - self.cost_us) <= SIGNIFICANT_CHANGE * self.cost_us:
            self._away = 0
            return False
        self._away += 1
        if self._away < INTERVALS_BEFORE_CHANGE and not was_guess:
            return False
        self._away = 0
        self.cost_us = cost_us
        return True
