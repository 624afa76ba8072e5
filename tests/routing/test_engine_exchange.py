"""One routing engine: adverts, acknowledgements, full tables, digests and leases."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import pytest

from micro_core.routing import messages
from micro_core.routing.entries import OriginAnnounce, OriginWithdraw
from micro_core.routing.events import (
    Ack,
    Advert,
    Digest,
    InstanceUp,
    LocalInstance,
    NeighbourDown,
    NeighbourUp,
    RoutingMessage,
    Solicit,
)
from micro_core.routing.neighbour import (
    ACK_DELAY_S,
    MAX_IN_FLIGHT,
    MAX_UNACKNOWLEDGED,
    RESYNC_AFTER_S,
    SOLICIT_RETRY_S,
)
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
    digest_of,
    names_of,
    offers,
    withdraw,
)

# ----------------------------------------------------------------- leases and digests


def test_routes_without_digests_expire_and_the_full_table_is_requested() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.run(89.9)
    assert harness.gateways() == [LEFT]
    harness.take_sent()
    harness.run(0.2)
    assert harness.gateways() == []
    assert "routing_leases_expired" in harness.counted
    assert (LEFT, Solicit()) in harness.take_sent()


def test_digest_that_matched_before_the_lease_expired_does_not_match_afterwards() -> None:
    """The request for the full table may have been lost."""
    harness = EngineHarness(LEFT)
    entries = announce(FAR, LEFT), offers(FAR, "greeter")
    harness.receive_advert(LEFT, *entries)
    harness.run(91)
    harness.take_sent()
    harness.now += SOLICIT_RETRY_S
    harness.receive(LEFT, digest_of(2, *entries))
    assert harness.take_sent() == [(LEFT, Solicit())]
    assert harness.engine.leases() == {}


def test_digest_renews_only_the_routes_of_its_neighbour() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    first, second = announce(FAR, LEFT), announce(OTHER, LEFT)
    lists = offers(FAR, "greeter"), offers(OTHER, "second")
    harness.receive_advert(LEFT, first, second, *lists)
    harness.learn(FAR, RIGHT)
    for _ in range(5):
        harness.run(30)
        harness.receive(LEFT, digest_of(2, second, first, *lists))
    assert harness.gateways() == [LEFT]
    assert harness.gateways("second") == [LEFT]
    assert set(harness.engine.leases()) == {LEFT}


def test_digest_includes_rejected_entries() -> None:
    harness = EngineHarness(LEFT)
    good, loop, offered = announce(FAR, LEFT), announce(OTHER, ME, LEFT), offers(OTHER, "x", "y")
    harness.receive_advert(LEFT, good, loop, offered)
    harness.take_sent()
    harness.receive(LEFT, digest_of(2, good, loop, offered))
    assert harness.take_sent() == []


def test_digest_after_changes_and_withdrawals_matches() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.learn(OTHER, LEFT)
    changed, delta = announce(FAR, LEFT, metric_us=70_000), offers(FAR, "c", base=2, removed=("a",))
    harness.receive_advert(LEFT, changed, delta, withdraw(OTHER))
    harness.take_sent()
    harness.receive(LEFT, digest_of(4, changed, delta))
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.receive(LEFT, digest_of(5))
    harness.receive_advert(LEFT, changed)
    harness.receive(LEFT, digest_of(6, changed))
    assert harness.take_sent() == [], "a list counts from when it is sent after a withdrawal"
    assert harness.services() == {"b", "c"}


def test_different_digest_requests_the_full_table() -> None:
    entry, offered = announce(FAR, LEFT), offers(FAR, "greeter")
    for wrong in (
        digest_of(2),
        digest_of(2, entry),
        digest_of(2, entry, offered, announce(OTHER, LEFT)),
        digest_of(2, announce(FAR, LEFT, metric_us=1), offered),
        digest_of(2, entry, offers(FAR, "greeter", version=7)),
    ):
        harness = EngineHarness(LEFT)
        harness.receive_advert(LEFT, entry, offered)
        harness.take_sent()
        harness.receive(LEFT, wrong)
        assert harness.take_sent() == [(LEFT, Solicit())]
        assert harness.counted.count("routing_digests_differ") == 1


def test_digest_before_an_advert_in_flight_is_ignored() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.take_sent()
    harness.receive(LEFT, digest_of(1))
    assert harness.take_sent() == []
    harness.run(91)
    assert harness.gateways() == [], "it renewed nothing"


def test_digest_that_includes_a_lost_advert_requests_the_full_table() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.take_sent()
    harness.receive(LEFT, digest_of(3, announce(FAR, LEFT), offers(FAR, "greeter")))
    assert harness.take_sent() == [(LEFT, Solicit())]


def test_three_digests_per_lease_are_sent() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(300)
    digests = [message for _, message in harness.sent if isinstance(message, Digest)]
    assert 10 <= len(digests) <= 12
    expected = digest_of(0, *harness.take_entries(LEFT))
    assert {(one.count, one.checksum) for one in digests} == {(expected.count, expected.checksum)}


@pytest.mark.parametrize("count", [9, 300])
def test_digests_to_many_neighbours_are_spread_over_time(count: int) -> None:
    peers = [f"{number:032x}" for number in range(1, count + 1)]
    harness = EngineHarness(*peers)
    harness.take_sent()
    times: dict[str, list[int]] = defaultdict(list)
    for step in range(3_000):
        harness.run(0.1)
        sent = [peer for peer, message in harness.take_sent() if isinstance(message, Digest)]
        assert len(sent) <= 4
        for peer in sent:
            times[peer].append(step)
    assert set(times) == set(peers)
    assert max(b - a for one in times.values() for a, b in itertools.pairwise(one)) <= 450, "half a lease"


# -------------------------------------------------------------------- acknowledgements


def test_unacknowledged_advert_is_followed_by_full_tables_with_growing_delays() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(8 * RESYNC_AFTER_S, acknowledging=False)
    first, *full = [message for _, message in harness.take_sent() if isinstance(message, Advert)]
    assert not first.begins
    assert [(one.begins, one.ends, names_of([*one.entries])) for one in full] == [(True, True, ["greeter"])] * 3
    assert harness.counted.count("routing_neighbours_resynced") == 3


def test_acknowledged_advert_is_not_repeated() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(600)
    assert len(harness.take_announced(LEFT)) == 1


def test_acknowledgement_includes_earlier_adverts() -> None:
    harness = EngineHarness(LEFT)
    for service in ("one", "two", "three"):
        harness.up(service)
        harness.run(0.6, acknowledging=False)
    last = max(message.number for _, message in harness.take_sent() if isinstance(message, Advert))
    harness.receive(LEFT, Ack(last))
    harness.run(100, acknowledging=False)
    assert harness.take_entries(LEFT) == []


def test_adverts_and_digests_acknowledge() -> None:
    for answer in (lambda number: Advert(number=2, acknowledged=number, entries=()), lambda n: Digest(1, 0, 0, n)):
        harness = EngineHarness(LEFT)
        harness.up()
        harness.run(0.6, acknowledging=False)
        number = max(message.number for _, message in harness.take_sent() if isinstance(message, Advert))
        harness.receive(LEFT, answer(number))
        harness.run(2 * RESYNC_AFTER_S, acknowledging=False)
        assert harness.take_entries(LEFT) == []


def test_acknowledgement_rides_on_the_next_advert() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.up()
    harness.run(1)
    (advert,) = [message for _, message in harness.take_sent() if isinstance(message, Advert)]
    assert advert.acknowledged == 2
    harness.run(20)
    assert [message for _, message in harness.take_sent() if isinstance(message, Ack)] == []


def test_acknowledgement_is_sent_on_its_own_after_a_while() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.run(ACK_DELAY_S - 0.1)
    assert harness.take_sent() == []
    harness.run(0.2)
    assert harness.take_sent() == [(LEFT, Ack(2))]


def test_acknowledgement_is_sent_on_its_own_after_many_adverts() -> None:
    harness = EngineHarness(LEFT)
    harness.run(20)
    harness.take_sent()
    for number in range(MAX_UNACKNOWLEDGED):
        assert harness.take_sent() == []
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=number + 1))
    assert harness.take_sent() == [(LEFT, Ack(MAX_UNACKNOWLEDGED + 1))]


def test_adverts_in_flight_are_bounded_and_further_changes_are_combined() -> None:
    harness = EngineHarness(LEFT)
    names = set()
    for number in range(3 * MAX_IN_FLIGHT):
        names.add(f"s{number}")
        harness.up(f"s{number}")
        harness.run(0.5, acknowledging=False)
        if number == 20:
            harness.acknowledge()
        if harness.now > 100 + RESYNC_AFTER_S - 1:
            break
        assert len(harness.engine._neighbours[LEFT]._in_flight) <= MAX_IN_FLIGHT
    harness.acknowledge()
    harness.run(1)
    assert set(names_of(harness.take_entries(LEFT))) == names


def test_changes_wait_while_the_window_is_closed() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT)
    for number in range(1, MAX_IN_FLIGHT + 20):
        harness.receive_advert(RIGHT, offers(FAR, f"s{number}", base=number))
        harness.run(0.05, acknowledging=False)
    sent = [message for peer, message in harness.take_sent() if peer == LEFT and isinstance(message, Advert)]
    assert len(sent) == MAX_IN_FLIGHT
    assert harness.engine.wake_at is not None
    assert harness.engine.wake_at > harness.now + 1, "the timer does not spin"
    harness.receive(LEFT, Ack(sent[10].number))
    (rest,) = [message for peer, message in harness.take_sent() if peer == LEFT and isinstance(message, Advert)]
    assert len(names_of([*rest.entries])) == 19


# ------------------------------------------------------------------------------ order


def test_missing_adverts_request_the_full_table_once() -> None:
    harness = EngineHarness(LEFT)
    for number in (5, 6, 7, 8):
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=number), number=number)
    assert harness.take_sent() == [(LEFT, Solicit())]
    assert harness.table.origins == {}
    harness.now += SOLICIT_RETRY_S
    harness.receive_advert(LEFT, number=9)
    assert (LEFT, Solicit()) in harness.take_sent(), "the request was lost"


def test_repeated_advert_changes_nothing() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT, sequence=1)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=2, metric_us=70))
    before = harness.table.routes()
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=1), number=2)
    assert harness.table.routes() == before
    assert harness.take_sent() == []


def test_late_copy_of_a_full_table_does_not_undo_later_adverts() -> None:
    harness = EngineHarness(LEFT)
    old, new = (announce(FAR, LEFT), offers(FAR, "old")), (announce(OTHER, LEFT), offers(OTHER, "new"))
    harness.receive_advert(LEFT, *old, begins=True, ends=True)
    full = harness.numbers[LEFT]
    harness.receive_advert(LEFT, withdraw(FAR), *new)
    harness.receive_advert(LEFT, *old, begins=True, ends=True, number=full)
    assert harness.services() == {"new"}
    harness.receive_advert(LEFT, offers(OTHER, "newer", base=1))
    assert harness.services() == {"new", "newer"}


def test_advert_numbers_increase_across_links_and_incarnations() -> None:
    harness = EngineHarness()
    numbers = []
    for _ in range(3):
        harness.handle(NeighbourUp(RIGHT, COST_US))
        for _, message in harness.take_sent():
            assert isinstance(message, Advert)
            numbers.append(message.number)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 7, "numbers start above the incarnation"


# ------------------------------------------------------------------------- full tables


def test_end_of_a_full_table_removes_the_routes_that_it_did_not_contain() -> None:
    harness = EngineHarness(LEFT)
    for letter in "abc":
        harness.learn(letter * 32, LEFT, services=(letter,))
    harness.receive_advert(LEFT, announce("a" * 32, LEFT), begins=True)
    assert harness.services() == {"a", "b", "c"}
    harness.receive_advert(LEFT, announce("c" * 32, LEFT), ends=True)
    assert harness.services() == {"a", "c"}


def test_solicit_is_answered_with_the_full_table_in_adverts_of_bounded_size() -> None:
    harness = EngineHarness(LEFT)
    count = 1_000
    for number in range(count):
        for instance in range(16):
            local = LocalInstance(address=f"a{instance}", version=f"{instance}" + "é" * 125)
            harness.handle(InstanceUp(f"{number:0250d}", f"i{instance}", local))
    harness.run(2)
    harness.take_sent()
    harness.receive(LEFT, Solicit())
    adverts = [message for _, message in harness.take_sent() if isinstance(message, Advert)]
    assert len([name for one in adverts for name in names_of([*one.entries])]) == count
    assert all(len(messages.encode(advert)) <= limits.MAX_ADVERT_BYTES for advert in adverts)
    assert [advert.begins for advert in adverts] == [True] + [False] * (len(adverts) - 1)
    assert [advert.ends for advert in adverts] == [False] * (len(adverts) - 1) + [True]
    assert [advert.number for advert in adverts] == [adverts[0].number + index for index in range(len(adverts))]


def test_full_table_of_many_origins_respects_the_window() -> None:
    harness = EngineHarness(LEFT)
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    count = 150 * MAX_IN_FLIGHT
    for number in range(count):
        digits = alphabet[number // 1024 % 32] + alphabet[number // 32 % 32] + alphabet[number % 32]
        harness.learn(digits + "x" * 29, LEFT)
    harness.handle(NeighbourUp(RIGHT, COST_US))
    sent: list[Advert] = []
    for _ in range(100):
        new = [message for peer, message in harness.take_sent() if peer == RIGHT and isinstance(message, Advert)]
        assert len(new) <= MAX_IN_FLIGHT
        sent += new
        if sent[-1].ends:
            break
        harness.receive(RIGHT, Ack(sent[-1].number))
    announced = [one for advert in sent for one in advert.entries if isinstance(one, OriginAnnounce)]
    assert len(announced) == count
    assert [one.begins for one in sent] == [True] + [False] * (len(sent) - 1)
    assert [one.ends for one in sent] == [False] * (len(sent) - 1) + [True]


def test_full_table_is_sent_once_per_second_at_most() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(5)
    harness.take_sent()
    for _ in range(50):
        harness.receive(LEFT, Solicit())
        harness.run(0.1)
    full = [message for _, message in harness.take_sent() if isinstance(message, Advert) and message.begins]
    assert 4 <= len(full) <= 6


def test_new_link_exchanges_full_tables_and_restores_routes() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.learn(FAR, LEFT, services=("far",))
    harness.run(1)
    harness.handle(NeighbourDown(LEFT))
    assert harness.gateways("far") == []
    harness.take_sent()
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.receive_advert(LEFT, announce(FAR, LEFT), offers(FAR, "far"), begins=True, ends=True, number=1)
    assert harness.gateways("far") == [LEFT]
    ((peer, message),) = harness.take_sent()
    assert isinstance(message, Advert)
    assert (peer, message.begins, message.ends) == (LEFT, True, True)
    assert names_of([*message.entries]) == ["greeter"]


def test_advert_before_the_full_table_is_not_applied() -> None:
    harness = EngineHarness()
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.take_sent()
    harness.learn(FAR, LEFT)
    assert harness.table.origins == {}
    assert harness.take_sent() == [(LEFT, Solicit())]


# ------------------------------------------------------------------------------ others


def test_wake_time_increases_after_each_wake() -> None:
    """Otherwise rounding errors would make the timer fire again and again."""
    source = random.Random(3)
    harness = EngineHarness(LEFT, RIGHT)
    for number in range(300):
        harness.now += source.random() * 7.3
        sequence = number * 2 + 1
        origin = "abcde"[number % 5] * 32
        harness.learn(origin, LEFT, sequence=sequence, metric_us=source.choice([1, 10_000]))
        if source.random() < 0.5:
            harness.receive_advert(LEFT, withdraw(origin, sequence=sequence + 1, is_final=source.random() < 0.5))
        harness.acknowledge()
        wake_at = harness.engine.wake_at
        assert wake_at is not None
        harness.now = max(harness.now, wake_at)
        harness._apply(harness.engine.wake(harness.now))
        assert harness.engine.wake_at is None or harness.engine.wake_at > harness.now


def test_same_seed_gives_the_same_effects() -> None:
    def messages_of(seed: int) -> list[tuple[str, RoutingMessage]]:
        harness = EngineHarness(LEFT, RIGHT, seed=seed)
        for service in ("c", "a", "b"):
            harness.up(service)
        harness.learn(FAR, RIGHT, services=("far",))
        harness.run(100)
        return harness.sent

    assert messages_of(5) == messages_of(5)


def test_history_of_a_service_lists_the_events_of_its_origins() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.handle(NeighbourDown(LEFT))
    assert [text for _, text in harness.engine.history("greeter")] == [
        f"{FAR[:8]} via {LEFT[:8]} at {COST_US} µs",
        f"{FAR[:8]} via {LEFT[:8]}: link closed",
    ]
    assert harness.engine.history("other") == []


def test_route_is_withdrawn_and_advertised_again_without_its_list() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == ["greeter"]
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.run(1)
    assert [type(one) for one in harness.take_entries(RIGHT)] == [OriginWithdraw]
    harness.receive_advert(LEFT, announce(FAR, LEFT), offers(FAR, "new", base=1))
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == ["new"], "RIGHT still has the list"


def test_list_is_sent_again_after_a_long_withdrawal() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(RIGHT, announce(OTHER, RIGHT), offers(OTHER, "x"))
    harness.run(1)
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.run(70)
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == ["greeter"]


def test_neighbour_whose_full_table_lacks_an_origin_gets_the_own_route_to_it() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(LEFT, metric_us=20_000)
    harness.run(5)
    assert [one.origin for one in harness.take_announced(RIGHT)] == [LEFT]
    harness.learn(LEFT, RIGHT, metric_us=100)
    harness.run(5)
    assert [type(one) for one in harness.take_entries(RIGHT)] == [OriginWithdraw], "it is the next hop now"
    # The withdrawal of RIGHT was lost. Its full table follows, without the route.
    harness.receive_advert(RIGHT, begins=True, ends=True)
    harness.run(5)
    assert [(one.origin, one.metric_us) for one in harness.take_announced(RIGHT)] == [(LEFT, 20_000 + COST_US)]
