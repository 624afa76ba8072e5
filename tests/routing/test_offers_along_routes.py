"""One routing engine: offers are sent along the tree of the selected routes, to neighbours without a route of their own."""

from __future__ import annotations

import pytest

from micro_core.contract.table import Offer
from micro_core.routing.entries import Entry, OfferChanges, OfferEntry, OriginAnnounce, OriginWithdraw
from micro_core.routing.events import Advert, Digest, Solicit
from tests.routing.engine_harness import (
    FAR,
    LEFT,
    OTHER,
    RIGHT,
    EngineHarness,
    announce,
    digest_of,
    names_of,
    offers,
    withdraw,
)


def test_change_is_not_sent_to_a_neighbour_that_has_a_route_of_its_own() -> None:
    """Its next hop informs it. In a network with many paths, each change reaches each router about once."""
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.learn(FAR, LEFT, services=("a",))
    harness.learn(FAR, RIGHT, services=("a",))
    harness.run(5)
    assert names_of(harness.take_entries(RIGHT)) == []
    harness.receive_advert(LEFT, offers(FAR, "b", base=1))
    harness.run(5)
    sent = [(peer, names_of([*m.entries])) for peer, m in harness.take_sent() if isinstance(m, Advert)]
    assert sent == [(OTHER, ["b"])]


@pytest.mark.parametrize(
    ("known", "sent"), [(0, ["a", "b", "c"]), (1, ["b", "c"]), (2, ["c"]), (3, []), (4, ["a", "b", "c"])]
)
def test_neighbour_that_loses_its_route_gets_the_changes_since_its_version_of_the_list(
    known: int, sent: list[str]
) -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a",))
    harness.learn(FAR, RIGHT, services=("a",))
    harness.receive_advert(LEFT, offers(FAR, "b", base=1))
    harness.receive_advert(LEFT, offers(FAR, "c", base=2))
    harness.run(5)
    assert names_of(harness.take_entries(RIGHT)) == []
    harness.receive_advert(RIGHT, withdraw(FAR, version=known))
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == sent


def test_neighbour_that_sees_a_part_of_the_list_is_informed_though_it_has_a_route() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, is_partial=True), offers(FAR, "a"))
    harness.run(5)
    assert names_of(harness.take_entries(RIGHT)) == ["a", "b"]


def test_version_of_another_incarnation_is_not_used() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a",))
    harness.learn(FAR, RIGHT, services=("a",))
    harness.run(5)
    harness.take_sent()
    harness.receive_advert(RIGHT, withdraw(FAR, incarnation=2, version=1))
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == ["a"]


def test_new_next_hop_gets_the_withdrawal_at_once_so_that_it_sends_the_offers_from_then_on() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, metric_us=50_000)
    harness.run(5)
    harness.take_sent()
    harness.receive_advert(RIGHT, announce(FAR, RIGHT))
    harness.run(0.05)
    (sent,) = harness.sent_to(RIGHT)
    assert isinstance(sent, OriginWithdraw)
    assert sent.version == 1
    assert harness.sent_to(LEFT) == [], "another path is not urgent"


def test_service_that_returned_before_its_removal_was_received_is_sent_to_neighbours() -> None:
    """The list is the same as before, but a neighbour may have received the removal from someone else."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.run(5)
    harness.take_sent()
    returned = OfferChanges(FAR, 1, 0, 4, (OfferEntry(Offer("a"), 1), OfferEntry(Offer("b"), 4)))
    harness.receive_advert(LEFT, returned)
    harness.run(5)
    (sent,) = harness.take_entries(RIGHT)
    assert isinstance(sent, OfferChanges)
    assert sent.version == 4
    assert OfferEntry(Offer("b"), 4) in sent.changed


def test_list_is_sent_again_if_the_neighbour_had_no_route_for_a_while() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a",))
    harness.learn(FAR, RIGHT, services=("a",))
    harness.run(5)
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.receive_advert(RIGHT, withdraw(FAR, version=1))
    for seconds, expected in ((40, []), (80, ["a"])):
        harness.run(seconds)
        harness.take_sent()
        # As a full table, which renews the lease.
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=seconds), offers(FAR, "a"), begins=True, ends=True)
        harness.run(1)
        assert names_of(harness.sent_to(RIGHT)) == expected
        harness.receive_advert(LEFT, withdraw(FAR, sequence=seconds))


def test_list_that_is_not_sent_again_after_a_withdrawal_is_not_in_the_digest() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT)
    harness.run(5)
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.run(1)
    harness.learn(FAR, LEFT, sequence=2)
    harness.run(1)
    (announced,) = harness.sent_to(RIGHT)[-1:]
    assert isinstance(announced, OriginAnnounce), "the list is not sent again"
    harness.run(31)
    digests = [m for peer, m in harness.take_sent() if peer == RIGHT and isinstance(m, Digest)]
    assert (digests[-1].count, digests[-1].checksum) == (1, announced.checksum())
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2))
    harness.run(31)
    digests = [m for peer, m in harness.take_sent() if peer == RIGHT and isinstance(m, Digest)]
    assert (digests[-1].count, digests[-1].checksum) == (0, 0), "nor is it removed by the next withdrawal"


@pytest.mark.parametrize("is_list_sent_again", [True, False])
def test_list_counts_in_the_digest_if_it_was_received_since_the_last_withdrawal(is_list_sent_again: bool) -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(LEFT, withdraw(FAR))
    received: list[Entry] = [announce(FAR, LEFT, sequence=2)]
    if is_list_sent_again:
        received.append(offers(FAR, "greeter"))
    harness.receive_advert(LEFT, *received)
    harness.take_sent()
    number = harness.numbers[LEFT]
    harness.receive(LEFT, digest_of(number, *received))
    assert (LEFT, Solicit()) not in harness.take_sent()
    assert harness.gateways() == [LEFT]
    harness.receive(LEFT, digest_of(number, *received, offers(FAR, "greeter")))
    assert (LEFT, Solicit()) in harness.take_sent(), "another digest does not match"


def test_withdrawal_does_not_contain_the_version_of_a_list_of_an_earlier_incarnation() -> None:
    """The next hop would regard it as a version of the new list, and send only the changes since then."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.run(1)
    harness.receive_advert(LEFT, announce(FAR, LEFT, incarnation=2))
    harness.run(1)
    harness.take_sent()
    harness.receive_advert(LEFT, withdraw(FAR, incarnation=2))
    harness.run(1)
    (sent,) = harness.sent_to(RIGHT)
    assert isinstance(sent, OriginWithdraw)
    assert (sent.seqno, sent.version) == ((2, 1), 0)
