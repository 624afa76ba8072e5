"""Engines over links that lose, repeat and reorder messages, for long: nothing false stays, nothing true is forgotten."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract.table import NETWORK_LINK, Route, RouteKey
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Advert,
    Count,
    DeleteRoute,
    Digest,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutRoute,
    SendMessage,
)

LEASE_S = 90.0
COST_US = 1_000


def node_id(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number] * 32


class Faults:
    """What links do to messages; probabilities, and seconds of delay."""

    def __init__(self, *, lost: float = 0.0, twice: float = 0.0, ordered: bool = True, slowest_s: float = 0.05) -> None:
        self.lost, self.twice, self.ordered, self.slowest_s = lost, twice, ordered, slowest_s


class Network:
    """Engines, their tables, their links, and the time; after every step the tables are checked."""

    def __init__(self, size: int, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.tables: dict[str, dict[RouteKey, Route]] = {}
        self.offered: dict[str, set[tuple[str, str]]] = {}
        self.links: dict[frozenset[str], int] = {}
        self.slow: dict[tuple[str, str], float] = {}
        self.counted: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._queue: list[tuple[float, int, str, str, bytes, int]] = []
        self._order = itertools.count(1)
        self._last: dict[tuple[str, str], float] = defaultdict(float)
        for number in range(size):
            self.boot(node_id(number))

    def boot(self, name: str) -> None:
        self.engines[name] = Engine(
            router=name,
            network="n",
            site="s",
            incarnation=next(self._order),
            random=random.Random(self.random.random()),
        )
        self.tables[name], self.offered[name] = {}, set()

    # ---------------------------------------------------------------- what happens

    def link(self, a: str, b: str, cost_us: int = COST_US) -> None:
        self.links[frozenset((a, b))] = next(self._order)
        self._do(a, self.engines[a].handle(NeighbourUp(b, cost_us), self.now))
        self._do(b, self.engines[b].handle(NeighbourUp(a, cost_us), self.now))

    def cut(self, a: str, b: str) -> None:
        del self.links[frozenset((a, b))]
        self._do(a, self.engines[a].handle(NeighbourDown(b), self.now))
        self._do(b, self.engines[b].handle(NeighbourDown(a), self.now))

    def cost(self, a: str, b: str, cost_us: int) -> None:
        self._do(a, self.engines[a].handle(NeighbourCost(b, cost_us), self.now))

    def up(self, name: str, service: str = "greeter", instance: str = "i") -> None:
        self.offered[name].add((service, instance))
        local = LocalInstance(address=f"tcp://{name[:4]}/{instance}")
        self._do(name, self.engines[name].handle(InstanceUp(service, instance, local), self.now))

    def down(self, name: str, service: str = "greeter", instance: str = "i") -> None:
        self.offered[name].discard((service, instance))
        self._do(name, self.engines[name].handle(InstanceDown(service, instance), self.now))

    def restart(self, name: str) -> None:
        others = [next(iter(pair - {name})) for pair in self.links if name in pair]
        for other in others:
            del self.links[frozenset((name, other))]
            self._do(other, self.engines[other].handle(NeighbourDown(name), self.now))
        self.boot(name)
        for other in others:
            self.link(name, other)

    def churn(self, source: random.Random) -> None:
        a, b = source.sample([*self.engines], 2)
        is_linked = frozenset((a, b)) in self.links
        match source.randrange(8):
            case 0 if is_linked:
                self.cut(a, b)
            case 1 | 2 if not is_linked:
                self.link(a, b, source.choice([100, 1_000, 20_000]))
            case 3 | 4:
                self.up(a, source.choice(["one", "two"]), source.choice("xyz"))
            case 5:
                self.down(a, source.choice(["one", "two"]), source.choice("xyz"))
            case 6 if is_linked:
                self.cost(a, b, source.choice([100, 1_000, 20_000]))
            case 7 if source.random() < 0.2:
                self.restart(a)

    # ------------------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            wake_at, waking = min(
                (engine.wake_at if engine.wake_at is not None else float("inf"), name)
                for name, engine in self.engines.items()
            )
            arrival = self._queue[0][0] if self._queue else float("inf")
            if min(wake_at, arrival) > end:
                self.now = end
                return
            self.now = max(self.now, min(wake_at, arrival))
            if arrival > wake_at:
                self._do(waking, self.engines[waking].wake(self.now))
                continue
            _, _, sender, to, payload, generation = heapq.heappop(self._queue)
            if self.links.get(frozenset((sender, to))) == generation:
                self._do(to, self.engines[to].handle(MessageReceived(sender, messages.decode(payload)), self.now))

    def _do(self, name: str, effects: list[Effect]) -> None:
        table = self.tables[name]
        for effect in effects:
            match effect:
                case PutRoute(route):
                    table[route.key] = route
                case DeleteRoute(key):
                    del table[key]
                case Count(what, amount):
                    self.counted[what] += amount
                case SendMessage(peer, message):
                    self.sent[type(message).__name__] += 1
                    self._send(name, peer, messages.encode(message))
        for route in table.values():
            if route.link == NETWORK_LINK:
                assert frozenset((name, route.gateway)) in self.links, "a route through a neighbour that is down"
                assert route.router != name, "a way to ourselves through another"

    def _send(self, sender: str, to: str, payload: bytes) -> None:
        generation = self.links.get(frozenset((sender, to)))
        if generation is None:
            return
        copies = 0 if self.random.random() < self.faults.lost else 1 + (self.random.random() < self.faults.twice)
        for _ in range(copies):
            when = self.now + self.slow.get((sender, to), self.random.uniform(0.001, self.faults.slowest_s))
            if self.faults.ordered:
                when = self._last[sender, to] = max(when, self._last[sender, to])
            heapq.heappush(self._queue, (when, next(self._order), sender, to, payload, generation))

    # ------------------------------------------------------------------ what must hold

    def ways(self, name: str, origin: str, service: str) -> list[Route]:
        found = [r for r in self.tables[name].values() if r.router == origin and r.service == service]
        return sorted(found, key=lambda route: route.metric)

    def connected(self, name: str) -> set[str]:
        seen, edge = {name}, [name]
        while edge:
            here = edge.pop()
            for pair in self.links:
                if here in pair:
                    new = pair - seen
                    seen |= new
                    edge += new
        return seen

    def check_quiet(self) -> None:
        for name in self.engines:
            wanted = {(origin, service) for origin in self.connected(name) for service, _ in self.offered[origin]}
            known = {(route.router, route.service) for route in self.tables[name].values()}
            assert known == wanted, f"{name[:2]} misses {wanted - known}, believes {known - wanted}"
            for origin, service in wanted:
                here, passed = name, [name]
                while here != origin:
                    here = self.ways(here, origin, service)[0].gateway
                    assert here not in passed, f"a loop: {[one[:2] for one in passed]}"
                    passed.append(here)


def ring(size: int, seed: int, faults: Faults) -> Network:
    net = Network(size, seed, faults)
    names = [*net.engines]
    for a, b in itertools.pairwise([*names, names[0]]):
        net.link(a, b)
    return net


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_links_do_to_messages_tables_are_right_in_the_end(seed: int) -> None:
    source = random.Random(seed)
    faults = Faults(
        lost=source.choice([0.0, 0.1, 0.3]),
        twice=source.choice([0.0, 0.2]),
        ordered=source.random() < 0.5,
        slowest_s=source.choice([0.05, 1.5]),
    )
    net = Network(source.randrange(2, 9), seed, faults)
    for a, b in itertools.combinations([*net.engines], 2):
        if source.random() < 0.4:
            net.link(a, b, source.choice([100, 1_000, 20_000]))
    for _ in range(source.randrange(5, 40)):
        net.churn(source)
        net.run(source.choice([0.0, 0.01, 0.3, 2.0, 10.0]))
    net.faults = Faults()
    net.run(LEASE_S)
    net.check_quiet()


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_routes_outlive_any_number_of_leases(seed: int) -> None:
    source = random.Random(seed)
    net = ring(5, seed, Faults())
    a, b, c, d, e = net.engines
    for pair in itertools.permutations((a, b, c, d, e), 2):
        net.slow[pair] = source.choice([0.001, 0.2])
    net.up(a)
    net.run(5)
    before = {name: set(net.tables[name]) for name in net.engines}
    net.run(20 * LEASE_S)
    assert {name: set(net.tables[name]) for name in net.engines} == before
    assert net.counted["routing_leases_expired"] == 0


def test_digests_are_told_once_each_way_over_a_link() -> None:
    net = Network(6, 1, Faults())
    for pair in itertools.combinations(net.engines, 2):
        net.link(*pair)
    for name in net.engines:
        net.up(name)
    net.run(10)
    before = net.sent["Digest"]
    net.run(300)
    rounds = 300 / (LEASE_S / 3 * 0.9) + 1
    assert net.sent["Digest"] - before <= rounds * 2 * 15


def test_routes_that_died_of_lost_digests_come_back() -> None:
    net = Network(3, 1, Faults())
    a, b, c = net.engines
    net.link(a, b)
    net.link(b, c)
    net.up(a)
    net.run(5)
    net.faults = Faults(lost=1.0)
    net.run(2 * LEASE_S)
    assert net.tables[c] == {}
    net.faults = Faults()
    net.run(LEASE_S)
    net.check_quiet()


def test_an_advert_that_is_told_again_late_does_not_undo_what_came_after_it() -> None:
    """The round trip is longer than the pause before repeating: the full table comes again after its successor."""
    net = Network(2, 1, Faults())
    a, b = net.engines
    net.slow[a, b] = net.slow[b, a] = 0.8
    net.up(a, "old")
    net.link(a, b)
    net.run(0.6)
    net.down(a, "old")
    net.up(a, "new")
    net.run(60)
    net.check_quiet()


@pytest.mark.parametrize("round_trip_s", [0.5, 3.0, 20.0])
def test_slow_links_converge_and_do_not_repeat_without_end(round_trip_s: float) -> None:
    net = ring(4, 1, Faults())
    for pair in itertools.permutations(net.engines, 2):
        net.slow[pair] = round_trip_s / 2
    for name in net.engines:
        net.up(name)
    net.run(120)
    net.check_quiet()
    before = net.sent["Advert"]
    net.run(300)
    assert net.sent["Advert"] == before, "what was acknowledged is not told again"


def test_a_storm_of_flapping_is_told_in_a_bounded_number_of_messages() -> None:
    """20 flaps a second of one of several instances and of whole services, on a mesh of six, for a minute."""
    net = Network(6, 1, Faults())
    for pair in itertools.combinations(net.engines, 2):
        net.link(*pair)
    names = [*net.engines]
    net.up(names[0], "steady", "x")
    net.up(names[0], "steady", "y")
    net.run(5)
    before = net.sent["Advert"]
    for _ in range(1_200):
        net.down(names[0], "steady", "x")
        net.run(0.025)
        net.up(names[0], "steady", "x")
        net.run(0.025)
    adverts = net.sent["Advert"] - before
    net.run(10)
    net.check_quiet()
    coalescing_windows = 60 / 0.25
    assert adverts <= coalescing_windows * 15 * 2 * 2


def test_a_network_without_events_is_silent_but_for_digests() -> None:
    net = ring(6, 1, Faults())
    for name in net.engines:
        net.up(name)
    net.run(30)
    before = Counter(net.sent)
    net.run(600)
    new = net.sent - before
    assert set(new) == {Digest.__name__}
    assert Advert.__name__ in before
