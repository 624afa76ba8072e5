"""The cost of links and routes in microseconds. Costs are added up along a path and are never zero. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract.tunnel import LinkInfo
from micro_core.routing.events import UNREACHABLE_US

UNMEASURED_RTT_S = 0.200
"""Assumed for a link that could not be measured within two seconds. Pessimistic: a cost that turns out to be lower
harms no router, while one that turns out to be higher may leave routers without a feasible route."""

LOSS_PENALTY_US = 200_000
"""Cost of 100 % loss. A loss of 1 % costs 2 ms, about the average cost of retransmission at a round trip of 200 ms."""

FREE_LOSS = 0.04
"""Loss up to this share costs nothing: on a calm link, which carries a few packets per second, it is a single packet."""

MIN_LINK_COST_US = 100
"""Every hop has a cost, so that the shorter of two otherwise equal paths is preferred."""

SIGNIFICANT_CHANGE = 0.25
"""Relative changes of a cost up to this are not advertised (hysteresis)."""

SIGNIFICANT_US = 1_000
"""Nor are changes up to this, whatever their share: among nodes of one site they are noise."""

LARGE_CHANGE = 2
"""A cost that is this many times higher or lower is advertised at once. It is the smallest of several samples, so a single late
answer cannot be the reason."""

INTERVALS_BEFORE_CHANGE = 2
"""Number of consecutive measurements that must deviate before the advertised cost changes."""


def loss_penalty_us(loss: float | None) -> int:
    """Return the cost of a loss, which is a share of 0 to 1 or None if it is unknown, in microseconds."""
    return round(LOSS_PENALTY_US * max(0.0, (loss or 0.0) - FREE_LOSS))


def cost_of(link: LinkInfo, configured_us: int = 0) -> int:
    """Return the cost of a link in microseconds, see `link_cost_us`."""
    return link_cost_us(
        rtt_s=link.path_rtt_s, queue_delay_s=link.queue_delay_s, loss=link.loss, configured_us=configured_us
    )


def link_cost_us(*, rtt_s: float | None, queue_delay_s: float, loss: float | None, configured_us: int = 0) -> int:
    """Return the cost of a link: round trip + queueing delay + loss penalty + configured cost.

    Args:
        rtt_s: Round-trip time without queues in seconds. None before the first measurement.
        queue_delay_s: Queueing delay in seconds.
        loss: Share of lost packets, 0 to 1. None if it is unknown.
        configured_us: Cost that the operator adds, in microseconds.

    Returns:
        Microseconds, at least `MIN_LINK_COST_US` and at most `UNREACHABLE_US`.
    """
    rtt = UNMEASURED_RTT_S if rtt_s is None else rtt_s
    cost = (rtt + queue_delay_s) * 1e6 + loss_penalty_us(loss) + configured_us
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
    """The advertised cost of a link. It follows the measured cost only after a lasting or large change."""

    cost_us: int
    _deviations: int = 0

    def update(self, cost_us: int) -> bool:
        """Process a measurement. Return whether the advertised cost changed."""
        if abs(cost_us - self.cost_us) <= max(SIGNIFICANT_US, SIGNIFICANT_CHANGE * self.cost_us):
            self._deviations = 0
            return False
        self._deviations += 1
        is_large = not self.cost_us / LARGE_CHANGE < cost_us < self.cost_us * LARGE_CHANGE
        if self._deviations < INTERVALS_BEFORE_CHANGE and not is_large:
            return False
        self._deviations = 0
        self.cost_us = cost_us
        return True
