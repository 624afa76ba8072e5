"""One routing engine: on a new link, the full tables are sent one after the other."""

from __future__ import annotations

from micro_core.routing.entries import OriginAnnounce, OriginWithdraw
from micro_core.routing.events import Ack, Advert, NeighbourUp
from micro_core.routing.neighbour import MAX_UNACKNOWLEDGED
from tests.routing.engine_harness import (
    COST_US,
    FAR,
    LEFT,
    ME,
    OTHER,
    RIGHT,
    EngineHarness,
    announce,
    names_of,
    offers,
    withdraw,
)


def test_router_with_the_smaller_id_sends_its_full_table_first() -> None:
    """The other one leaves out the offers that its neighbour has sent, and the routes that lead through it."""
    harness = EngineHarness()
    harness.up()
    harness.run(1)
    harness.handle(NeighbourUp(RIGHT, COST_US))
    assert names_of(harness.take_entries(RIGHT)) == ["greeter"]
    harness.receive_advert(RIGHT, begins=True, ends=True)
    harness.learn(FAR, RIGHT, services=("far",))
    harness.learn(OTHER, RIGHT, services=("other",), metric_us=90_000)
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.up("second")
    harness.run(0.6)
    assert harness.take_entries(LEFT) == []
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=90_000), offers(FAR, "far"), begins=True)
    assert harness.take_entries(LEFT) == [], "the full table is not complete"
    harness.receive_advert(LEFT, announce(OTHER, LEFT), offers(OTHER, "other"), ends=True)
    sent = harness.take_entries(LEFT)
    assert {one.origin for one in sent if isinstance(one, OriginAnnounce)} == {ME, FAR}
    assert names_of(sent) == ["greeter", "second"]


def test_no_advert_is_sent_before_the_full_table() -> None:
    harness = EngineHarness()
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.up("second")
    harness.run(0.6)
    harness.receive_advert(LEFT, begins=True)
    for _ in range(2 * MAX_UNACKNOWLEDGED):
        harness.receive_advert(LEFT)
    assert {type(m) for _, m in harness.take_sent()} == {Ack}
    harness.receive_advert(LEFT, ends=True)
    (advert,) = [m for _, m in harness.take_sent() if isinstance(m, Advert)]
    assert advert.begins


def test_router_with_the_larger_id_waits_for_a_second_at_most() -> None:
    harness = EngineHarness()
    harness.up()
    harness.run(1)
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.run(0.9)
    assert harness.take_sent() == []
    harness.run(0.2)
    assert names_of(harness.take_entries(LEFT)) == ["greeter"]
    harness.receive_advert(LEFT, begins=True, ends=True)
    harness.run(5)
    assert [m for _, m in harness.take_sent() if isinstance(m, Advert)] == [], "the full table is sent once"


def test_route_that_returns_unchanged_is_advertised_to_the_neighbours_that_lost_it() -> None:
    """Meanwhile there was a route through these neighbours, which they do not get."""
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT)
    harness.run(5)
    (before,) = harness.take_announced(RIGHT)
    harness.learn(FAR, LEFT, RIGHT, OTHER, sequence=2)
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.run(5)
    assert [type(one) for one in harness.take_entries(RIGHT)] == [OriginWithdraw]
    harness.learn(FAR, LEFT)
    harness.receive_advert(OTHER, withdraw(FAR))
    harness.run(5)
    (after,) = harness.take_announced(RIGHT)
    assert (after.path, after.metric_us) == (before.path, before.metric_us)
