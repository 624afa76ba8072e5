"""One routing engine: sequence numbers, paths, route selection and feasibility."""

from __future__ import annotations

import pytest

from micro_core.routing.events import (
    UNREACHABLE_US,
    Advert,
    Announce,
    Count,
    NeighbourCost,
    NeighbourDown,
    SeqnoRequest,
    Withdraw,
)
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import TOMBSTONE_S
from micro_core.wire import limits
from tests.routing.engine_harness import COST_US, FAR, LEFT, ME, OTHER, RIGHT, EngineHarness, announce, withdraw


def test_tombstone_rejects_late_adverts() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=1))
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.receive_advert(RIGHT, announce(FAR, OTHER, RIGHT, sequence=1))
    harness.receive_advert(RIGHT, announce(FAR, OTHER, RIGHT, sequence=2))
    assert harness.table == {}
    assert harness.counted.count("routing_entries_outdated") == 2


def test_final_withdrawal_removes_the_routes_of_all_neighbours() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(RIGHT, announce(FAR, OTHER, RIGHT))
    harness.receive_advert(RIGHT, withdraw(FAR, sequence=2, is_final=True))
    assert harness.table == {}


def test_withdrawal_by_a_neighbour_leaves_no_tombstone() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(RIGHT, announce(FAR, OTHER, RIGHT))
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.gateways() == [RIGHT]
    harness.receive_advert(RIGHT, withdraw(FAR))
    assert harness.gateways() == []
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    assert harness.gateways() == [LEFT], "the same sequence number is accepted again"


def test_service_with_a_later_sequence_number_than_its_tombstone_is_accepted() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=3))
    assert harness.gateways() == [LEFT]


def test_expired_tombstones_leave_no_state_of_their_origin() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT), announce(FAR, LEFT, service="second"))
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True), withdraw(FAR, sequence=2, service="second"))
    harness.run(TOMBSTONE_S + 1)
    assert vars(harness.engine._rib) == vars(Rib())


def test_removed_origins_leave_no_state() -> None:
    """Temporary nodes have a new id in every run."""
    harness = EngineHarness(LEFT)
    for number in range(50):
        origin = "ab"[number % 2] * 16 + "cdefghijklmnopqrstuvwxyz234567"[number % 30] * 16
        harness.receive_advert(LEFT, announce(origin, LEFT, incarnation=number + 1))
        harness.receive_advert(LEFT, withdraw(origin, incarnation=number + 1, sequence=2, is_final=True))
        harness.run(TOMBSTONE_S + 1)
    assert vars(harness.engine._rib) == vars(Rib())


def test_later_incarnation_replaces_all_routes_of_the_earlier_one() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=9), announce(FAR, LEFT, sequence=8, service="old"))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=1, incarnation=2))
    assert harness.gateways() == [RIGHT]
    assert harness.gateways("old") == []
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=10))
    assert harness.gateways() == [RIGHT]


def test_unknown_service_of_an_earlier_incarnation_is_rejected() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, incarnation=2))
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=9, service="old"))
    assert harness.gateways("old") == []
    assert "routing_entries_outdated" in harness.counted


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ((FAR, ME, LEFT), "routing_loops_refused"),
        ((FAR, OTHER), "routing_paths_refused"),
        ((LEFT, RIGHT), "routing_paths_refused"),
    ],
)
def test_impossible_path_is_rejected(path: tuple[str, ...], counted: str) -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(*path))
    assert harness.table == {}
    assert counted in harness.counted


def test_route_that_now_leads_through_this_router_is_removed() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(LEFT, announce(FAR, ME, LEFT))
    assert harness.table == {}


def test_too_long_path_is_rejected() -> None:
    harness = EngineHarness(LEFT)
    between = ["abcdeghijkpqstuv"[index] * 32 for index in range(limits.MAX_HOPS - 2)]
    harness.receive_advert(LEFT, announce(FAR, *between, LEFT))
    assert harness.table == {}
    harness.receive_advert(LEFT, announce(FAR, *between[1:], LEFT))
    assert harness.gateways() == [LEFT]
    harness.run(1)


def test_entries_about_own_services_are_rejected() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(ME, LEFT), withdraw(ME, sequence=99, is_final=True))
    assert harness.table == {}
    assert harness.counted.count("routing_own_entries_refused") == 2


def test_route_is_not_advertised_to_its_next_hop() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.run(1)
    assert {peer for peer, message in harness.sent if isinstance(message, Advert)} == {RIGHT}
    (entry,) = harness.take_entries(RIGHT)
    assert isinstance(entry, Announce)
    assert (entry.path, entry.metric_us) == ((FAR, LEFT, ME), COST_US)


def test_route_is_not_advertised_to_a_router_on_its_path() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, RIGHT, LEFT))
    harness.run(1)
    assert harness.take_entries(RIGHT) == []


def test_route_is_withdrawn_from_its_new_next_hop() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=10_000))
    harness.run(1)
    harness.take_sent()
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=100))
    harness.run(1)
    advertised = {
        (peer, type(e)) for peer, message in harness.sent if isinstance(message, Advert) for e in message.entries
    }
    assert advertised == {(RIGHT, Withdraw), (LEFT, Announce)}


def test_message_of_an_unknown_peer_is_ignored() -> None:
    harness = EngineHarness(LEFT)
    assert harness.receive_advert(RIGHT, announce(FAR, RIGHT), begins=True) == [
        Count("routing_messages_from_unknown_peers")
    ]


def test_feasible_alternatives_are_installed_and_take_over_at_once() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=COST_US - 1))
    assert harness.gateways() == [LEFT, RIGHT]
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    assert harness.gateways() == [RIGHT]
    harness.run(1)
    (entry,) = harness.take_entries(OTHER)
    assert isinstance(entry, Announce), "there was no withdrawal in between"
    assert entry.metric_us == 2 * COST_US - 1


def test_route_of_a_neighbour_that_is_not_nearer_to_the_origin_is_not_used() -> None:
    """Its route may lead through this router, which its next advert would show (RFC 8966 section 3.5.1)."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.receive_advert(RIGHT, announce(FAR, OTHER, RIGHT, metric_us=COST_US))
    assert harness.gateways() == [LEFT]
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.gateways() == []


def test_starved_router_requests_a_sequence_number_and_uses_it() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=4))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_000))
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    requests = [(peer, message) for peer, message in harness.take_sent() if isinstance(message, SeqnoRequest)]
    ((peer, request),) = requests
    assert peer == RIGHT
    assert (request.origin, request.service, request.seqno) == (FAR, "greeter", (1, 4))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=5, metric_us=5_000))
    assert harness.gateways() == [RIGHT]
    (entry,) = harness.take_entries(OTHER)
    assert isinstance(entry, Announce), "it is advertised at once, since other routers may wait for it"


def test_seqno_request_is_also_sent_to_neighbours_with_a_new_route() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)

    def asked() -> list[str]:
        return [peer for peer, message in harness.take_sent() if isinstance(message, SeqnoRequest)]

    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=4))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_000))
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    assert asked() == [RIGHT]
    harness.receive_advert(OTHER, announce(FAR, OTHER, sequence=4, metric_us=6_000))
    assert asked() == [OTHER], "the route of RIGHT may be a loop"
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_001))
    assert asked() == [], "each neighbour gets the request once per RETRY_S"


def test_origin_answers_a_seqno_request_at_once_with_a_later_sequence_number() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    (first,) = harness.take_entries(LEFT)
    request = SeqnoRequest(origin=ME, service="greeter", incarnation=7, sequence=first.sequence, hops_left=9)
    harness.receive(LEFT, request)
    (second,) = harness.take_entries(RIGHT)
    assert second.sequence > first.sequence
    harness.receive(LEFT, request)
    assert harness.take_entries(LEFT) == [], "the requested sequence number was advertised already"


def test_seqno_request_is_forwarded_towards_the_origin_once() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=4))
    harness.run(1)
    harness.take_sent()
    request = SeqnoRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=3)
    harness.receive(RIGHT, request)
    ((peer, onward),) = harness.take_sent()
    assert peer == LEFT
    assert isinstance(onward, SeqnoRequest)
    assert onward.hops_left == 2
    harness.receive(RIGHT, request)
    assert harness.take_sent() == []
    harness.now += 2
    harness.receive(RIGHT, SeqnoRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=1))
    assert harness.take_sent() == [], "its hop limit is reached"


def test_seqno_request_that_can_be_answered_is_not_forwarded() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=5))
    harness.take_sent()
    request = SeqnoRequest(origin=FAR, service="greeter", incarnation=1, sequence=4, hops_left=3)
    harness.receive(RIGHT, request)
    ((peer, message),) = harness.take_sent()
    assert peer == RIGHT
    assert isinstance(message, Advert)


def test_seqno_request_for_an_unknown_service_is_ignored() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    for origin in (FAR, ME):
        harness.receive(RIGHT, SeqnoRequest(origin=origin, service="x.y", incarnation=1, sequence=4, hops_left=3))
    assert harness.take_sent() == []


def test_advertised_route_changes_only_for_a_clearly_better_one() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=9_000))
    harness.run(1)
    harness.take_sent()
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=8_000))
    harness.run(1)
    assert harness.take_entries(OTHER) == []
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=6_000))
    harness.run(1)
    (entry,) = harness.take_entries(OTHER)
    assert isinstance(entry, Announce)
    assert entry.path == (FAR, RIGHT, ME)


def test_changed_link_cost_is_used_after_the_second_measurement() -> None:
    harness = EngineHarness(LEFT, OTHER)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.handle(NeighbourCost(LEFT, COST_US))
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourCost(LEFT, 9_000))
    assert [route.metric for route in harness.table.values()] == [COST_US]
    harness.handle(NeighbourCost(LEFT, 9_000))
    assert [route.metric for route in harness.table.values()] == [9_000]
    harness.run(1)
    (entry,) = harness.take_entries(OTHER)
    assert isinstance(entry, Announce)
    assert entry.metric_us == 9_000


def test_route_with_infinite_metric_is_not_advertised() -> None:
    harness = EngineHarness(LEFT, OTHER)
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=UNREACHABLE_US - 1))
    harness.run(1)
    assert harness.take_entries(OTHER) == []


def test_routes_over_the_limit_of_a_neighbour_are_rejected_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ROUTES_PER_NEIGHBOUR", 2)
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, *(announce(FAR, LEFT, service=name) for name in ("a", "b", "c")))
    assert {route.service for route in harness.table.values()} == {"a", "b"}
    assert harness.counted.count("routing_routes_over_limit") == 1
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="a", sequence=2))
    assert harness.counted.count("routing_routes_over_limit") == 1, "known routes are still updated"
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, service="c"))
    assert harness.gateways("c") == [RIGHT], "the limit applies to each neighbour"
