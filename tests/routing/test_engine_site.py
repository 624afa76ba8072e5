"""One routing engine: the services of its own site and their flap damping."""

from __future__ import annotations

from micro_core.routing.events import (
    Advert,
    Announce,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    LocalServices,
    NeighbourUp,
    ReuseService,
    Withdraw,
    WithdrawAll,
)
from tests.routing.engine_harness import COST_US, FAR, LEFT, ME, RIGHT, EngineHarness, announce, withdraw


def test_restart_of_one_of_three_instances_is_not_advertised() -> None:
    harness = EngineHarness(LEFT)
    for instance in "abc":
        harness.up(instance=instance)
    harness.run(1)
    harness.take_sent()
    harness.down(instance="b")
    harness.run(2)
    harness.up(instance="b")
    harness.run(2)
    assert harness.take_sent() == []


def test_down_and_up_of_one_instance_within_the_coalescing_time_is_not_advertised() -> None:
    harness = EngineHarness(LEFT)
    harness.up(instance="a")
    harness.up(instance="b")
    harness.run(1)
    harness.take_sent()
    harness.down(instance="b")
    harness.up(instance="b")
    harness.run(2)
    assert harness.take_sent() == []


def test_new_service_is_advertised_after_a_quarter_to_half_a_second() -> None:
    for seed in range(20):
        harness = EngineHarness(LEFT, seed=seed)
        harness.up()
        harness.run(0.249)
        assert harness.take_entries(LEFT) == []
        harness.run(0.252)
        (entry,) = harness.take_entries(LEFT)
        assert isinstance(entry, Announce)
        assert (entry.origin, entry.service, entry.path, entry.metric_us) == (ME, "greeter", (ME,), 0)


def test_removal_of_the_last_instance_is_withdrawn_at_once_and_finally() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.run(1)
    harness.take_sent()
    harness.down()
    for peer, message in harness.take_sent():
        assert peer in (LEFT, RIGHT)
        assert isinstance(message, Advert)
        (entry,) = message.entries
        assert isinstance(entry, Withdraw)
        assert entry.is_final
        assert entry.sequence == 2


def test_additional_version_is_advertised() -> None:
    harness = EngineHarness(LEFT)
    harness.up(instance="a", version="1")
    harness.run(1)
    harness.take_sent()
    harness.up(instance="b", version="2")
    harness.run(1)
    (entry,) = harness.take_entries(LEFT)
    assert isinstance(entry, Announce)
    assert entry.versions == ("1", "2")


def test_table_contains_a_local_address_once_while_any_instance_has_it() -> None:
    harness = EngineHarness()
    harness.up(instance="a", address="tcp://x")
    harness.up(instance="b", address="tcp://x")
    harness.down(instance="a")
    assert [route.address for route in harness.table.values()] == ["tcp://x"]
    harness.up(instance="b", address="tcp://y")
    assert [route.address for route in harness.table.values()] == ["tcp://y"]
    harness.down(instance="b")
    assert harness.table == {}


def test_complete_registry_content_replaces_the_previous_one() -> None:
    harness = EngineHarness(LEFT)
    harness.up("old")
    harness.up("kept")
    harness.run(1)
    harness.take_sent()
    local = LocalInstance(address="tcp://i")
    harness.handle(LocalServices({"kept": {"i": local}, "new": {"i": local}}))
    harness.run(1)
    assert {route.service for route in harness.table.values()} == {"kept", "new"}
    advertised = {(entry.service, type(entry)) for entry in harness.take_entries(LEFT)}
    assert advertised == {("old", Withdraw), ("new", Announce)}


def test_removal_of_an_unknown_instance_has_no_effect() -> None:
    harness = EngineHarness(LEFT)
    assert harness.handle(InstanceDown("greeter", "i")) == []


def test_draining_withdraws_everything_at_once_and_announces_nothing_more() -> None:
    harness = EngineHarness(LEFT, RIGHT)
    harness.up()
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, service="far"))
    harness.run(1)
    harness.take_sent()
    harness.handle(WithdrawAll())
    harness.acknowledge()
    own, beyond = sorted(harness.take_entries(LEFT), key=lambda entry: entry.service, reverse=True)
    assert isinstance(own, Withdraw)
    assert (own.service, own.is_final) == ("greeter", True)
    assert isinstance(beyond, Withdraw)
    assert (beyond.service, beyond.is_final) == ("far", False), "other neighbours may have a route to it"
    harness.up("late")
    harness.receive_advert(RIGHT, announce(FAR, RIGHT, service="further"))
    harness.run(2)
    assert harness.take_entries(LEFT) == []
    assert {route.service for route in harness.table.values()} == {"greeter", "late", "far", "further"}
    harness.handle(NeighbourUp(LEFT, COST_US))
    assert harness.take_entries(LEFT) == []


def test_removed_services_are_forgotten() -> None:
    harness = EngineHarness(LEFT)
    for number in range(20):
        harness.up(f"once.{number}")
        harness.run(2)
        harness.down(f"once.{number}")
    harness.run(60)
    assert harness.engine._origin.services == {}


def test_change_of_load_is_advertised_and_is_not_a_flap() -> None:
    harness = EngineHarness(LEFT)
    for load_us in [4_000 << step % 6 for step in range(60)]:
        harness.handle(InstanceUp("greeter", "i", LocalInstance(address="tcp://i", load_us=load_us)))
        harness.run(2)
    assert harness.engine.damper.statuses(harness.now) == []
    advertised = [entry for entry in harness.take_entries(LEFT) if isinstance(entry, Announce)]
    assert advertised[-1].metric_us == advertised[-1].load_us == 4_000 << 59 % 6


def test_flapping_service_of_another_origin_is_observed_and_not_suppressed() -> None:
    harness = EngineHarness(LEFT)
    for sequence in range(1, 21, 2):
        harness.receive_advert(LEFT, announce(FAR, LEFT, sequence=sequence))
        assert harness.gateways() == [LEFT]
        harness.receive_advert(LEFT, withdraw(FAR, sequence=sequence + 1, is_final=True))
        harness.receive_advert(LEFT, withdraw(FAR, sequence=sequence + 1, is_final=True))
    (flap,) = harness.engine.observed.statuses(harness.now)
    assert (flap.service.split(), flap.losses, flap.is_suppressed) == ([FAR, "greeter"], 10, False)


def flap(harness: EngineHarness, times: int, period_s: float = 2.0) -> None:
    for _ in range(times):
        harness.down()
        harness.run(period_s / 2)
        harness.up()
        harness.run(period_s / 2)


def test_flapping_service_is_withdrawn_at_once_suppressed_and_reused_with_its_latest_state() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    harness.run(1)
    flap(harness, 8)
    advertised = harness.take_entries(LEFT)
    assert isinstance(advertised[-1], Withdraw), "the last entry is a withdrawal"
    assert sum(isinstance(entry, Announce) for entry in advertised) < 8
    harness.up(instance="j", version="2")
    harness.run(119)
    (entry,) = harness.take_entries(LEFT)
    assert isinstance(entry, Announce)
    assert entry.versions == ("2",), "the announcement contains the changes during the suppression"


def test_withdrawal_is_never_suppressed() -> None:
    harness = EngineHarness(LEFT)
    for _ in range(40):
        harness.up()
        harness.run(30)
        harness.take_sent()
        was_advertised = ("greeter", ME) in {(key[1], key[0]) for key in harness.engine._neighbours[LEFT].advertised}
        harness.down()
        assert [type(entry) for entry in harness.take_entries(LEFT)] == ([Withdraw] if was_advertised else [])
        harness.run(0.1)


def test_suppressed_service_is_not_advertised_to_a_new_neighbour() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    flap(harness, 8)
    harness.take_sent()
    harness.handle(NeighbourUp(RIGHT, COST_US))
    assert harness.take_entries(RIGHT) == []


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
    assert [type(entry) for entry in harness.take_entries(LEFT)] == [Withdraw, Announce]


def test_service_is_advertised_when_an_operator_ends_its_suppression() -> None:
    harness = EngineHarness(LEFT)
    harness.up()
    flap(harness, 8)
    harness.take_sent()
    harness.handle(ReuseService("greeter"))
    (entry,) = harness.take_entries(LEFT)
    assert isinstance(entry, Announce)
