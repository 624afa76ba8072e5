"""Several routing engines: how many messages heals, flaps and rising costs cause, and that they refuse no calls."""

from __future__ import annotations

import itertools
import random

from micro_core.routing.entries import OfferChanges, OriginAnnounce, OriginWithdraw
from micro_core.routing.events import Advert, Digest, SeqnoRequests
from tests.routing.engine_network import EngineNetwork, line, node_id

SLOW_S = 2.0


def clouds(count: int = 4, size: int = 3) -> tuple[EngineNetwork, list[list[str]], list[tuple[str, str]]]:
    """Return a network of clouds with several services per node, and the links between clouds."""
    net = EngineNetwork(count * size, seed=7)
    groups = [[node_id(cloud * size + index) for index in range(size)] for cloud in range(count)]
    between = []
    for group in groups:
        for a, b in itertools.combinations(group, 2):
            net.link(a, b, 5_000)
        for name in group:
            net.up(name, f"of-{name[:2]}")
            net.up(name, "shared")
    for one, other in itertools.combinations(groups, 2):
        for a, b in zip(one, other[1:] + other[:1], strict=True):
            net.link(a, b, net.random.choice([20_000, 60_000, 150_000]))
            between.append((a, b))
    net.run(30)
    net.check_tables()
    return net, groups, between


def test_rising_cost_refuses_no_calls() -> None:
    """A new link starts with a low cost, which then rises. Before, its routes were unusable until the origin answered."""
    net, (a, b, c, d) = line(4)
    net.up(a, "greeter")
    net.run(10)
    for cost_us in (5_000, 40_000, 150_000, 400_000):
        net.cost(b, a, cost_us)
        for _ in range(100):
            net.run(0.1)
            for name in (b, c, d):
                assert net.routes(name, "greeter"), f"{name[:2]} has no route"
    assert net.counted["routing_seqno_requests"] == 0
    assert net.routes(d, "greeter")[0].metric >= 300_000


def test_path_that_became_slower_is_left_within_five_seconds() -> None:
    """A path of 40 ms becomes one of 400 ms, and another one has 140 ms. It is infeasible at first."""
    net = EngineNetwork(3)
    a, b, c = net.engines
    net.link(a, b, 40_000)
    net.link(a, c, 70_000)
    net.link(c, b, 70_000)
    net.up(a, "greeter")
    net.run(60)
    # Both b and c have advertised their direct routes, so the other ones are infeasible.
    assert net.routes(b, "greeter")[0].gateway == a
    net.cost(b, a, 400_000)
    net.cost(a, b, 400_000)
    for _ in range(50):
        net.run(0.1)
        assert net.routes(b, "greeter"), "the present route stays in use"
    best = net.routes(b, "greeter")[0]
    assert (best.gateway, best.metric) == (c, 140_000)
    net.check_tables()


def test_heal_of_clouds_causes_a_bounded_number_of_messages() -> None:
    net, groups, between = clouds()
    isolated = [pair for pair in between if (pair[0] in groups[0]) is not (pair[1] in groups[0])]
    for a, b in isolated:
        net.cut(a, b)
    net.run(60)
    for name in groups[0]:
        net.up(name, "new")
    net.run(5)
    before, started_at = len(net.sent), net.now
    for a, b in isolated:
        net.link(a, b, 60_000)
    net.run(30)
    net.check_tables()
    sent = net.sent[before:]
    links = len(net.links)
    origins = len(net.engines)
    adverts = [message for _, _, message in sent if isinstance(message, Advert)]
    entries = [entry for advert in adverts for entry in advert.entries]
    announced = [entry for entry in entries if isinstance(entry, OriginAnnounce | OriginWithdraw)]
    slow_adverts = 2 * links * (net.now - started_at) / SLOW_S
    assert len(adverts) <= 2 * links + slow_adverts / 3, "after the first exchange, few changes are left"
    assert len(announced) <= 3 * origins * 2 * links
    assert len([entry for entry in entries if isinstance(entry, OfferChanges)]) <= 2 * origins * 2 * links
    requests = [message for _, _, message in sent if isinstance(message, SeqnoRequests)]
    assert len(requests) <= 2 * links
    late = [message for _, _, message in sent if not isinstance(message, Digest)]
    net.run(5)
    calm = len(net.sent)
    net.run(30)
    assert [m for _, _, m in net.sent[calm:] if isinstance(m, Advert | SeqnoRequests)] == [], "calm afterwards"
    assert late


def test_changing_costs_cause_at_most_one_message_per_link_and_two_seconds() -> None:
    net, _, between = clouds()
    source = random.Random(3)
    net.run(30)
    before, started_at = len(net.sent), net.now
    for _ in range(300):
        a, b = source.choice(between)
        net.cost(a, b, source.choice([20_000, 60_000, 150_000, 400_000]))
        net.run(0.2)
    seconds = net.now - started_at
    sent = [m for _, _, m in net.sent[before:] if isinstance(m, Advert)]
    requests = sum(isinstance(m, SeqnoRequests) for _, _, m in net.sent[before:])
    directions = 2 * len(net.links)
    assert len(sent) <= directions * (seconds / SLOW_S + 1) + 2 * requests
    assert requests <= directions * seconds / 5


def test_recycling_of_instances_changes_nothing_at_other_nodes() -> None:
    net, groups, _ = clouds()
    name = groups[0][0]
    for index in range(20):
        net.up(name, "many", f"i{index}")
    net.run(10)
    before, started_at = len(net.sent), net.now
    for index in range(20):
        net.down(name, "many", f"i{index}")
        net.run(0.7)
        net.up(name, "many", f"i{index}")
        net.run(0.3)
    net.run(10)
    messages = [m for _, _, m in net.sent[before:] if isinstance(m, Advert)]
    per_node_and_second = len(messages) / len(net.engines) / (net.now - started_at)
    assert per_node_and_second < 0.5


def test_new_service_is_advertised_once_per_link() -> None:
    net, groups, _ = clouds()
    net.run(30)
    before = len(net.sent)
    net.up(groups[0][0], "news")
    net.run(10)
    net.check_tables()
    adverts = net.adverts(before)
    assert len(adverts) <= 2 * len(net.links)
    assert sum(len(advert.entries) for advert in adverts) <= 2 * len(net.links)


def test_start_explores_few_paths() -> None:
    """Each router advertises each origin to each neighbour about once."""
    net, _, _ = clouds()
    directions = 2 * len(net.links)
    announced = [entry for advert in net.adverts() for entry in advert.entries if isinstance(entry, OriginAnnounce)]
    assert len(announced) <= 2 * len(net.engines) * directions
