"""Links that stall, and links that share the line to a site: when the engine makes them the last resort."""

from __future__ import annotations

import pytest

from micro_core.routing.events import NeighbourDown, NeighbourSuspect, NeighbourUp
from micro_core.routing.link_damping import LinkDampingPolicy
from micro_core.routing.lookup import DEFAULT_SITE
from micro_core.routing.rib_entry import TOMBSTONE_S
from tests.routing.engine_harness import COST_US, FAR, LEFT, OTHER, RIGHT, EngineHarness, announce, offers, withdraw

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


# ---------------------------------------------------------------- isolated peers


def advertise(harness: EngineHarness, *path: str, sequence: int = 1, site: str = "eu") -> None:
    """Receive a route to the node `path[0]` of a site."""
    harness.receive_advert(path[-1], announce(*path, sequence=sequence, site=site), offers(path[0], "greeter"))


def separated(*, origins: tuple[str, ...] = (LEFT,), for_s: float = 10.0) -> EngineHarness:
    """Return an engine that lost its link to LEFT, and with it all routes to these nodes of the site "eu", `for_s` ago."""
    harness = EngineHarness(RIGHT)
    link(harness, LEFT, "eu")
    for origin in origins:
        advertise(harness, *dict.fromkeys((origin, LEFT)))
    harness.run(10)
    harness.handle(NeighbourDown(LEFT))
    harness.run(for_s)
    return harness


def is_last_resort(harness: EngineHarness, peer: str) -> bool:
    harness.learn(FAR, peer, metric_us=100)
    (metric,) = [route.metric for route in harness.table.routes_to("greeter", FAR) if route.gateway == peer]
    assert metric in (100 + COST_US, 100 + COST_US + POLICY.last_resort_us)
    return metric > POLICY.last_resort_us


@pytest.mark.parametrize("for_s", [10.0, TOMBSTONE_S - 1.0, TOMBSTONE_S + 10.0, 2 * TOMBSTONE_S + 10.0])
def test_link_to_an_isolated_node_is_used_at_once(for_s: float) -> None:
    harness = separated(for_s=for_s)
    link(harness, LEFT, "eu")
    assert not is_last_resort(harness, LEFT)


def test_link_to_a_node_that_was_isolated_for_a_short_time_is_the_last_resort() -> None:
    harness = separated(for_s=POLICY.isolated_s - 0.5)
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_line_to_an_isolated_site_is_used_at_once_with_any_of_its_nodes() -> None:
    harness = separated(origins=(LEFT, OTHER))
    link(harness, OTHER, "eu")
    assert not is_last_resort(harness, OTHER)
    link(harness, LEFT, "eu")
    assert not is_last_resort(harness, LEFT)


@pytest.mark.parametrize("for_s", [1.0, 10.0])
def test_link_to_a_node_that_others_reached_meanwhile_is_the_last_resort(for_s: float) -> None:
    harness = EngineHarness(RIGHT)
    link(harness, LEFT, "eu")
    advertise(harness, LEFT)
    harness.run(5)
    advertise(harness, LEFT, RIGHT)
    harness.handle(NeighbourDown(LEFT))
    harness.run(for_s)
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_link_to_a_node_that_others_reached_soon_is_the_last_resort() -> None:
    harness = separated(for_s=POLICY.isolated_s - 0.5)
    advertise(harness, LEFT, RIGHT)
    harness.run(10)
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_another_route_to_a_node_does_not_prolong_its_isolation() -> None:
    harness = separated(for_s=POLICY.isolated_s - 0.5)
    harness.link(OTHER)
    advertise(harness, LEFT, RIGHT)
    harness.run(10)
    advertise(harness, LEFT, OTHER)
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_link_to_a_node_that_others_reach_first_after_its_isolation_is_used_at_once() -> None:
    """Another node of this site was faster: its route shows that the isolation is over."""
    harness = separated()
    advertise(harness, LEFT, RIGHT)
    harness.run(1)
    link(harness, LEFT, "eu")
    assert not is_last_resort(harness, LEFT)


def test_link_to_an_isolated_node_that_was_restarted_is_used_at_once() -> None:
    harness = separated()
    restarted = announce(LEFT, RIGHT, incarnation=2, site="eu")
    harness.receive_advert(RIGHT, restarted, offers(LEFT, "greeter", incarnation=2))
    link(harness, LEFT, "eu")
    assert not is_last_resort(harness, LEFT)


def test_route_of_an_earlier_incarnation_shows_that_a_node_was_not_isolated() -> None:
    harness = EngineHarness(RIGHT)
    link(harness, LEFT, "eu")
    advertise(harness, LEFT)
    advertise(harness, LEFT, RIGHT)
    harness.handle(NeighbourDown(LEFT))
    harness.run(10)
    restarted = announce(LEFT, RIGHT, incarnation=2, site="eu")
    harness.receive_advert(RIGHT, restarted, offers(LEFT, "greeter", incarnation=2))
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_link_to_a_node_without_routes_of_its_own_is_the_last_resort() -> None:
    """Whether others had a route to it is unknown."""
    harness = separated(origins=())
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


def test_first_route_to_a_node_does_not_show_that_it_was_isolated() -> None:
    """Soon after the clock of this router began, the time of an isolation that never began would be recent enough."""
    harness = EngineHarness()
    harness.now = 1.0
    harness.link(RIGHT)
    link(harness, LEFT, "eu")
    harness.handle(NeighbourDown(LEFT))
    harness.run(10)
    advertise(harness, LEFT, RIGHT)
    link(harness, LEFT, "eu")
    assert is_last_resort(harness, LEFT)


@pytest.mark.parametrize("is_back", [True, False])
def test_line_is_the_last_resort_though_another_node_of_the_site_had_failed_before(is_back: bool) -> None:
    """Neither its return nor the end of its tombstone lifts the hold of a line among good ones."""
    harness = EngineHarness(RIGHT)
    link(harness, LEFT, "eu")
    advertise(harness, LEFT)
    advertise(harness, LEFT, RIGHT)
    advertise(harness, OTHER, RIGHT)
    harness.run(1)
    harness.receive_advert(RIGHT, withdraw(OTHER))
    emptied_at = harness.now
    for _ in range(5):
        harness.run((TOMBSTONE_S - 10.0) / 5)
        # As a full table, which renews the lease.
        for peer in (LEFT, RIGHT):
            route = announce(*dict.fromkeys((LEFT, peer)), site="eu"), offers(LEFT, "greeter")
            harness.receive_advert(peer, *route, begins=True, ends=True)
    harness.handle(NeighbourDown(LEFT))
    assert harness.now < emptied_at + TOMBSTONE_S
    harness.run(20 if not is_back else 6)
    if is_back:
        advertise(harness, OTHER, RIGHT, sequence=2)
    link(harness, OTHER, "eu")
    assert is_last_resort(harness, OTHER)
