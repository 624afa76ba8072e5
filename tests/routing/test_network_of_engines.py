"""Many engines on virtual time, joined by links that deliver in order, late, or break: what must hold of all of them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract import Route, RouteKey
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Advert,
    Count,
    DeleteRoute,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutRoute,
    RoutingMessage,
    SendMessage,
    Solicit,
    WithdrawAll,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
COST_US = 1_000


def node_id(number: int) -> str:
    return ALPHABET[number] * 32


class Net:
    """Engines, their tables, links, and the time."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.tables: dict[str, dict[RouteKey, Route]] = {}
        self.links: dict[frozenset[str], int] = {}
        self.counted: Counter[str] = Counter()
        self.sent: list[tuple[str, str, RoutingMessage]] = []
        self.drop: list[type] = []
        self._queue: list[tuple[float, int, str, str, bytes, int]] = []
        self._order = itertools.count()
        self._last: dict[tuple[str, str], float] = {}
        self._generation = itertools.count(1)
        self._incarnation = itertools.count(1)
        for number in range(size):
            self.boot(node_id(number))

    def boot(self, name: str) -> None:
        self.engines[name] = Engine(
            router=name,
            network="go.micro",
            site=name[:4],
            incarnation=next(self._incarnation),
            random=random.Random(self.random.random()),
        )
        self.tables[name] = {}

    # ---------------------------------------------------------------- what happens

    def link(self, a: str, b: str) -> None:
        self.links[frozenset((a, b))] = next(self._generation)
        for here, there in ((a, b), (b, a)):
            self._do(here, self.engines[here].handle(NeighbourUp(there, COST_US), self.now))

    def move(self, a: str, b: str, *, forgetful: str = "") -> None:
        """Another link takes over: both tell everything. What was on its way on the old one is lost; and one side may have
        lost the old one before."""
        self.links[frozenset((a, b))] = next(self._generation)
        for here, there in ((a, b), (b, a)):
            if here == forgetful:
                self._do(here, self.engines[here].handle(NeighbourDown(there), self.now))
                self._do(here, self.engines[here].handle(NeighbourUp(there, COST_US), self.now))
            else:
                self._do(here, self.engines[here].handle(MessageReceived(there, Solicit()), self.now))

    def cut(self, a: str, b: str) -> None:
        if self.links.pop(frozenset((a, b)), None) is None:
            return
        for here, there in ((a, b), (b, a)):
            self._do(here, self.engines[here].handle(NeighbourDown(there), self.now))

    def up(self, name: str, service: str, instance: str = "i", address: str = "") -> None:
        local = LocalInstance(address=address or f"tcp://{name[:4]}/{instance}")
        self._do(name, self.engines[name].handle(InstanceUp(service, f"{service}-{instance}", local), self.now))

    def down(self, name: str, service: str, instance: str = "i") -> None:
        self._do(name, self.engines[name].handle(InstanceDown(service, f"{service}-{instance}"), self.now))

    def restart(self, name: str) -> None:
        neighbours = [next(iter(pair - {name})) for pair in self.links if name in pair]
        for other in neighbours:
            self.cut(name, other)
        self.boot(name)
        for other in neighbours:
            self.link(name, other)

    # ------------------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            wakes = [(e.wake_at, name) for name, e in self.engines.items() if e.wake_at is not None]
            wake_at, waking = min(wakes, default=(float("inf"), ""))
            arrival = self._queue[0][0] if self._queue else float("inf")
            if min(wake_at, arrival) > end:
                self.now = end
                return
            if arrival <= wake_at:
                self.now = max(self.now, arrival)
                _, _, sender, to, payload, generation = heapq.heappop(self._queue)
                if self.links.get(frozenset((sender, to))) == generation:
                    event = MessageReceived(sender, messages.decode(payload))
                    self._do(to, self.engines[to].handle(event, self.now))
            else:
                self.now = max(self.now, wake_at)
                self._do(waking, self.engines[waking].wake(self.now))

    def _do(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.tables[name][route.key] = route
                case DeleteRoute(key):
                    assert key in self.tables[name], "deleted what was never put"
                    del self.tables[name][key]
                case Count(what, amount):
                    self.counted[what] += amount
                case SendMessage(peer, message):
                    self._send(name, peer, message)

    def _send(self, name: str, peer: str, message: RoutingMessage) -> None:
        generation = self.links.get(frozenset((name, peer)))
        if generation is None:
            return
        self.sent.append((name, peer, message))
        if type(message) in self.drop:
            self.drop.remove(type(message))
            return
        when = max(self.now + self.random.uniform(0.001, 0.05), self._last.get((name, peer), 0.0))
        self._last[name, peer] = when
        heapq.heappush(self._queue, (when, next(self._order), name, peer, messages.encode(message), generation))

    # ------------------------------------------------------------------ what is seen

    def routes(self, name: str, service: str) -> list[Route]:
        return sorted((r for r in self.tables[name].values() if r.service == service), key=lambda r: r.metric)

    def adverts(self, since: int = 0) -> list[Advert]:
        return [message for _, _, message in self.sent[since:] if isinstance(message, Advert) and message.entries]

    def connected(self, name: str) -> set[str]:
        seen, edge = {name}, [name]
        while edge:
            here = edge.pop()
            for pair in self.links:
                if here in pair:
                    (other,) = pair - {here}
                    if other not in seen:
                        seen.add(other)
                        edge.append(other)
        return seen

    def check_quiet(self) -> None:
        """What must hold when nothing has happened for long enough."""
        offered = {
            (name, service): bool(own.instances)
            for name, engine in self.engines.items()
            for service, own in engine._origin.services.items()
        }
        for name in self.engines:
            reachable = self.connected(name)
            expected = {
                (origin, service) for (origin, service), there in offered.items() if there and origin in reachable
            }
            known = {(route.router, route.service) for route in self.tables[name].values()}
            assert known == expected, f"{name[:4]} knows {known ^ expected} wrongly"
            for origin, service in expected:
                self.follow(name, origin, service)

    def follow(self, name: str, origin: str, service: str) -> int:
        """Go by the best route of each node; the metric of the first."""
        here, passed = name, [name]
        while here != origin:
            best = next(route for route in self.routes(here, service) if route.router == origin)
            assert frozenset((here, best.gateway)) in self.links, "a route over a link that is gone"
            here = best.gateway
            assert here not in passed, f"a loop: {passed}"
            passed.append(here)
        routes = [route for route in self.routes(name, service) if route.router == origin]
        return routes[0].metric


def line(size: int) -> tuple[Net, list[str]]:
    net = Net(size)
    names = [node_id(number) for number in range(size)]
    for a, b in itertools.pairwise(names):
        net.link(a, b)
    net.run(2)
    return net, names


def test_metrics_add_up_along_a_line() -> None:
    net, (a, b, c, d) = line(4)
    net.up(a, "greeter")
    net.run(5)
    assert [net.routes(name, "greeter")[0].metric for name in (a, b, c, d)] == [0, COST_US, 2 * COST_US, 3 * COST_US]
    assert [net.routes(name, "greeter")[0].hops for name in (b, c, d)] == [1, 2, 3]
    net.check_quiet()


def test_a_new_service_is_known_to_neighbours_within_the_coalescing_time() -> None:
    net, (a, b) = line(2)
    net.up(a, "greeter")
    net.run(0.6)
    assert net.routes(b, "greeter")


def test_a_withdrawal_that_leaves_no_instance_goes_at_once() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    net.down(a, "greeter")
    net.run(0.11)
    assert not net.routes(b, "greeter")
    assert not net.routes(c, "greeter")


def test_recycling_one_of_three_instances_is_no_event_at_all() -> None:
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


def test_what_comes_and_goes_within_the_coalescing_time_is_told_as_nothing() -> None:
    net, (a, b) = line(2)
    before = len(net.sent)
    net.up(a, "greeter")
    net.down(a, "greeter")
    net.run(3)
    assert net.adverts(before) == []
    assert not net.routes(b, "greeter")


def test_both_ways_round_a_ring_stand_and_the_other_takes_over_at_once() -> None:
    net, names = line(4)
    a, b, c, d = names
    net.link(d, a)
    net.up(a, "greeter")
    net.run(5)
    assert {route.gateway for route in net.routes(c, "greeter")} == {b, d}
    assert len(net.routes(b, "greeter")) >= 1
    net.cut(a, b)
    assert net.routes(c, "greeter"), "an alternate stands without waiting for anybody"
    net.run(3)
    net.check_quiet()
    assert net.follow(b, a, "greeter") == 3 * COST_US


def test_a_lost_way_does_not_bury_a_service_that_lives() -> None:
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
        net.check_quiet()
    assert net.routes(c, "greeter")


def test_a_link_that_comes_back_brings_the_same_routes_back() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    net.cut(a, b)
    net.run(3)
    assert not net.routes(c, "greeter")
    net.link(a, b)
    net.run(3)
    net.check_quiet()
    assert net.routes(c, "greeter")


def test_a_link_that_another_takes_over_from_costs_no_route_for_a_moment() -> None:
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
    net.check_quiet()


@pytest.mark.parametrize("side", [0, 1])
def test_a_side_that_had_lost_the_link_before_another_took_over_hears_everything_again(side: int) -> None:
    net, names = line(2)
    for name in names:
        net.up(name, f"of-{name[:4]}")
    net.run(5)
    net.move(*names, forgetful=names[side])
    net.run(2)
    for here, there in (names, names[::-1]):
        assert net.routes(here, f"of-{there[:4]}")
    net.check_quiet()


def test_a_restarted_origin_is_believed_and_its_earlier_life_forgotten() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "old")
    net.up(a, "kept")
    net.run(5)
    net.restart(a)
    net.up(a, "kept")
    net.run(5)
    net.check_quiet()
    assert not net.routes(c, "old")
    assert net.routes(c, "kept")
    assert b in net.connected(a)


def test_routes_of_a_neighbour_without_digests_die_with_their_lease() -> None:
    net, (a, b, _c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    silent = net.engines[a]
    net.engines[a] = Engine(router=a, network="n", site="s", incarnation=99, random=random.Random(1))
    net.run(100)
    assert not net.routes(b, "greeter")
    net.engines[a] = silent


def test_digests_keep_routes_alive_for_an_hour() -> None:
    net, (a, _, c) = line(3)
    net.up(a, "greeter")
    net.run(3_600)
    net.check_quiet()
    assert net.routes(c, "greeter")
    assert net.counted["routing_leases_expired"] == 0
    assert net.adverts(since=200) == [], "an hour of peace is told by digests alone"


def test_a_lost_advert_is_sent_again() -> None:
    net, (a, b) = line(2)
    net.drop.append(Advert)
    net.up(a, "greeter")
    net.run(5)
    assert net.drop == []
    assert net.routes(b, "greeter")
    net.check_quiet()


def test_a_link_s_cost_moves_its_routes_once_it_has_changed_for_good() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.run(5)
    for name, other in ((a, b), (b, a)):
        net._do(name, net.engines[name].handle(NeighbourCost(other, COST_US), net.now))

    def measure(cost_us: int) -> None:
        net._do(b, net.engines[b].handle(NeighbourCost(a, cost_us), net.now))
        net.run(2)

    measure(5 * COST_US)
    assert net.routes(c, "greeter")[0].metric == 2 * COST_US, "one measurement is no change"
    measure(5 * COST_US)
    assert net.routes(c, "greeter")[0].metric == 6 * COST_US


def test_a_draining_node_is_a_way_to_nothing_and_loses_none_of_its_own() -> None:
    net, (a, b, c) = line(3)
    net.up(a, "greeter")
    net.up(b, "other")
    net.run(5)
    net._do(b, net.engines[b].handle(WithdrawAll(), net.now))
    net.run(1)
    assert not net.routes(c, "other")
    assert not net.routes(c, "greeter"), "it leads through the node that stops"
    assert net.routes(b, "other"), "its own site still reaches it"
    assert net.routes(b, "greeter"), "calls that come late are still forwarded"


def test_a_full_mesh_of_eight_tells_one_service_in_a_bounded_number_of_messages() -> None:
    net = Net(8)
    for a, b in itertools.combinations(net.engines, 2):
        net.link(a, b)
    net.run(5)
    before = len(net.sent)
    net.up(node_id(0), "greeter")
    net.run(10)
    net.check_quiet()
    assert len(net.adverts(before)) <= 2 * 8 * 7


def test_the_same_seed_gives_the_same_messages() -> None:
    def story() -> list[tuple[str, str, RoutingMessage]]:
        net = Net(5, seed=3)
        for a, b in itertools.combinations(net.engines, 2):
            if net.random.random() < 0.7:
                net.link(a, b)
        net.up(node_id(1), "greeter")
        net.run(5)
        net.cut(node_id(0), node_id(1))
        net.run(50)
        return net.sent

    assert story() == story()


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_when_the_faults_stop_all_tables_are_right(seed: int) -> None:
    """Random links, services and restarts; afterwards everything that is there is known, and nothing else."""
    source = random.Random(seed)
    net = Net(source.randrange(2, 8), seed)
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
    net.check_quiet()


@pytest.mark.parametrize("kind", ["advert", "ack", "solicit", "digest", "request"])
@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_messages_that_are_lost_are_made_good(kind: str, seed: int) -> None:
    from micro_core.routing.events import Ack, Digest, SequenceRequest, Solicit

    lost = {"advert": Advert, "ack": Ack, "solicit": Solicit, "digest": Digest, "request": SequenceRequest}[kind]
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
    net.check_quiet()
