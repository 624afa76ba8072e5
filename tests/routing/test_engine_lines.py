"""Links that stall, and links that share the line to a site: when the engine makes them the last resort."""

from __future__ import annotations

import pytest

from micro_core.routing.events import NeighbourDown, NeighbourSuspect, NeighbourUp
from micro_core.routing.link_damping import LinkDampingPolicy
from micro_core.routing.lookup import DEFAULT_SITE
from tests.routing.engine_harness import COST_US, FAR, LEFT, OTHER, RIGHT, EngineHarness

POLICY = LinkDampingPolicy()


def metrics(harness: EngineHarness) -> dict[str, int]:
    return {route.gateway: route.metric for route in harness.table.routes()}


def link(harness: EngineHarness, peer: str, site: str) -> None:
    harness.handle(NeighbourUp(peer, COST_US, "", site))
    harness.receive_advert(peer, begins=True, ends=True)


def line_lost(harness: EngineHarness, site: str) -> None:
    """Lose the only link to a site."""
    link(harness, LEFT, site)
    harness.run(10)
    harness.handle(NeighbourDown(LEFT))
    harness.run(1)


def test_link_that_stalled_is_the_last_resort_for_a_while() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, metric_us=20_000)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(5)
    harness.handle(NeighbourSuspect(LEFT, True))
    harness.run(POLICY.stall_s)
    assert metrics(harness)[LEFT] == 100 + COST_US
    harness.handle(NeighbourSuspect(LEFT, False))
    assert metrics(harness)[LEFT] == 100 + COST_US + POLICY.last_resort_us
    harness.run(POLICY.hold_s * (1 + POLICY.spread))
    assert metrics(harness)[LEFT] == 100 + COST_US


def test_link_that_is_given_up_and_replaced_has_not_stalled() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.handle(NeighbourSuspect(LEFT, True, is_closing=True))
    harness.run(2 * POLICY.stall_s)
    harness.handle(NeighbourSuspect(LEFT, False))
    assert metrics(harness)[LEFT] == 100 + COST_US


def test_link_to_another_node_of_a_site_is_the_last_resort_after_the_line_failed() -> None:
    harness = EngineHarness(RIGHT)
    line_lost(harness, "eu")
    link(harness, OTHER, "eu")
    harness.learn(FAR, OTHER, metric_us=100)
    assert metrics(harness)[OTHER] == 100 + COST_US + POLICY.last_resort_us
    harness.run(POLICY.hold_s * (1 + POLICY.spread))
    assert metrics(harness)[OTHER] == 100 + COST_US


@pytest.mark.parametrize("site", ["s", "", DEFAULT_SITE])
def test_links_of_the_own_site_and_of_unnamed_ones_share_no_line(site: str) -> None:
    harness = EngineHarness(RIGHT)
    line_lost(harness, site)
    link(harness, OTHER, site)
    harness.learn(FAR, OTHER, metric_us=100)
    assert metrics(harness)[OTHER] == 100 + COST_US


def test_link_that_survives_a_failure_of_its_line_is_the_last_resort() -> None:
    harness = EngineHarness(RIGHT)
    link(harness, LEFT, "eu")
    link(harness, OTHER, "eu")
    harness.learn(FAR, OTHER, metric_us=100)
    harness.run(5)
    harness.handle(NeighbourSuspect(LEFT, True))
    harness.handle(NeighbourSuspect(OTHER, True))
    harness.run(3)
    harness.handle(NeighbourDown(LEFT))
    assert metrics(harness)[OTHER] == 100 + COST_US + POLICY.last_resort_us
