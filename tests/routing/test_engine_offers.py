"""One routing engine: the lists of other origins, views of a part of them, and policies."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract.table import Offer
from micro_core.routing.entries import OfferChanges, OfferEntry, OriginAnnounce, OriginWithdraw, RemovedOffer
from micro_core.routing.events import Advert, NeighbourDown, NeighbourUp, Solicit
from micro_core.routing.offer_list import MAX_REMOVALS, OfferList, merge
from micro_core.routing.options import EngineOptions
from micro_core.routing.policy import parse
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


def entry(service: str, version: int, load_us: int = 0) -> OfferEntry:
    return OfferEntry(Offer(service, load_us=load_us), version)


# ----------------------------------------------------------------------------- lists


def test_list_of_an_origin_is_joined_with_the_routes_of_all_neighbours() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT))
    assert harness.gateways("a") == harness.gateways("b") == [LEFT, RIGHT]


def test_list_that_another_neighbour_has_sent_before_changes_nothing() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.run(5)
    harness.take_sent()
    before = dict(harness.table.offers[FAR])
    harness.learn(FAR, RIGHT, services=("a", "b"))
    assert harness.table.offers[FAR] == before
    harness.run(5)
    assert harness.take_entries(LEFT) == []


def test_change_of_the_offers_is_one_small_delta() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=tuple(f"s{number}" for number in range(200)))
    harness.run(5)
    harness.take_sent()
    harness.receive_advert(LEFT, offers(FAR, "new", base=200))
    harness.run(5)
    (delta,) = harness.take_entries(RIGHT)
    assert isinstance(delta, OfferChanges)
    assert (delta.base, delta.version, names_of([delta])) == (200, 201, ["new"])


def test_removal_is_passed_on_at_once_and_a_new_service_after_the_relay_delay() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.run(5)
    harness.take_sent()
    harness.receive_advert(LEFT, offers(FAR, base=2, removed=("a",)))
    assert names_of(harness.take_entries(RIGHT)) == ["-a"]
    harness.receive_advert(LEFT, offers(FAR, "c", base=3))
    assert harness.take_entries(RIGHT) == []
    harness.run(0.041)
    assert names_of(harness.take_entries(RIGHT)) == ["c"]


def test_change_of_load_is_passed_on_with_the_slow_clock() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a",))
    harness.run(5)
    harness.take_sent()
    for version in range(2, 102):
        change = OfferChanges(FAR, 1, version - 1, version, (entry("a", version, load_us=1_000 * version),))
        harness.receive_advert(LEFT, change)
        harness.run(0.1)
    adverts = [m for peer, m in harness.take_sent() if peer == RIGHT and isinstance(m, Advert)]
    assert 3 <= len(adverts) <= 6
    assert harness.table.routes_to("a")[0].metric == COST_US + 101_000


def test_older_state_over_a_slower_neighbour_changes_nothing() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b"))
    harness.receive_advert(LEFT, offers(FAR, base=2, removed=("a",)))
    harness.learn(FAR, RIGHT, services=("a", "b"))
    assert harness.services() == {"b"}, "a was removed at version 3"


def test_whole_list_removes_what_it_does_not_contain() -> None:
    """After a partition, a neighbour sends a list that has changed several times."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b", "c"))
    whole = OfferChanges(FAR, 1, 0, 9, (entry("b", 2), entry("d", 9)))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT), whole)
    assert harness.services() == {"b", "d"}


def test_whole_list_in_parts_removes_nothing_that_a_later_part_contains() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("a", "b", "c"))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT), OfferChanges(FAR, 1, 0, 2, (entry("b", 2),), is_end=False))
    assert harness.services() == {"a", "b", "c"}
    harness.receive_advert(RIGHT, OfferChanges(FAR, 1, 2, 9, (entry("a", 8), entry("d", 9))))
    assert harness.services() == {"a", "b", "d"}


def test_large_list_is_sent_in_parts_and_learned() -> None:
    sender, receiver = EngineHarness(RIGHT), EngineHarness(ME)
    sender.handle(NeighbourDown(RIGHT))
    names = {f"s{number}" for number in range(1_000)}
    for name in sorted(names):
        sender.up(name)
    sender.run(2)
    sender.take_sent()
    sender.handle(NeighbourUp(RIGHT, COST_US))
    receiver.engine._rib.router = receiver.engine.router = RIGHT
    for _, message in sender.take_sent():
        assert isinstance(message, Advert)
        receiver.receive(ME, message)
    assert receiver.services() == names


def test_missing_change_requests_the_full_table() -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT, services=("a",))
    harness.take_sent()
    harness.receive_advert(LEFT, offers(FAR, "c", base=2))
    assert harness.take_sent() == [(LEFT, Solicit())]
    assert "routing_offers_incomplete" in harness.counted


def test_changes_of_an_unknown_list_are_not_applied() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, incarnation=2), offers(FAR, "c", base=2, incarnation=2))
    assert harness.services() == set()
    harness.receive_advert(LEFT, offers(OTHER, "x"))
    assert "routing_offers_without_route" in harness.counted


def test_list_whose_route_was_rejected_is_requested_when_the_route_is_accepted() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, announce(FAR, ME, LEFT), offers(FAR, "a"))
    harness.take_sent()
    harness.receive_advert(LEFT, announce(FAR, LEFT))
    assert (LEFT, Solicit()) in harness.take_sent()


def test_interest_and_default_route_are_offers() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("~orders", "*"))
    assert harness.gateways("~orders") == harness.gateways("*") == [LEFT]
    harness.run(1)
    assert names_of(harness.take_entries(RIGHT)) == ["~orders", "*"]


def test_flapping_service_of_another_origin_is_observed_and_not_suppressed() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, LEFT, services=("greeter",))
    harness.learn(FAR, RIGHT, services=("greeter",))
    for number in range(1, 21, 2):
        for peer in (LEFT, RIGHT):
            harness.receive_advert(peer, offers(FAR, base=number, removed=("greeter",)))
        for peer in (LEFT, RIGHT):
            harness.receive_advert(peer, offers(FAR, "greeter", base=number + 1))
        assert harness.gateways() == [LEFT, RIGHT]
    (flap,) = harness.engine.observed.statuses(harness.now)
    assert (flap.service.split(), flap.losses, flap.is_suppressed) == ([FAR, "greeter"], 10, False)


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_list_merged_from_any_order_of_changes_equals_the_original(seed: int) -> None:
    """Neighbours see the list at different times and send whole lists and deltas. In the end, all lists are equal."""
    source = random.Random(seed)
    origin, relays = OfferList(1), [OfferList(1), OfferList(1), OfferList(1)]
    known = [[0, 0, 0] for _ in relays]
    for step in range(60):
        service = f"s{source.randrange(8)}"
        origin.version += 1
        if service in origin.entries and source.random() < 0.5:
            origin.remove(service, origin.version)
        else:
            origin.put(OfferEntry(Offer(service, load_us=step), origin.version))
        for _ in range(source.randrange(4)):
            to, sender = source.randrange(3), source.choice([origin, *relays])
            index = relays.index(sender) if sender in relays else to
            if sender is relays[to]:
                continue
            base = 0 if source.random() < 0.2 else min(known[index][to], relays[to].version)
            transfer(sender, relays[to], base)
            known[index][to] = sender.version
    for relay in relays:
        transfer(origin, relay, relay.version)
        assert relay.entries == origin.entries


def transfer(sender: OfferList, receiver: OfferList, base: int) -> None:
    seen: set[str] = set()
    is_whole = False
    for change in sender.changes_since(FAR, base):
        is_whole = is_whole or change.base == 0
        if is_whole and receiver.version:
            receiver.forget_removals(change.version)
        merge(receiver, change.changed, change.removed, max_added=1_000)
        seen.update(one.offer.service for one in change.changed)
        receiver.version = max(receiver.version, change.version)
        if is_whole and change.is_end:
            for service, one in [*receiver.entries.items()]:
                if one.version <= change.version and service not in seen:
                    receiver.remove(service, change.version)


def test_removal_of_an_unknown_service_is_passed_on_since_a_neighbour_may_know_it() -> None:
    relay = OfferList(1)
    merge(relay, [entry("a", 1)], [], max_added=10)
    relay.version = 1
    merge(relay, [], [RemovedOffer("x", 3)], max_added=10)
    relay.version = 3
    (change,) = relay.changes_since(FAR, 1)
    assert change.removed == (RemovedOffer("x", 3),)


def test_forgotten_removals_are_replaced_by_the_whole_list() -> None:
    one = OfferList(1)
    for number in range(1, MAX_REMOVALS + 12):
        one.version += 1
        one.put(entry(f"s{number}", one.version))
    advertised = one.version
    for number in range(1, MAX_REMOVALS + 2):
        one.version += 1
        one.remove(f"s{number}", one.version)
    (whole,) = one.changes_since(FAR, advertised)
    assert (whole.base, len(whole.changed), whole.removed) == (0, 10, ())
    parts = one.changes_since(FAR, advertised + 1)
    assert parts[0].base == advertised + 1
    assert sum(len(part.removed) for part in parts) == MAX_REMOVALS


# -------------------------------------------------------------------- views and policies


def harness_with(policy: str, *neighbours: str) -> EngineHarness:
    """Return an engine with a policy for RIGHT, which is on the site "right"."""
    options = EngineOptions(policies=(parse(f"site=right: {policy}"),))
    harness = EngineHarness(*neighbours, options=options)
    harness.handle(NeighbourUp(RIGHT, COST_US, site="right"))
    harness.receive_advert(RIGHT, begins=True, ends=True)
    harness.acknowledge()
    harness.sent.clear()
    return harness


def sent_to(harness: EngineHarness, peer: str = RIGHT) -> tuple[list[str], list[str]]:
    """Return the announced origins with their first letter and "?" for a part, and the services."""
    entries = harness.take_entries(peer)
    announced = [one.origin[0] + "?" * one.is_partial for one in entries if isinstance(one, OriginAnnounce)]
    return announced, names_of(entries)


def test_policy_hides_services() -> None:
    harness = harness_with("services=a*", LEFT)
    harness.learn(FAR, LEFT, services=("a1", "b1"))
    harness.learn(OTHER, LEFT, services=("b2",))
    harness.up("a2")
    harness.up("b3")
    harness.run(1)
    announced, services = sent_to(harness)
    assert (sorted(announced), sorted(services)) == (["f?", "m?"], ["a1", "a2"])
    harness.receive_advert(LEFT, offers(FAR, "a3", "b4", base=2, removed=("a1",)))
    harness.run(1)
    assert sent_to(harness) == ([], ["a3", "-a1"])
    harness.receive_advert(LEFT, offers(FAR, base=5, removed=("a3",)))
    harness.run(1)
    assert [type(one) for one in harness.take_entries(RIGHT)] == [OriginWithdraw], "nothing visible is left"


def test_policy_restricts_sites_and_scopes() -> None:
    harness = harness_with("sites=s", LEFT)
    harness.receive_advert(LEFT, announce(FAR, LEFT, site="elsewhere"), offers(FAR, "a"))
    harness.learn(OTHER, LEFT)
    harness.run(1)
    assert sent_to(harness)[0] == ["o"]
    harness = harness_with("export=local", LEFT)
    harness.learn(FAR, LEFT)
    harness.up("mine")
    harness.run(1)
    assert sent_to(harness) == (["m"], ["mine"])
    harness = harness_with("export=none", LEFT)
    harness.learn(FAR, LEFT)
    harness.up("mine")
    harness.run(1)
    assert sent_to(harness) == ([], [])


def test_export_best_advertises_the_best_origin_of_each_service() -> None:
    harness = harness_with("export=best", LEFT)
    harness.learn(FAR, LEFT, metric_us=5_000, services=("x", "y"))
    harness.run(1)
    assert sent_to(harness) == (["f?"], ["x", "y"])
    harness.learn(OTHER, LEFT, metric_us=100, services=("x",))
    harness.run(1)
    announced, services = sent_to(harness)
    assert announced == ["o?"]
    assert sorted(services) == ["-x", "x"]
    harness.up("y")
    harness.run(1)
    announced, services = sent_to(harness)
    assert announced == ["m?"]
    assert "y" in services
    harness.receive_advert(LEFT, withdraw(OTHER, sequence=2, is_final=True))
    harness.down("y")
    harness.run(1)
    entries = harness.take_entries(RIGHT)
    assert {one.origin for one in entries if isinstance(one, OriginWithdraw)} >= {OTHER}
    assert harness.engine._rib.entries[FAR].adjacencies[RIGHT].advertised_view == {"x": 1, "y": 2}


def test_policy_restricts_imports() -> None:
    harness = harness_with("import-services=a*")
    harness.learn(FAR, RIGHT, services=("a1", "b1"))
    assert harness.services() == {"a1"}
    harness.receive_advert(RIGHT, offers(FAR, "a2", "b2", base=2, removed=("a1",)))
    assert harness.services() == {"a2"}
    harness = harness_with("import-sites=other")
    harness.learn(FAR, RIGHT)
    assert harness.services() == set()
    assert "routing_entries_refused_by_policy" in harness.counted
    harness = harness_with("import=none")
    harness.learn(FAR, RIGHT)
    assert harness.table.origins == {}


def test_policy_adds_its_cost() -> None:
    harness = harness_with("cost=5000")
    harness.learn(FAR, RIGHT)
    assert [route.metric for route in harness.table.routes()] == [COST_US + 5_000]
    assert harness.engine.configured_us(RIGHT) == 5_000
    assert harness.engine.configured_us(LEFT) == 0


def partial(origin: str, *services: str, peer: str) -> tuple[OriginAnnounce, OfferChanges]:
    return announce(origin, peer, is_partial=True), offers(origin, *services)


def test_neighbour_with_a_view_is_used_for_its_services_only() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    harness.learn(FAR, RIGHT, services=("a", "b"))
    assert harness.gateways("a") == [LEFT, RIGHT]
    assert harness.gateways("b") == [RIGHT]
    harness.receive_advert(LEFT, OfferChanges(FAR, 1, 2, 2, (), (RemovedOffer("a", 0),)))
    assert harness.gateways("a") == [RIGHT], "only LEFT must not be used for it any more"
    harness.receive_advert(LEFT, OfferChanges(FAR, 1, 2, 2, (entry("b", 2),)))
    assert harness.gateways("b") == [LEFT, RIGHT]


def test_neighbour_with_a_view_is_used_for_nothing_before_it_has_sent_its_view() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, services=("a", "b"))
    harness.receive_advert(LEFT, announce(FAR, LEFT, is_partial=True))
    assert harness.gateways("a") == harness.gateways("b") == [RIGHT]


def test_router_with_views_advertises_what_it_reaches() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    harness.run(1)
    assert sent_to(harness, OTHER) == (["f?"], ["a"])
    harness.receive_advert(
        RIGHT, announce(FAR, RIGHT, is_partial=True), OfferChanges(FAR, 1, 0, 7, (entry("b", 2), entry("c", 7)))
    )
    harness.run(5)
    assert sent_to(harness, OTHER)[1] == ["b", "c"]
    harness.receive_advert(RIGHT, withdraw(FAR))
    harness.run(5)
    assert sorted(sent_to(harness, OTHER)[1]) == ["-b", "-c"]


def test_route_to_all_services_is_advertised_rather_than_one_to_a_part() -> None:
    harness = EngineHarness(LEFT, RIGHT, OTHER)
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, metric_us=70_000), offers(FAR, "a", "b"))
    harness.run(5)
    assert sent_to(harness, OTHER) == (["f"], ["a", "b"])


def test_view_survives_a_short_withdrawal() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    harness.receive_advert(LEFT, withdraw(FAR))
    harness.receive_advert(LEFT, announce(FAR, LEFT, is_partial=True))
    assert harness.services() == {"a"}


def test_change_between_a_view_and_the_whole_list_is_followed() -> None:
    harness = EngineHarness(LEFT)
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    harness.receive_advert(LEFT, announce(FAR, LEFT), offers(FAR, "a", "b"))
    assert harness.services() == {"a", "b"}
    harness.receive_advert(LEFT, *partial(FAR, "a", peer=LEFT))
    assert harness.services() == {"a"}


@pytest.mark.parametrize("is_final", [True, False])
def test_offers_of_an_origin_that_left_are_forgotten(is_final: bool) -> None:
    harness = EngineHarness(LEFT)
    harness.learn(FAR, LEFT)
    harness.receive_advert(LEFT, withdraw(FAR, sequence=2, is_final=is_final))
    harness.run(130)
    assert harness.table.offers == {FAR: {}}
