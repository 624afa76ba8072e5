"""One routing engine: the services of its own site, their flap damping, and the damping of links."""

from __future__ import annotations

from micro_core.contract.table import Offer
from micro_core.routing.entries import Entry, OfferChanges, OriginAnnounce, OriginWithdraw
from micro_core.routing.events import (
    Advert,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    NeighbourCost,
    NeighbourDown,
    NeighbourSuspect,
    NeighbourUp,
    Resumed,
    ReuseService,
    WithdrawAll,
)
from micro_core.routing.link_damping import LinkDampingPolicy
from tests.routing.engine_harness import COST_US, FAR, LEFT, ME, OTHER, RIGHT, EngineHarness, names_of


def changed_offers(entries: list[Entry]) -> list[Offer]:
    return [one.offer for entry in entries if isinstance(entry, OfferChanges) for one in entry.changed]


# ---------------------------------------------------------------------------- offers


def test_first_service_announces_this_router_and_its_list() -> None:
    for seed in range(20):
        harness = EngineHarness(LEFT, seed=seed)
        harness.up()
        harness.run(0.249)
        assert harness.take_entries(LEFT) == []
        harness.run(0.252)
        route, offered = harness.take_entries(LEFT)
        assert isinstance(route, OriginAnnounce)
        assert (route.origin, route.path, route.metric_us, route.site) == (ME, (ME,), 0, "s")
        assert names_of([offered]) == ["greeter"]


def test_router_without_services_is_not_announced() -> None:
    harness = EngineHarness(LEFT)
    harness.run(60)
    harness.handle(NeighbourUp(RIGHT, COST_US))
    assert harness.take_entries(RIGHT) == []


def test_second_service_is_a_small_delta() -> None:
    harness = EngineHarness(LEFT)
    harness.up("one")
    harness.run(1)
    harness.take_sent()
    harness.up("two")
    harness.run(1)
    (delta,) = harness.take_entries(LEFT)
    assert isinstance(delta, OfferChanges)
    assert (delta.base, delta.version, names_of([delta])) == (1, 2, ["two"])


def test_restart_of_one_of_several_instances_is_not_advertised() -> None:
    for count in (2, 3, 20):
        harness = EngineHarness(LEFT)
        for instance in range(count):
            harness.up(instance=f"i{instance}")
        harness.run(1)
        harness.take_sent()
        for _ in range(5):
            harness.down(instance="i1")
            harness.run(10)
            harness.up(instance="i1")
            harness.run(10)
        assert harness.take_entries(LEFT) == []


def test_recycling_of_twenty_instances_is_advertised_a_few_times() -> None:
    harness = EngineHarness(LEFT)
    for instance in range(20):
        harness.up(instance=f"i{instance}")
    harness.run(1)
    harness.take_sent()
    for instance in range(20):
        harness.down(instance=f"i{instance}")
        harness.run(1)
        harness.up(instance=f"i{instance}")
    for instance in range(20):
        harness.down(instance=f"i{instance}")
    harness.run(0.01)
    for instance in range(20):
        harness.up(instance=f"i{instance}")
    harness.run(5)
    assert len(harness.take_entries(LEFT)) <= 4


def test_fewer_instances_are_advertised_after_half_a_minute() -> None:
    harness = EngineHarness(LEFT)
    for instance in range(3):
        harness.up(instance=f"i{instance}")
    harness.run(1)
    harness.take_sent()
    harness.down(instance="i0")
    harness.run(29)
    assert harness.take_entries(LEFT) == []
    harness.run(4)
    assert [offer.capacity for offer in changed_offers(harness.take_entries(LEFT))] == [2]


def test_less_than_half_of_the_instances_is_advertised_on_the_slow_clock() -> None:
    harness = EngineHarness(LEFT)
    for instance in range(5):
        harness.up(instance=f"i{instance}")
    harness.run(1)
    harness.take_sent()
    for instance in range(3):
        harness.down(instance=f"i{instance}")
    harness.run(3)
    assert [offer.capacity for offer in changed_offers(harness.take_entries(LEFT))] == [2]


def test_more_instances_are_advertised_if_their_number_has_grown_by_more_than_40_percent() -> None:
    harness = EngineHarness(LEFT)
    for instance in range(10):
        harness.up(instance=f"i{instance}")
    harness.run(1)
    harness.take_sent()
    for instance in range(10, 14):
        harness.up(instance=f"i{instance}")
        harness.run(3)
    assert harness.take_entries(LEFT) == []
    harness.up(instance="i14")
    harness.run(3)
    assert [offer.capacity for offer in changed_offers(harness.take_entries(LEFT))] == [15]


def test_down_and_up_of_one_instance_within_the_coalescing_time_is_not_advertised() -> None:
    harness = EngineHarness(LEFT)
    harness.up(instance="a")
    harness.up(instance="b")
    harness.run(1)
    harness.take_sent()
    harness.down(instance="b")
    harness.up(instance="b")
    harness.run(2)
    assert harness.take_entries(LEFT) == []


def test_removal_of_the_last_instance_is_advertised_at_once() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    harness.take_sent()
    harness.down()
    sent = [(peer, names_of([*m.entries])) for peer, m in harness.take_sent() if isinstance(m, Advert)]
    assert sorted(sent) == [(LEFT, ["-greeter"]), (RIGHT, ["-greeter"])]


def test_additional_version_is_advertised() -> None:
    harness = EngineHarness(LEFT)
    harness.up(instance="a", version="1")
    harness.run(1)
    harness.take_sent()
    harness.up(instance="b", version="2")
    harness.run(1)
    assert [offer.versions for offer in changed_offers(harness.take_entries(LEFT))] == [("1", "2")]


def test_table_contains_a_local_address_once_while_any_instance_has_it() -> None:
    harness = EngineHarness()
    harness.up(instance="a", address="tcp://x")
    harness.up(instance="b", address="tcp://x")
    harness.down(instance="a")
    assert [route.address for route in harness.table.routes()] == ["tcp://x"]
    harness.up(instance="b", address="tcp://y")
    assert [route.address for route in harness.table.routes()] == ["tcp://y"]
    harness.down(instance="b")
    assert harness.table.routes() == []


def test_default_route_is_advertised_and_not_in_the_own_table() -> None:
    harness = EngineHarness(LEFT)
    harness.up("*")
    harness.run(1)
    assert names_of(harness.take_entries(LEFT)) == ["*"]
    assert harness.table.routes() == []


def test_complete_registry_content_replaces_the_previous_one() -> None:
    harness = EngineHarness(LEFT)
    harness.up("old")
    harness.up("kept")
    harness.run(1)
    harness.take_sent()
    local = LocalInstance(address="tcp://i")
    harness.handle(LocalServices({"kept": {"i": local}, "new": {"i": local}}))
    harness.run(1)
    assert harness.services() == {"kept", "new"}
    assert sorted(names_of(harness.take_entries(LEFT))) == ["-old", "new"]


def test_removal_of_an_unknown_instance_has_no_effect() -> None:
    harness = EngineHarness(LEFT)
    assert harness.handle(InstanceDown("greeter", "i")) == []


def test_draining_withdraws_everything_at_once_and_announces_nothing_more() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.learn(FAR, RIGHT, services=("far",))
    harness.run(1)
    harness.take_sent()
    harness.handle(WithdrawAll())
    harness.acknowledge()
    withdrawn = {one.origin: one for one in harness.take_entries(LEFT) if isinstance(one, OriginWithdraw)}
    assert withdrawn[ME].is_final
    assert withdrawn[ME].seqno > (7, 1)
    assert not withdrawn[FAR].is_final, "other neighbours may have a route to it"
    harness.up("late")
    harness.learn(FAR, RIGHT, sequence=2, services=("far", "further"))
    harness.run(5)
    assert harness.take_entries(LEFT) == []
    assert harness.services() == {"greeter", "late", "far", "further"}
    harness.handle(NeighbourUp(LEFT, COST_US))
    assert harness.take_entries(LEFT) == []


def test_resumed_router_sends_its_offers_as_a_later_incarnation_on_new_links_only() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    harness.take_sent()
    harness.handle(Resumed(20))
    harness.handle(NeighbourDown(LEFT))
    assert harness.take_sent() == []
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.run(1)
    entries = harness.take_entries(LEFT)
    assert {(one.incarnation, one.sequence) for one in entries if isinstance(one, OriginAnnounce)} == {(20, 1)}
    assert {one.incarnation for one in entries if isinstance(one, OfferChanges)} == {20}
    assert names_of(entries) == ["greeter"]
    harness.handle(Resumed(5))
    assert harness.engine._origin.incarnation == 21, "other routers may know the present one"


def test_resumed_router_that_is_draining_announces_nothing() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    harness.handle(WithdrawAll())
    harness.take_sent()
    harness.handle(Resumed(20))
    harness.handle(NeighbourDown(LEFT))
    harness.handle(NeighbourUp(LEFT, COST_US))
    harness.run(1)
    assert harness.take_entries(LEFT) == []


def test_removed_services_are_forgotten() -> None:
    harness = EngineHarness(LEFT)
    for number in range(20):
        harness.up(f"once.{number}")
        harness.run(2)
        harness.down(f"once.{number}")
    for number in range(20):
        harness.up(f"never.{number}")
        harness.down(f"never.{number}")
    harness.run(60)
    assert harness.engine._origin.services == {}
    assert harness.engine._origin.offers.entries == {}


def test_change_of_load_is_advertised_with_hysteresis_and_is_not_a_flap() -> None:
    harness = EngineHarness(LEFT)
    for load_us in [4_000 << step % 6 for step in range(60)]:
        harness.up(load_us=load_us)
        harness.run(1)
    assert harness.engine.damper.statuses(harness.now) == []
    harness.run(5)
    loads = [offer.load_us for offer in changed_offers(harness.take_entries(LEFT))]
    assert loads[-1] == 4_000 << 59 % 6
    assert 15 <= len(loads) <= 31, "once in two seconds at most"
    for load_us in (loads[-1] + 900, int(loads[-1] * 1.2), int(loads[-1] * 0.8)):
        harness.up(load_us=load_us)
        harness.run(5)
    assert harness.take_entries(LEFT) == []


# -------------------------------------------------------------------------- damping


def flap(harness: EngineHarness, times: int, period_s: float = 2.0, service: str = "greeter") -> None:
    for _ in range(times):
        harness.down(service)
        harness.run(period_s / 2)
        harness.up(service)
        harness.run(period_s / 2)


def test_flapping_service_is_withdrawn_at_once_suppressed_and_reused_with_its_latest_state() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    flap(harness, 8)
    advertised = names_of(harness.take_entries(LEFT))
    assert advertised[-1] == "-greeter", "the last entry is a removal"
    assert advertised.count("greeter") < 8
    harness.up(instance="j", version="2")
    harness.run(119)
    (offer,) = changed_offers(harness.take_entries(LEFT))
    assert offer.versions == ("2",), "the announcement contains the changes during the suppression"


def test_withdrawal_is_never_suppressed() -> None:
    harness = EngineHarness(LEFT)
    for _ in range(40):
        harness.up()
        harness.run(30)
        harness.take_sent()
        was_advertised = "greeter" in harness.engine._origin.offers.entries
        harness.down()
        assert names_of(harness.take_entries(LEFT)) == ["-greeter"] * was_advertised
        harness.run(0.1)


def test_suppressed_service_is_not_advertised_to_a_new_neighbour() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    flap(harness, 8)
    harness.take_sent()
    harness.handle(NeighbourUp(RIGHT, COST_US))
    assert names_of(harness.take_entries(RIGHT)) == []


def test_single_restart_is_delayed_by_the_coalescing_time_only() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(600)
    harness.take_sent()
    harness.down()
    harness.acknowledge()
    harness.run(3)
    harness.up()
    harness.run(0.5)
    assert names_of(harness.take_entries(LEFT)) == ["-greeter", "greeter"]


def test_service_is_advertised_when_an_operator_ends_its_suppression() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    flap(harness, 8)
    harness.take_sent()
    harness.handle(ReuseService("greeter"))
    assert names_of(harness.take_entries(LEFT)) == ["greeter"]


def test_short_lived_subscribers_are_never_muted_for_long() -> None:
    """A subscriber every three seconds. Before, the seventh waited for 113 s."""
    harness = EngineHarness(LEFT)
    for _ in range(40):
        harness.up("~orders")
        harness.run(1.5)
        assert "~orders" in names_of(harness.take_entries(LEFT))
        harness.down("~orders")
        harness.run(1.5)


def test_burst_of_subscribers_is_suppressed_for_a_few_seconds() -> None:
    harness = EngineHarness(LEFT)
    for _ in range(50):
        harness.up("~orders")
        harness.run(0.6)
        harness.down("~orders")
        harness.run(0.01)
    assert names_of(harness.take_entries(LEFT)).count("~orders") < 40
    harness.up("~orders")
    harness.run(4.6)
    assert "~orders" in names_of(harness.take_entries(LEFT))


def test_interest_of_a_flapping_service_name_is_damped_separately() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    flap(harness, 8)
    harness.take_sent()
    harness.up("~greeter")
    harness.run(1)
    assert names_of(harness.take_entries(LEFT)) == ["~greeter"]


# ----------------------------------------------------------------------- flapping links


def test_flapping_link_is_the_last_resort_until_it_was_up_for_a_while() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, metric_us=20_000)
    for _ in range(3):
        harness.handle(NeighbourDown(LEFT))
        harness.link(LEFT)
    harness.learn(FAR, LEFT, metric_us=100)
    metrics = {route.gateway: route.metric for route in harness.table.routes()}
    assert metrics[LEFT] > 5_000_000 > metrics[RIGHT]
    (candidate,) = [one for one in harness.engine.explain("greeter", harness.now, lambda _: 0) if one.via == LEFT]
    assert candidate.total_us > 5_000_000
    harness.run(89)
    metrics = {route.gateway: route.metric for route in harness.table.routes()}
    assert metrics[LEFT] == 100 + COST_US


def test_flapping_link_stays_the_last_resort_when_its_cost_changes() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.learn(FAR, RIGHT, metric_us=20_000)
    for _ in range(3):
        harness.handle(NeighbourDown(LEFT))
        harness.link(LEFT)
    harness.learn(FAR, LEFT, metric_us=100)
    for _ in range(5):
        harness.run(1)
        harness.handle(NeighbourCost(LEFT, 9 * COST_US))
    metrics = {route.gateway: route.metric for route in harness.table.routes()}
    assert metrics[LEFT] == 100 + 9 * COST_US + LinkDampingPolicy().last_resort_us


def test_graceful_closes_do_not_damp_a_link() -> None:
    harness = EngineHarness(LEFT)
    for _ in range(5):
        harness.handle(NeighbourDown(LEFT, is_graceful=True))
        harness.link(LEFT)
    harness.learn(FAR, LEFT, metric_us=100)
    assert [route.metric for route in harness.table.routes()] == [100 + COST_US]


def test_damped_link_that_is_the_only_way_is_used() -> None:
    harness = EngineHarness(LEFT)
    for _ in range(4):
        harness.handle(NeighbourDown(LEFT))
        harness.link(LEFT)
    harness.handle(InstanceUp("x", "i", LocalInstance(address="tcp://i")))
    harness.learn(FAR, LEFT)
    assert harness.gateways() == [LEFT]


def test_link_that_is_given_up_is_the_last_resort_for_all_routers_before_it_ends() -> None:
    harness = EngineHarness(LEFT, OTHER)
    harness.link(RIGHT, 20_000)
    harness.learn(FAR, RIGHT, metric_us=600)
    harness.learn(FAR, LEFT, metric_us=100)
    harness.run(5)
    harness.take_sent()
    harness.handle(NeighbourSuspect(LEFT, True, is_closing=True))
    metrics = {route.gateway: route.metric for route in harness.table.routes()}
    assert metrics[LEFT] > 5_000_000 > metrics[RIGHT]
    harness.run(3)
    assert [one.path for one in harness.take_announced(OTHER)] == [(FAR, RIGHT, ME)]
    harness.handle(NeighbourSuspect(LEFT, False))
    metrics = {route.gateway: route.metric for route in harness.table.routes()}
    assert metrics[LEFT] == 100 + COST_US, "another link to the neighbour has replaced it"
