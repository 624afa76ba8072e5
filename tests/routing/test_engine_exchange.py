"""One routing engine: adverts, acknowledgements, full tables, digests and leases."""

from __future__ import annotations

import random

from micro_core.routing import messages
from micro_core.routing.events import (
    Ack,
    Advert,
    Announce,
    Digest,
    InstanceUp,
    LocalInstance,
    NeighbourDown,
    NeighbourUp,
    RoutingMessage,
    Solicit,
)
from micro_core.routing.neighbour import INITIAL_RESEND_S, MAX_IN_FLIGHT, RESYNC_AFTER_TRIES
from micro_core.wire import limits
from tests.routing.engine_harness import COST_US, FAR, LEFT, ME, OTHER, RIGHT, EngineHarness, announce, withdraw


def digest_of(number: int, *entries: Announce) -> Digest:
    checksum = 0
    for entry in entries:
        checksum ^= entry.checksum()
    return Digest(number, len(entries), checksum)


def test_routes_without_digests_expire_and_the_full_table_is_requested() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.run(89.9)
    assert harness.gateways() == [LEFT]
    harness.take_sent()
    harness.run(0.2)
    assert harness.gateways() == []
    assert "routing_leases_expired" in harness.counted
    assert (LEFT, Solicit()) in harness.take_sent()


def test_digest_renews_only_the_routes_of_its_neighbour() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    first, second = announce(FAR, LEFT), announce(FAR, LEFT, service="second")
    harness.receive_advert(LEFT, first, second)
    harness.receive_advert(RIGHT, announce(FAR, RIGHT))
    for _ in range(5):
        harness.run(30)
        harness.receive(LEFT, digest_of(2, second, first))
    assert harness.gateways() == [LEFT]
    assert harness.gateways("second") == [LEFT]


def test_digest_includes_rejected_entries() -> None:
    harness = EngineHarness(LEFT)
    good, loop = announce(FAR, LEFT), announce(OTHER, ME, LEFT, service="round")
    harness.receive_advert(LEFT, good, loop)
    harness.take_sent()
    harness.receive(LEFT, digest_of(2, good, loop))
    assert harness.take_sent() == []


def test_different_digest_requests_the_full_table() -> None:
    harness = EngineHarness(LEFT)
    entry = announce(FAR, LEFT)
    harness.receive_advert(LEFT, entry)
    harness.take_sent()
    for wrong in (
        digest_of(2),
        digest_of(2, entry, announce(FAR, LEFT, service="second")),
        digest_of(2, announce(FAR, LEFT, metric_us=1)),
    ):
        harness.receive(LEFT, wrong)
        assert harness.take_sent() == [(LEFT, Solicit())]
    assert harness.counted.count("routing_digests_differ") == 3


def test_digest_with_another_advert_number_is_ignored() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.take_sent()
    for number in (1, 3):
        harness.receive(LEFT, digest_of(number))
    assert harness.take_sent() == []
    harness.run(91)
    assert harness.gateways() == [], "it renewed nothing"


def test_three_digests_per_lease_are_sent() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(300)
    digests = [message for _, message in harness.sent if isinstance(message, Digest)]
    assert 10 <= len(digests) <= 12
    (advertised,) = harness.take_entries(LEFT)
    assert isinstance(advertised, Announce)
    assert {(one.count, one.checksum) for one in digests} == {(1, advertised.checksum())}


def test_lost_advert_is_resent_with_growing_delays_and_then_as_a_full_table() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(0.5, acknowledging=False)
    harness.run(29, acknowledging=False)
    adverts = [message for _, message in harness.take_sent() if isinstance(message, Advert)]
    again, full = adverts[:RESYNC_AFTER_TRIES], adverts[RESYNC_AFTER_TRIES]
    assert len({message.number for message in again}) == 1
    assert full.begins
    assert full.ends
    assert [entry.service for entry in full.entries] == ["greeter"]
    assert "routing_neighbours_resynced" in harness.counted


def test_acknowledged_advert_is_not_resent() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(60)
    assert len(harness.take_entries(LEFT)) == 1


def test_acknowledgement_includes_earlier_adverts() -> None:
    harness = EngineHarness(LEFT)
    for service in ("one", "two", "three"):
        harness.up(service)
        harness.run(0.5, acknowledging=False)
    last = max(message.number for _, message in harness.take_sent() if isinstance(message, Advert))
    harness.receive(LEFT, Ack(last))
    harness.run(20, acknowledging=False)
    assert harness.take_entries(LEFT) == []


def test_adverts_in_flight_are_bounded() -> None:
    harness = EngineHarness(LEFT)
    for number in range(MAX_IN_FLIGHT + 50):
        harness.up(f"s{number}")
        harness.engine.wake(harness.now + 0.001 * number)
        harness.now += 0.002
    numbers: set[int] = set()
    for _ in range(100):
        harness.up()
        harness.run(0.6, acknowledging=False)
        harness.down()
        numbers |= {message.number for _, message in harness.take_sent() if isinstance(message, Advert)}
    assert len(harness.engine._neighbours[LEFT]._in_flight) <= MAX_IN_FLIGHT


def test_missing_adverts_request_the_full_table_once() -> None:
    harness = EngineHarness(LEFT)
    for number in (5, 6, 7, 8):
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=number), number=number)
    assert harness.take_sent() == [(LEFT, Solicit())]
    assert harness.table == {}
    harness.receive_advert(LEFT, number=5)
    assert harness.take_sent() == [(LEFT, Solicit())], "the advert was resent, so the request was lost"


def test_repeated_advert_is_acknowledged_and_changes_nothing() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=1))
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=2, metric_us=70))
    before = dict(harness.table)
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=1), number=2)
    assert harness.table == before
    assert harness.take_sent() == [(LEFT, Ack(3))]


def test_late_copy_of_a_full_table_does_not_undo_later_adverts() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="old"), begins=True, ends=True)
    full = harness.numbers[LEFT]
    harness.receive_advert(LEFT, withdraw(FAR, service="old"), announce(FAR, LEFT, sequence=2, service="new"))
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="old"), begins=True, ends=True, number=full)
    assert {route.service for route in harness.table.values()} == {"new"}
    harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=3, service="newer"))
    assert {route.service for route in harness.table.values()} == {"new", "newer"}


def test_advert_numbers_increase_across_links_and_incarnations() -> None:
    harness = EngineHarness()
    numbers = []
    for _ in range(3):
        harness.handle(NeighbourUp(LEFT, COST_US))
        for _, message in harness.take_sent():
            assert isinstance(message, Advert)
            numbers.append(message.number)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 7, "numbers start above the incarnation"


def test_end_of_a_full_table_removes_the_routes_that_it_did_not_contain() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, *(announce(FAR, LEFT, service=name) for name in ("a", "b", "c")))
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="a"), begins=True)
    assert {route.service for route in harness.table.values()} == {"a", "b", "c"}
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="c"), ends=True)
    assert {route.service for route in harness.table.values()} == {"a", "c"}


def test_solicit_is_answered_with_the_full_table_in_adverts_of_bounded_size() -> None:
    harness = EngineHarness(LEFT)
    count = 1_000
    for number in range(count):
        for instance in range(16):
            harness.handle(
                InstanceUp(
                    f"{number:0250d}",
                    f"i{instance}",
                    LocalInstance(address=f"a{instance}", version=f"{instance}" + "é" * 125),
                )
            )
    harness.run(2)
    harness.take_sent()
    harness.receive(LEFT, Solicit())
    adverts = [message for _, message in harness.take_sent() if isinstance(message, Advert)]
    assert sum(len(advert.entries) for advert in adverts) == count
    assert all(len(messages.encode(advert)) <= limits.MAX_ADVERT_BYTES for advert in adverts)
    assert [advert.begins for advert in adverts] == [True] + [False] * (len(adverts) - 1)
    assert [advert.ends for advert in adverts] == [False] * (len(adverts) - 1) + [True]
    assert [advert.number for advert in adverts] == [adverts[0].number + index for index in range(len(adverts))]


def test_new_link_exchanges_full_tables_and_restores_routes() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="far"))
    harness.run(1)
    harness.handle(NeighbourDown(LEFT))
    assert harness.gateways("far") == []
    harness.take_sent()
    harness.handle(NeighbourUp(LEFT, COST_US))
    ((peer, message),) = harness.take_sent()
    assert isinstance(message, Advert)
    assert (peer, message.begins, message.ends) == (LEFT, True, True)
    assert [entry.service for entry in message.entries] == ["greeter"]
    harness.receive_advert(LEFT, announce(FAR, LEFT, service="far"), begins=True, ends=True, number=1)
    assert harness.gateways("far") == [LEFT]


def test_advert_before_the_full_table_is_not_applied() -> None:
    harness = EngineHarness()
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    assert harness.table == {}
    assert harness.take_sent() == [(LEFT, Solicit())]


def test_advert_is_resent_after_one_second() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(0.5, acknowledging=False)
    harness.take_sent()
    harness.run(INITIAL_RESEND_S - 0.5, acknowledging=False)
    assert harness.take_sent() == []
    harness.run(0.5, acknowledging=False)
    assert [type(message) for _, message in harness.take_sent()] == [Advert]


def test_wake_time_increases_after_each_wake() -> None:
    """Otherwise rounding errors would make the timer fire again and again."""
    source = random.Random(3)
    harness = EngineHarness(LEFT, RIGHT)
    for number in range(300):
        harness.now += source.random() * 7.3
        sequence = number * 2 + 1
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=sequence, service=f"s{number % 5}"))
        if source.random() < 0.5:
            harness.receive_advert(
                LEFT, withdraw(FAR, sequence=sequence + 1, service=f"s{number % 5}", is_final=source.random() < 0.5)
            )
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
        harness.receive_advert(RIGHT, announce(FAR, RIGHT, service="far"))
        harness.run(100)
        return harness.sent

    assert messages_of(5) == messages_of(5)


def test_history_of_a_service_lists_its_events() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    harness.handle(NeighbourDown(LEFT))
    assert [text for _, text in harness.engine.history("greeter")] == [
        f"via {LEFT[:8]} at {COST_US} µs",
        f"via {LEFT[:8]}: link closed",
    ]
    assert harness.engine.history("other") == []
