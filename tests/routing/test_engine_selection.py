"""One routing engine: sequence numbers, paths, route selection and feasibility."""

from __future__ import annotations

import pytest

from micro_core.contract.table import OriginRouteKey
from micro_core.routing.entries import OriginAnnounce, OriginWithdraw
from micro_core.routing.events import (
    UNREACHABLE_US,
    Advert,
    Count,
    Digest,
    NeighbourCost,
    NeighbourDown,
    NeighbourSuspect,
    SeqnoRequest,
    SeqnoRequests,
    Solicit,
)
from micro_core.routing.messages import MAX_INTEGER
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import TOMBSTONE_S
from micro_core.wire import limits
from tests.routing.engine_harness import (
    COST_US,
    FAR,
    LEFT,
    ME,
    OTHER,
    RIGHT,
    EngineHarness,
    announce,
    offers,
    withdraw,
)
from tests.routing.engine_network import ALPHABET


def request(origin: str = FAR, *, sequence: int = 4, incarnation: int = 1, hops_left: int = 3) -> SeqnoRequests:
    return SeqnoRequests((SeqnoRequest(origin, incarnation, sequence, hops_left),))


# ------------------------------------------------------------------ sequence numbers


def test_tombstone_rejects_late_adverts() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.learn(FAR, OTHER, RIGHT, sequence=1)
    harness.learn(FAR, OTHER, RIGHT, sequence=2)
    assert harness.table.routes() == []
    assert harness.counted.count("routing_entries_outdated") == 2


def test_final_withdrawal_removes_the_routes_of_all_neighbours_and_the_offers() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.learn(FAR, OTHER, RIGHT)
    harness.receive_advert(RIGHT, withdraw(FAR, sequence=2, is_final=True))
    assert harness.table.origins == {}
    assert harness.table.offers[FAR] == {}


def test_outdated_final_withdrawal_is_not_final() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=5)
    harness.learn(FAR, RIGHT, sequence=5)
    harness.receive_advert(RIGHT, withdraw(FAR, sequence=4, is_final=True))
    assert harness.gateways() == [LEFT]


def test_withdrawal_by_a_neighbour_leaves_no_tombstone() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.learn(FAR, OTHER, RIGHT)
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.gateways() == [RIGHT]
    harness.receive_advert(RIGHT, withdraw(FAR))
    assert harness.gateways() == []
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    assert harness.gateways() == [LEFT], "the same sequence number is accepted again, and the offers were kept"


def test_origin_with_a_later_sequence_number_than_its_tombstone_is_accepted() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.learn(FAR, LEFT, sequence=3)
    assert harness.gateways() == [LEFT]


def test_expired_tombstones_leave_no_state_of_their_origin() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT, services=("greeter", "second"))
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.run(TOMBSTONE_S + 1)
    assert harness.engine._rib.entries == Rib(ME).entries
    assert harness.table.offers == {FAR: {}}


def test_removed_origins_leave_no_state() -> None:
    """Temporary nodes have a new id in every run."""
    harness = EngineHarness(LEFT)
    for number in range(50):
        origin = "ab"[number % 2] * 16 + "cdefghijklmnopqrstuvwxyz234567"[number % 30] * 16
        harness.learn(origin, LEFT, incarnation=number + 1)
        harness.receive_advert(LEFT, withdraw(origin, incarnation=number + 1, sequence=2, is_final=True))
        harness.run(TOMBSTONE_S + 1)
    assert harness.engine._rib.entries == {}
    assert harness.engine._requester._states == {}


def test_tombstone_is_kept_until_every_neighbour_has_received_the_withdrawal() -> None:
    """Otherwise this router would forget its feasibility distance while a neighbour still uses its route."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    for number in range(1, 70):
        harness.receive_advert(LEFT, offers(FAR, f"s{number}", base=number))
        harness.run(0.05, acknowledging=False)
    assert not harness.engine._neighbours[RIGHT].is_window_open()
    harness.handle(NeighbourDown(LEFT))
    harness.now += TOMBSTONE_S + 1
    assert harness.engine._rib.expire_tombstones(harness.now)[0] == []


def test_absurd_incarnation_is_forgotten_after_its_sender_is_gone() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, incarnation=MAX_INTEGER)
    harness.learn(FAR, LEFT, incarnation=5)
    assert harness.gateways() == [RIGHT]
    harness.handle(NeighbourDown(RIGHT))
    harness.run(TOMBSTONE_S + 1)
    before = len(harness.sent)
    harness.receive_advert(LEFT, announce(FAR, LEFT, incarnation=5, sequence=2))
    assert list(harness.table.origins) == [OriginRouteKey(FAR, LEFT)]
    assert (LEFT, Solicit()) in harness.sent[before:], "the list is requested, too"
    harness.receive_advert(
        LEFT,
        announce(FAR, LEFT, incarnation=5, sequence=2),
        offers(FAR, "greeter", incarnation=5),
        begins=True,
        ends=True,
    )
    assert harness.gateways() == [LEFT]


def test_rejected_announcements_remain_part_of_the_digest() -> None:
    harness = EngineHarness(LEFT)
    rejected = announce(FAR, OTHER)
    harness.receive_advert(LEFT, rejected)
    harness.run(3 * TOMBSTONE_S)
    harness.receive(LEFT, Digest(harness.numbers[LEFT], 1, rejected.checksum()))
    assert "routing_digests_differ" not in harness.counted
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.run(3 * TOMBSTONE_S)
    assert harness.engine._rib.entries == {}


def test_later_incarnation_replaces_all_routes_and_offers_of_the_earlier_one() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=9, services=("greeter", "old"))
    harness.learn(FAR, RIGHT, incarnation=2)
    assert harness.gateways() == [RIGHT]
    assert harness.gateways("old") == []
    harness.learn(FAR, LEFT, sequence=10, services=("greeter", "old"))
    assert harness.gateways() == [RIGHT]
    assert harness.gateways("old") == []
    assert "routing_entries_outdated" in harness.counted


def test_origin_that_restarted_with_an_earlier_incarnation_is_asked_to_raise_it() -> None:
    """Its clock was set back."""
    harness = EngineHarness(FAR, RIGHT)
    harness.learn(FAR, RIGHT, incarnation=9)
    harness.learn(FAR, incarnation=3)
    assert harness.take_requests() == [(FAR, SeqnoRequest(FAR, 9, 1, 1))]
    harness.learn(FAR, incarnation=10)
    assert FAR in harness.gateways()


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
    harness.receive_advert(LEFT, announce(*path), offers(path[0], "greeter"))
    assert harness.table.routes() == []
    assert counted in harness.counted


def test_path_that_does_not_begin_at_its_origin_is_rejected() -> None:
    harness = EngineHarness(LEFT)
    wrong = announce(FAR, LEFT)
    wrong.origin = OTHER
    harness.receive_advert(LEFT, wrong)
    assert harness.table.origins == {}
    assert harness.counted.count("routing_paths_refused") == 1


def test_route_that_now_leads_through_this_router_is_removed() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(LEFT, announce(FAR, ME, LEFT))
    assert harness.table.origins == {}
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    assert harness.gateways() == [LEFT]


def test_too_long_path_is_rejected() -> None:
    harness = EngineHarness(LEFT)
    between = [(letter + "x") * 16 for letter in ALPHABET[: limits.MAX_HOPS - 2]]
    harness.learn(FAR, *between, LEFT)
    assert harness.table.routes() == []
    harness.receive_advert(LEFT, announce(FAR, *between[1:], LEFT), offers(FAR, "greeter"))
    assert harness.gateways() == [LEFT]
    harness.run(1)


def test_entries_about_this_router_are_rejected() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(ME, LEFT), offers(ME, "x"), withdraw(ME, sequence=99, is_final=True))
    assert harness.table.routes() == []
    assert harness.counted.count("routing_own_entries_refused") == 2


def test_selected_route_is_replaced_by_a_partial_one_with_a_huge_metric() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    for peer, metric_us in ((LEFT, 1_000), (RIGHT, UNREACHABLE_US - 10_000)):
        harness.receive_advert(peer, announce(FAR, peer, metric_us=metric_us, is_partial=True), offers(FAR, "greeter"))
    assert harness.gateways() == [LEFT, RIGHT]
    harness.handle(NeighbourDown(LEFT))
    assert harness.gateways() == [RIGHT]
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=UNREACHABLE_US - 20_000, is_partial=True))
    assert harness.gateways() == [RIGHT]


# ---------------------------------------------------------------------- split horizon


def test_route_is_not_advertised_to_its_next_hop() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.run(1)
    assert {peer for peer, message in harness.sent if isinstance(message, Advert)} == {RIGHT}
    (entry,) = harness.take_announced(RIGHT)
    assert (entry.path, entry.metric_us) == ((FAR, LEFT, ME), COST_US)


def test_route_is_not_advertised_to_a_router_on_its_path() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, LEFT)
    harness.run(5)
    assert harness.take_entries(RIGHT) == []


def test_route_is_withdrawn_from_its_new_next_hop() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=10_000)
    harness.run(1)
    harness.take_sent()
    harness.learn(FAR, RIGHT, metric_us=100)
    harness.run(5)
    advertised = {
        (peer, type(e)) for peer, message in harness.sent if isinstance(message, Advert) for e in message.entries
    }
    assert (RIGHT, OriginWithdraw) in advertised
    assert (LEFT, OriginAnnounce) in advertised


def test_message_of_an_unknown_peer_is_ignored() -> None:
    harness = EngineHarness(LEFT)
    assert harness.receive_advert(RIGHT, announce(FAR, RIGHT), begins=True) == [
        Count("routing_messages_from_unknown_peers")
    ]


# ------------------------------------------------------------------------ feasibility


def test_feasible_alternatives_are_installed_and_take_over_at_once() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT)
    harness.run(1)
    harness.learn(FAR, RIGHT, metric_us=COST_US - 1)
    assert harness.gateways() == [LEFT, RIGHT]
    harness.run(5)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    assert harness.gateways() == [RIGHT]
    harness.run(5)
    (entry,) = harness.take_announced(OTHER)
    assert entry.metric_us == 2 * COST_US - 1, "there was no withdrawal in between"


def test_route_of_a_neighbour_that_is_not_nearer_to_the_origin_is_not_used() -> None:
    """Its route may lead through this router, which its next advert would show (RFC 8966 section 3.5.1)."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.run(1)
    harness.learn(FAR, OTHER, RIGHT, metric_us=COST_US)
    assert harness.gateways() == [LEFT]
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.gateways() == []


def test_all_routes_are_feasible_before_this_router_has_advertised_one() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, LEFT, metric_us=1)
    harness.learn(FAR, LEFT, RIGHT, metric_us=50_000)
    assert harness.gateways() == [LEFT, RIGHT]


def test_rising_cost_never_makes_a_route_unusable() -> None:
    """Before, calls failed until the origin had answered a request for a sequence number."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(5)
    for metric_us in (5_000, 200_000, 1_000_000):
        harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=metric_us))
        assert harness.gateways() == [LEFT]
        harness.handle(NeighbourCost(LEFT, 3 * metric_us))
        harness.handle(NeighbourCost(LEFT, 3 * metric_us))
        harness.run(5)
        assert harness.gateways() == [LEFT]
        assert harness.take_requests() == []


def test_smallest_advertised_metric_is_forgotten_with_a_withdrawal() -> None:
    """The neighbour may use a route through this router since then."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(1)
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=5_000))
    assert harness.gateways() == []


def test_smallest_advertised_metric_is_forgotten_with_the_link() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(1)
    harness.handle(NeighbourDown(LEFT))
    harness.link(LEFT)
    harness.learn(FAR, LEFT, metric_us=5_000)
    assert harness.gateways() == []


def test_smallest_advertised_metric_is_forgotten_in_a_full_table() -> None:
    """The router of the neighbour may have restarted while the link stayed open."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(1)
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=5_000), begins=True, ends=True)
    assert harness.gateways() == []


def test_smallest_advertised_metric_belongs_to_a_sequence_number() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, metric_us=100, sequence=1)
    harness.learn(FAR, RIGHT, metric_us=2_000, sequence=2)
    harness.handle(NeighbourDown(LEFT))
    harness.run(5)
    harness.link(LEFT)
    harness.learn(FAR, LEFT, metric_us=100, sequence=1)
    assert harness.gateways() == [RIGHT], "an earlier sequence number is not feasible, however near the neighbour is"
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=50_000, sequence=2))
    assert harness.gateways() == [RIGHT], "the metric of the earlier sequence number does not count"


def test_later_sequence_number_makes_a_route_feasible() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(1)
    harness.learn(FAR, RIGHT, sequence=5, metric_us=50_000)
    assert harness.gateways() == [LEFT, RIGHT]


# ------------------------------------------------------------------ sequence requests


def test_starved_router_requests_a_sequence_number_and_uses_it() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(1)
    harness.learn(FAR, RIGHT, sequence=4, metric_us=5_000)
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    ((peer, asked),) = harness.take_requests()
    assert (peer, asked.origin, asked.seqno) == (RIGHT, FAR, (1, 4))
    assert harness.engine.is_starved(FAR)
    assert not harness.engine.is_starved(OTHER)
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=5, metric_us=5_000))
    assert harness.gateways() == [RIGHT]
    assert not harness.engine.is_starved(FAR)
    harness.run(0.05)
    (entry,) = harness.take_announced(OTHER)
    assert entry.sequence == 5


def test_seqno_request_is_also_sent_to_neighbours_with_a_new_route() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)

    def asked() -> list[str]:
        return [peer for peer, _ in harness.take_requests()]

    harness.learn(FAR, LEFT, sequence=4)
    harness.run(1)
    harness.learn(FAR, RIGHT, sequence=4, metric_us=5_000)
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    assert asked() == [RIGHT]
    harness.learn(FAR, OTHER, sequence=4, metric_us=6_000)
    assert asked() == [OTHER], "the route of RIGHT may be a loop"
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, sequence=4, metric_us=5_001))
    assert asked() == [], "each neighbour gets the request once per RETRY_S"


def test_unanswered_seqno_request_is_repeated_with_growing_delays() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(1)
    harness.learn(FAR, RIGHT, sequence=4, metric_us=5_000)
    harness.handle(NeighbourDown(LEFT))
    harness.take_sent()
    times = []
    for _ in range(600):
        harness.run(0.1)
        times += [harness.now - 101] * len(harness.take_requests())
    assert len(times) == 5
    assert times[0] == pytest.approx(1, abs=0.2)
    assert times[-1] == pytest.approx(31, abs=0.2)


@pytest.mark.parametrize("asked_at", [31.220000000000002, 1_000.1, 86_400.7])
def test_request_is_repeated_though_the_sum_of_its_time_and_the_delay_is_rounded(asked_at: float) -> None:
    harness = EngineHarness()
    harness.now = asked_at - 5.0
    harness.link(LEFT)
    harness.link(RIGHT)
    harness.acknowledge()
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(1)
    harness.learn(FAR, RIGHT, sequence=4, metric_us=5_000)
    harness.now = asked_at
    harness.handle(NeighbourDown(LEFT))
    assert len(harness.take_requests()) == 1
    harness.run(1.1)
    assert len(harness.take_requests()) == 1


def test_requests_of_one_moment_share_a_message() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    origins = [letter * 32 for letter in "abcde"]
    for origin in origins:
        harness.learn(origin, LEFT)
    harness.run(1)
    for origin in origins:
        harness.learn(origin, RIGHT, metric_us=5_000)
    harness.take_sent()
    harness.handle(NeighbourDown(LEFT))
    ((peer, message),) = [(peer, one) for peer, one in harness.take_sent() if isinstance(one, SeqnoRequests)]
    assert peer == RIGHT
    assert {one.origin for one in message.requests} == set(origins)


def test_clearly_better_infeasible_route_is_requested_without_losing_the_present_one() -> None:
    """The path of the selected route became ten times slower."""
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, metric_us=40_000)
    harness.run(5)
    harness.learn(FAR, RIGHT, metric_us=140_000)
    assert harness.gateways() == [LEFT]
    harness.run(5)
    assert harness.take_requests() == [], "the other one is not better"
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=400_000))
    assert harness.gateways() == [LEFT], "the present route stays in use"
    assert harness.take_requests() == [(RIGHT, SeqnoRequest(FAR, 1, 1, limits.MAX_HOPS))]
    harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=400_001))
    harness.run(9)
    assert harness.take_requests() == [], "at most one request in ten seconds"
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=140_000, sequence=2))
    assert harness.gateways() == [LEFT, RIGHT]
    harness.run(5)
    (entry,) = harness.take_announced(OTHER)
    assert entry.path == (FAR, RIGHT, ME)


def test_infeasible_route_is_requested_when_the_next_hops_of_all_feasible_ones_are_suspect() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, metric_us=40_000)
    harness.learn(FAR, OTHER, metric_us=40_500)
    harness.run(5)
    harness.learn(FAR, RIGHT, metric_us=60_000)
    assert harness.gateways() == [LEFT, OTHER]
    harness.take_sent()
    harness.handle(NeighbourSuspect(LEFT, True))
    assert harness.take_requests() == [], "the other feasible one can be used"
    harness.handle(NeighbourSuspect(OTHER, True))
    assert harness.take_requests() == [(RIGHT, SeqnoRequest(FAR, 1, 1, limits.MAX_HOPS))], "not to suspect neighbours"
    assert harness.gateways() == [LEFT, OTHER], "they may be busy"
    harness.handle(NeighbourSuspect(OTHER, False))
    harness.now += 1.9
    harness.handle(NeighbourSuspect(OTHER, True))
    assert harness.take_requests() == [], "at most one request in two seconds"
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=60_000, sequence=2))
    assert harness.gateways() == [LEFT, OTHER, RIGHT]
    harness.run(5)
    assert harness.take_announced(RIGHT) == [], "the route that is advertised stays the same"


def test_three_nearest_neighbours_are_asked_when_the_only_feasible_link_is_given_up() -> None:
    """The link works until then. If its peer does not answer, all are asked."""
    others = [one * 32 for one in "3456"]
    for is_closing, expected in ((True, ["5" * 32, "4" * 32, "3" * 32]), (False, others)):
        harness = EngineHarness(LEFT, *others)
        harness.learn(FAR, LEFT, metric_us=40_000)
        harness.run(5)
        for distance_ms, peer in zip((60, 59, 58, 61), others, strict=True):
            harness.learn(FAR, peer, metric_us=1_000 * distance_ms)
        harness.take_sent()
        harness.handle(NeighbourSuspect(LEFT, True, is_closing=is_closing))
        assert sorted(peer for peer, _ in harness.take_requests()) == sorted(expected)
        assert harness.gateways() == [LEFT]


def test_all_neighbours_are_asked_when_no_route_is_in_use() -> None:
    others = [one * 32 for one in "3456"]
    harness = EngineHarness(LEFT, RIGHT, *others)
    harness.learn(FAR, LEFT, metric_us=40_000)
    harness.run(5)
    for peer in (RIGHT, *others):
        harness.learn(FAR, peer, metric_us=60_000)
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.gateways() == []
    harness.take_sent()
    harness.handle(NeighbourSuspect(RIGHT, True))
    assert sorted(peer for peer, _ in harness.take_requests()) == others


def test_requested_sequence_numbers_that_arrive_one_after_the_other_are_passed_on_together() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    for origin in (FAR, OTHER):
        harness.learn(origin, LEFT, sequence=4)
    harness.run(5)
    for origin in (FAR, OTHER):
        harness.receive(RIGHT, request(origin))
    harness.take_sent()
    for origin in (FAR, OTHER):
        harness.receive_advert(LEFT, announce(origin, LEFT, sequence=5))
        harness.run(0.006)
    (advert,) = [m for peer, m in harness.take_sent() if peer == RIGHT and isinstance(m, Advert)]
    assert [entry.origin for entry in advert.entries] == [FAR, OTHER]


def test_seqno_request_is_forwarded_along_all_routes_while_the_next_hop_is_suspect() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, sequence=4, metric_us=40_000)
    harness.run(5)
    harness.learn(FAR, OTHER, sequence=4, metric_us=60_000)
    harness.handle(NeighbourSuspect(LEFT, True))
    harness.take_sent()
    harness.receive(RIGHT, request())
    assert {peer for peer, _ in harness.take_requests()} == {LEFT, OTHER}


def test_origin_answers_a_seqno_request_at_once_with_a_later_sequence_number() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    (first,) = harness.take_announced(LEFT)
    asked = request(ME, incarnation=7, sequence=first.sequence)
    harness.receive(LEFT, asked)
    sent = {peer: m for peer, m in harness.take_sent() if isinstance(m, Advert)}
    assert set(sent) == {LEFT}
    (second,) = sent[LEFT].entries
    assert isinstance(second, OriginAnnounce)
    assert second.sequence == first.sequence + 1
    harness.receive(LEFT, asked)
    assert harness.take_entries(LEFT) == [], "the requested sequence number was advertised already"
    harness.run(60)
    assert harness.take_announced(RIGHT) == [], "the others have not requested it"


def test_sequence_number_is_raised_above_the_one_that_other_routers_know() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    harness.take_sent()
    harness.receive(LEFT, request(ME, incarnation=9, sequence=3))
    harness.run(1)
    (entry,) = harness.take_announced(RIGHT)
    assert entry.seqno == (10, 1)
    harness.receive_advert(LEFT, withdraw(ME, incarnation=10, sequence=8, is_final=True))
    harness.run(5)
    (entry,) = harness.take_announced(RIGHT)
    assert entry.seqno == (11, 1), "a later incarnation, which all routers learn"


def test_own_sequence_number_from_a_neighbour_changes_nothing() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    (before,) = harness.take_announced(RIGHT)
    harness.receive_advert(LEFT, withdraw(ME, incarnation=before.incarnation, sequence=before.sequence))
    harness.run(5)
    assert harness.take_announced(RIGHT) == []


def test_absurd_sequence_numbers_are_not_believed() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    harness.take_sent()
    harness.receive(LEFT, request(ME, incarnation=2**61, sequence=3))
    harness.now += 2
    harness.receive(LEFT, request(ME, incarnation=7, sequence=2**61))
    harness.run(5)
    assert harness.take_announced(LEFT) == []


def test_own_sequence_number_is_raised_once_per_second_at_most() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    for number in range(100):
        harness.receive(LEFT, request(ME, incarnation=7 + number))
        harness.now += 0.1
    assert len(harness.take_announced(LEFT)) <= 11


def test_seqno_request_is_forwarded_towards_the_origin_once() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(5)
    harness.take_sent()
    harness.receive(RIGHT, request())
    assert harness.take_requests() == [(LEFT, SeqnoRequest(FAR, 1, 4, 2))]
    harness.receive(RIGHT, request())
    assert harness.take_sent() == []
    harness.now += 2
    harness.receive(RIGHT, request(hops_left=1))
    assert harness.take_requests() == [], "its hop limit is reached"


def test_requested_sequence_number_is_passed_on_soon_to_the_requester_only() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, sequence=4)
    harness.run(5)
    harness.take_sent()
    harness.receive(RIGHT, request())
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=5))
    harness.run(0.011)
    sent = {peer: m for peer, m in harness.take_sent() if isinstance(m, Advert)}
    assert set(sent) == {RIGHT}
    harness.run(60)
    assert harness.take_announced(OTHER) == []
    harness.receive(OTHER, request())
    assert [peer for peer, _ in harness.sent] == [OTHER], (
        "the request is not forwarded: the sequence number is known here"
    )
    (answer,) = harness.take_announced(OTHER)
    assert answer.sequence == 5


def test_better_route_that_appears_soon_after_a_request_is_requested_later() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, metric_us=10_000)
    harness.run(5)
    harness.handle(NeighbourCost(LEFT, 400_000))
    harness.take_sent()
    harness.learn(FAR, RIGHT, metric_us=100_000)
    assert [peer for peer, _ in harness.take_requests()] == [RIGHT]
    harness.run(2)
    harness.learn(FAR, OTHER, metric_us=20_000)
    assert harness.take_requests() == []
    harness.run(7.9)
    assert harness.take_requests() == []
    harness.run(0.2)
    assert [peer for peer, _ in harness.take_requests()] == [OTHER]


def test_seqno_request_that_can_be_answered_is_not_forwarded() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, sequence=5)
    harness.take_sent()
    harness.receive(RIGHT, request())
    ((peer, message),) = harness.take_sent()
    assert peer == RIGHT
    assert isinstance(message, Advert)


def test_seqno_request_for_an_unknown_origin_is_ignored() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    for origin in (FAR, ME):
        harness.receive(RIGHT, request(origin))
    assert harness.take_sent() == []


# --------------------------------------------------------------------------- metrics


def test_advertised_route_changes_only_for_a_clearly_better_one() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, metric_us=9_000)
    harness.run(1)
    harness.take_sent()
    harness.learn(FAR, RIGHT, metric_us=8_000)
    harness.run(5)
    assert harness.take_entries(OTHER) == []
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=6_000))
    harness.run(5)
    (entry,) = harness.take_announced(OTHER)
    assert entry.path == (FAR, RIGHT, ME)


def test_changed_link_cost_is_used_after_the_second_measurement() -> None:
    harness = EngineHarness(OTHER)
    harness.link(LEFT, 10_000)
    harness.learn(FAR, LEFT)
    harness.handle(NeighbourCost(LEFT, 10_000))
    harness.run(1)
    harness.take_sent()
    harness.handle(NeighbourCost(LEFT, 15_000))
    assert [route.metric for route in harness.table.routes()] == [10_000]
    harness.handle(NeighbourCost(LEFT, 15_000))
    assert [route.metric for route in harness.table.routes()] == [15_000]
    harness.run(3)
    (entry,) = harness.take_announced(OTHER)
    assert entry.metric_us == 15_000


def test_metrics_are_advertised_once_in_two_seconds_at_most() -> None:
    harness = EngineHarness(LEFT, OTHER)
    for letter in "abcdefgh":
        harness.learn(letter * 32, LEFT, metric_us=9_000)
    harness.run(5)
    harness.take_sent()
    for step in range(200):
        letter = "abcdefgh"[step % 8]
        harness.receive_advert(LEFT, announce(letter * 32, LEFT, metric_us=9_000 << (step // 8) % 3))
        harness.run(0.1)
    adverts = [message for peer, message in harness.take_sent() if peer == OTHER and isinstance(message, Advert)]
    assert 8 <= len(adverts) <= 20 / 2 + 1


def test_small_change_of_a_metric_is_not_advertised() -> None:
    harness = EngineHarness(LEFT, OTHER)
    harness.learn(FAR, LEFT, metric_us=100_000)
    harness.run(5)
    harness.take_sent()
    for metric_us in (120_000, 80_000, 125_000):
        harness.receive_advert(LEFT, announce(FAR, LEFT, metric_us=metric_us))
        harness.run(5)
    assert harness.take_announced(OTHER) == []


def test_route_with_infinite_metric_is_neither_used_nor_advertised() -> None:
    harness = EngineHarness(LEFT, OTHER)
    harness.learn(FAR, LEFT, metric_us=UNREACHABLE_US - 1)
    harness.run(5)
    assert harness.gateways() == []
    assert harness.take_entries(OTHER) == []


# ----------------------------------------------------------------------------- bounds


def test_origins_over_the_limit_of_a_neighbour_are_rejected_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ORIGINS_PER_NEIGHBOUR", 2)
    harness = EngineHarness(LEFT, RIGHT)
    for letter in "abc":
        harness.learn(letter * 32, LEFT)
    assert {route.router for route in harness.table.routes()} == {"a" * 32, "b" * 32}
    assert harness.counted.count("routing_routes_over_limit") == 1
    harness.learn("a" * 32, LEFT, sequence=2)
    assert harness.counted.count("routing_routes_over_limit") == 1, "known routes are still updated"
    harness.learn("c" * 32, RIGHT)
    assert harness.gateways() == [LEFT, LEFT, RIGHT], "the limit applies to each neighbour"


def test_origins_that_come_and_go_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ORIGINS", 10)
    harness = EngineHarness(LEFT)
    for letter in ALPHABET[:20]:
        harness.receive_advert(LEFT, announce((letter + "x") * 16, LEFT), withdraw((letter + "x") * 16))
    assert len(harness.engine._rib.entries) == 10
    assert harness.counted.count("routing_routes_over_limit") == 10
    harness.run(TOMBSTONE_S + 1)
    harness.learn(FAR, LEFT)
    assert harness.gateways() == [LEFT]


def test_offers_over_the_limit_of_a_neighbour_are_rejected_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OFFERS_PER_NEIGHBOUR", 3)
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.learn(OTHER, LEFT, services=("c", "d"))
    assert harness.services() == {"a", "b", "c"}
    assert harness.counted.count("routing_offers_over_limit") == 1
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=True))
    harness.receive_advert(LEFT, offers(OTHER, "e", base=2))
    assert harness.services() == {"c", "e"}, "removed services do not count"


def test_names_in_an_endless_list_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OFFERS_PER_NEIGHBOUR", 3)
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT), offers(FAR, "a", is_end=False))
    for version in range(1, 50):
        harness.receive_advert(LEFT, offers(FAR, f"service.{version}", base=version, is_end=False))
    assert len(harness.table.offers[FAR]) == 3
    assert len(harness.engine._neighbours[LEFT].confirmed_offers[FAR]) == 3
    harness.receive_advert(LEFT, withdraw(FAR))
    assert harness.engine._neighbours[LEFT].confirmed_offers == {}
