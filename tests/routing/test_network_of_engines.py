"""Several routing engines: convergence, failures and the number of messages."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Advert,
    MessageReceived,
    NeighbourCost,
    RoutingMessage,
    Solicit,
    WithdrawAll,
)
from tests.routing.engine_network import COST_US, EngineNetwork, line, node_id


def test_metrics_add_up_along_a_line() -> None:
    net, (a, b, c, d) = line(4)
    net.up(a, "greeter")
    net.run(5)
    assert [net.routes(name, "greeter")[0].metric for name in (a, b, c, d)] == [0, COST_US, 2 * COST_US, 3 * COST_US]
    assert [net.routes(name, "greeter")[0].hops for name in (b, c, d)] == [1, 2, 3]
    net.check_tables()


def test_route_may_be_as_long_as_the_longest_one_of_a_thousand_nodes() -> None:
    net, names = line(27)
    net.up(names[0], "greeter")
    net.run(5)
    assert [len(net.routes(name, "greeter")) for name in names] == [1] * 27
    assert net.counted["routing_paths_too_long"] == 0


def test_new_service_reaches_neighbours_within_the_coalescing_time() -> None:
    net, (a, b) = line(2)
    net.up(a, "greeter")
    net.run(0.6)
    assert net.routes(b, "greeter")


def test_withdrawal_of_the_last_instance_is_sent_at_once() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    net.down(a, "greeter")
    net.run(0.11)
    assert not net.routes(b, "greeter")
    assert not net.routes(c, "greeter")


def test_restarts_of_one_of_three_instances_are_not_advertised() -> None:
    net, (a, b) = line(2)
    for instance in "xyz":
        net.up(a, "greeter", instance)
    net.run(5)
    before = len(net.sent)
    for _ in range(20):
        net.down(a, "greeter", "x")
        net.run(0.1)
        net.up(a, "greeter", "x")
        net.run(0.1)
    net.run(3)
    assert net.adverts(before) == []
    assert net.routes(b, "greeter")


def test_service_removed_within_the_coalescing_time_is_not_advertised() -> None:
    net, (a, b) = line(2)
    before = len(net.sent)
    net.up(a, "greeter")
    net.down(a, "greeter")
    net.run(3)
    assert net.adverts(before) == []
    assert not net.routes(b, "greeter")


def test_both_routes_of_a_ring_are_installed_and_the_second_takes_over_at_once() -> None:
    net, names = line(4)
    a, b, c, d = names
    net.link(d, a)
    net.up(a, "greeter")
    net.run(5)
    assert {route.gateway for route in net.routes(c, "greeter")} == {b, d}
    assert len(net.routes(b, "greeter")) >= 1
    net.cut(a, b)
    assert net.routes(c, "greeter"), "the alternative route is used at once"
    net.run(3)
    net.check_tables()
    assert net.follow(b, a, "greeter") == 3 * COST_US


def test_lost_route_does_not_withdraw_a_running_service() -> None:
    net, names = line(4)
    a, _, c, d = names
    net.link(d, a)
    net.up(a, "greeter")
    net.run(5)
    for _ in range(3):
        net.cut(a, d)
        net.run(1)
        net.link(a, d)
        net.run(3)
        net.check_tables()
    assert net.routes(c, "greeter")


def test_restored_link_restores_its_routes() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    net.cut(a, b)
    net.run(3)
    assert not net.routes(c, "greeter")
    net.link(a, b)
    net.run(3)
    net.check_tables()
    assert net.routes(c, "greeter")


def test_replaced_link_loses_no_route() -> None:
    net, (a, b) = line(2)
    net.up(a, "greeter")
    net.run(5)
    net.up(a, "later")
    net.move(a, b)
    assert net.routes(b, "greeter")
    net.run(0.2)
    assert net.routes(b, "greeter")
    net.run(2)
    assert net.routes(b, "later")
    net.check_tables()


@pytest.mark.parametrize("side", [0, 1])
def test_side_that_lost_the_link_before_its_replacement_gets_the_full_table(side: int) -> None:
    net, names = line(2)
    for name in names:
        net.up(name, f"of-{name[:4]}")
    net.run(5)
    net.move(*names, forgetful=names[side])
    net.run(2)
    for node, other in (names, names[::-1]):
        assert net.routes(node, f"of-{other[:4]}")
    net.check_tables()


def test_restarted_origin_replaces_its_earlier_incarnation() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "old")
    net.up(a, "kept")
    net.run(5)
    net.restart(a)
    net.up(a, "kept")
    net.run(5)
    net.check_tables()
    assert not net.routes(c, "old")
    assert net.routes(c, "kept")
    assert b in net.connected(a)


def test_routes_of_a_neighbour_without_digests_expire() -> None:
    net, (a, b, _c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    silent = net.engines[a]
    net.engines[a] = Engine(router=a, network="n", site="s", incarnation=99, random=random.Random(1))
    net.run(100)
    assert not net.routes(b, "greeter")
    net.engines[a] = silent


def test_digests_renew_routes_for_an_hour() -> None:
    net, (a, _, c) = line(3)
    net.up(a, "greeter")
    net.run(3_600)
    net.check_tables()
    assert net.routes(c, "greeter")
    assert net.counted["routing_leases_expired"] == 0
    assert net.adverts(since=200) == [], "only digests are sent without changes"


def test_lost_advert_is_repaired_after_the_next_digest() -> None:
    net, (a, b) = line(2)
    net.drop.append(Advert)
    net.up(a, "greeter")
    net.run(31)
    assert net.drop == []
    assert net.routes(b, "greeter")
    net.check_tables()


def test_lasting_change_of_a_link_cost_changes_metrics() -> None:
    net, (a, b, c) = line(3)
    net.cost(b, a, 10_000)
    net.up(a, "greeter")
    net.run(5)

    def measure(cost_us: int) -> None:
        net._do(b, net.engines[b].handle(NeighbourCost(a, cost_us), net.now))
        net.run(3)

    measure(15_000)
    assert net.routes(c, "greeter")[0].metric == 10_000 + COST_US, "one measurement is not enough"
    measure(15_000)
    assert net.routes(c, "greeter")[0].metric == 15_000 + COST_US


def test_draining_node_advertises_nothing_and_keeps_its_own_routes() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.up(b, "other")
    net.run(5)
    net._do(b, net.engines[b].handle(WithdrawAll(), net.now))
    net.run(1)
    assert not net.routes(c, "other")
    assert not net.routes(c, "greeter"), "the route leads through the draining node"
    assert net.routes(b, "other"), "the own site can still reach it"
    assert net.routes(b, "greeter"), "late calls are still forwarded"


def test_number_of_messages_for_one_service_is_bounded_in_a_full_mesh() -> None:
    net = EngineNetwork(8)
    for a, b in itertools.combinations(net.engines, 2):
        net.link(a, b)
    net.run(5)
    before = len(net.sent)
    net.up(node_id(0), "greeter")
    net.run(10)
    net.check_tables()
    assert len(net.adverts(before)) <= 2 * 8 * 7


def test_same_seed_gives_the_same_messages() -> None:
    def messages_of_a_run() -> list[tuple[str, str, RoutingMessage]]:
        net = EngineNetwork(5, seed=3)
        for a, b in itertools.combinations(net.engines, 2):
            if net.random.random() < 0.7:
                net.link(a, b)
        net.up(node_id(1), "greeter")
        net.run(5)
        net.cut(node_id(0), node_id(1))
        net.run(50)
        return net.sent

    assert messages_of_a_run() == messages_of_a_run()


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_tables_are_correct_after_all_changes(seed: int) -> None:
    """Random links, services and restarts. Afterwards all tables contain exactly the running services."""
    source = random.Random(seed)
    net = EngineNetwork(source.randrange(2, 8), seed)
    names = list(net.engines)
    for a, b in itertools.combinations(names, 2):
        if source.random() < 0.5:
            net.link(a, b)
    for _ in range(source.randrange(5, 40)):
        a, b = source.sample(names, 2)
        match source.randrange(6):
            case 0:
                net.cut(a, b)
            case 1 if frozenset((a, b)) not in net.links:
                net.link(a, b)
            case 2 | 3:
                net.up(a, source.choice(["one", "two"]), source.choice("xyz"))
            case 4:
                net.down(a, source.choice(["one", "two"]), source.choice("xyz"))
            case 5 if source.random() < 0.3:
                net.restart(a)
        net.run(source.choice([0.0, 0.01, 0.3, 2.0]))
    net.run(30)
    net.check_tables()


@pytest.mark.parametrize("kind", ["advert", "ack", "solicit", "digest", "request"])
@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_lost_messages_are_compensated(kind: str, seed: int) -> None:
    from micro_core.routing.events import Ack, Digest, SeqnoRequests

    lost = {"advert": Advert, "ack": Ack, "solicit": Solicit, "digest": Digest, "request": SeqnoRequests}[kind]
    net, names = line(4)
    source = random.Random(seed)
    net.drop += [lost] * source.randrange(1, 4)
    for _ in range(6):
        net.up(source.choice(names), "greeter", source.choice("xyz"))
        net.run(source.uniform(0, 2))
        net.down(source.choice(names), "greeter", source.choice("xyz"))
        net.run(source.uniform(0, 2))
    net.drop.clear()
    net.run(60)
    net.check_tables()


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_no_loop_exists_at_any_moment(seed: int) -> None:
    """Random costs, links, services and restarts with slow messages: installed routes never form a loop, even for a moment."""
    source = random.Random(seed)
    net = EngineNetwork(source.randrange(3, 9), seed)
    net.max_delay_s = source.choice([0.05, 0.5, 3.0])
    net.is_checking_loops = True
    names = list(net.engines)
    costs = [100, 1_000, 3_000, 20_000, 200_000]
    for a, b in itertools.combinations(names, 2):
        if source.random() < 0.5:
            net.link(a, b, source.choice(costs))
    for name in names[:2]:
        net.up(name, "one")
    for _ in range(source.randrange(20, 60)):
        a, b = source.sample(names, 2)
        is_linked = frozenset((a, b)) in net.links
        match source.randrange(8):
            case 0:
                net.cut(a, b)
            case 1 | 2 if not is_linked:
                net.link(a, b, source.choice(costs))
            case 3 | 4 | 5 if is_linked:
                net.cost(a, b, source.choice(costs))
            case 6 if source.random() < 0.2:
                net.restart(a)
                net.up(a, "one")
            case 7 if source.random() < 0.2:
                net._do(a, net.engines[a].handle(MessageReceived(b, Solicit()), net.now))
        net.run(source.choice([0.001, 0.02, 0.3, 2.0, 10.0]))
    net.run(130)
    net.check_tables()
