"""When a router advertises its first route to an origin: at once, except to neighbours that have one already.

The origins offer nothing here, because a change of the offers is advertised together with the route.
"""

from __future__ import annotations

from micro_core.routing.entries import OriginAnnounce
from micro_core.routing.events import Advert
from micro_core.routing.options import EngineOptions
from tests.routing.engine_harness import FAR, LEFT, OTHER, RIGHT, EngineHarness, announce

RELAY_S = EngineOptions().relay_s


def receivers(harness: EngineHarness) -> list[str]:
    """Return the neighbours that have received a route to FAR since the last call."""
    return [
        peer
        for peer, message in harness.take_sent()
        if isinstance(message, Advert)
        for entry in message.entries
        if isinstance(entry, OriginAnnounce) and entry.origin == FAR
    ]


def test_first_route_and_that_of_a_new_incarnation_do_not_wait_for_the_slow_clock() -> None:
    harness = EngineHarness(LEFT, OTHER)
    for incarnation in (1, 2):
        harness.receive_advert(LEFT, announce(FAR, LEFT, incarnation=incarnation))
        harness.run(RELAY_S)
        assert receivers(harness) == [OTHER], incarnation


def test_neighbour_that_has_a_route_itself_receives_the_first_one_later() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=5_000))
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=100))
    harness.run(RELAY_S)
    assert receivers(harness) == [OTHER]
    harness.run(3.0)
    assert receivers(harness) == [RIGHT]
