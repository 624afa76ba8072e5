"""Engines over links that lose, duplicate and reorder messages: all tables are correct in the end."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract.table import Route
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Advert,
    Count,
    Digest,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    SendMessage,
)
from tests.routing.table_model import TableModel

LEASE_S = 90.0
COST_US = 1_000


def node_id(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number] * 32


class Faults:
    """Faults of all links: probabilities of loss and duplication, and the maximum delay in seconds."""

    def __init__(
        self, *, loss: float = 0.0, duplication: float = 0.0, is_ordered: bool = True, max_delay_s: float = 0.05
    ) -> None:
        self.loss, self.duplication, self.is_ordered, self.max_delay_s = loss, duplication, is_ordered, max_delay_s


class Network:
    """Engines with their tables and links, and a clock. The tables are checked after every step."""

    def __init__(self, size: int, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.tables: dict[str, TableModel] = {}
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
        self.tables[name], self.offered[name] = TableModel(), set()

    # ---------------------------------------------------------------- events

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
            if table.apply(effect):
                continue
            match effect:
                case Count(what, amount):
                    self.counted[what] += amount
                case SendMessage(peer, message):
                    self.sent[type(message).__name__] += 1
                    self._send(name, peer, messages.encode(message))
        for key in table.origins:
            assert frozenset((name, key.gateway)) in self.links, "route through a neighbour that is down"
            assert key.origin != name, "route to this router itself"

    def _send(self, sender: str, to: str, payload: bytes) -> None:
        generation = self.links.get(frozenset((sender, to)))
        if generation is None:
            return
        copies = 0 if self.random.random() < self.faults.loss else 1 + (self.random.random() < self.faults.duplication)
        for _ in range(copies):
            when = self.now + self.slow.get((sender, to), self.random.uniform(0.001, self.faults.max_delay_s))
            if self.faults.is_ordered:
                when = self._last[sender, to] = max(when, self._last[sender, to])
            heapq.heappush(self._queue, (when, next(self._order), sender, to, payload, generation))

    # ------------------------------------------------------------------ checks

    def routes_to(self, name: str, origin: str, service: str) -> list[Route]:
        return self.tables[name].routes_to(service, origin)

    def connected(self, name: str) -> set[str]:
        reached, frontier = {name}, [name]
        while frontier:
            node = frontier.pop()
            for pair in self.links:
                if node in pair:
                    new = pair - reached
                    reached |= new
                    frontier += new
        return reached

    def check_tables(self) -> None:
        for name in self.engines:
            wanted = {(origin, service) for origin in self.connected(name) for service, _ in self.offered[origin]}
            known = {(route.router, route.service) for route in self.tables[name].routes()}
            assert known == wanted, f"{name[:2]} misses {wanted - known}, has wrong routes {known - wanted}"
            for origin, service in wanted:
                node, passed = name, [name]
                while node != origin:
                    node = self.routes_to(node, origin, service)[0].gateway
                    assert node not in passed, f"loop: {[one[:2] for one in passed]}"
                    passed.append(node)


def ring(size: int, seed: int, faults: Faults) -> Network:
    net = Network(size, seed, faults)
    names = [*net.engines]
    for a, b in itertools.pairwise([*names, names[0]]):
        net.link(a, b)
    return net


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_tables_are_correct_after_all_faults(seed: int) -> None:
    source = random.Random(seed)
    faults = Faults(
        loss=source.choice([0.0, 0.1, 0.3]),
        duplication=source.choice([0.0, 0.2]),
        is_ordered=source.random() < 0.5,
        max_delay_s=source.choice([0.05, 1.5]),
    )
    net = Network(source.randrange(2, 9), seed, faults)
    for a, b in itertools.combinations([*net.engines], 2):
        if source.random() < 0.4:
            net.link(a, b, source.choice([100, 1_000, 20_000]))
    for _ in range(source.randrange(5, 40)):
        net.churn(source)
        net.run(source.choice([0.0, 0.01, 0.3, 2.0, 10.0]))
    net.faults = Faults()
    net.run(2 * LEASE_S)
    net.check_tables()


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_routes_are_kept_for_many_leases(seed: int) -> None:
    source = random.Random(seed)
    net = ring(5, seed, Faults())
    a, b, c, d, e = net.engines
    for pair in itertools.permutations((a, b, c, d, e), 2):
        net.slow[pair] = source.choice([0.001, 0.2])
    net.up(a)
    net.run(5)
    before = {name: set(net.tables[name].origins) for name in net.engines}
    net.run(20 * LEASE_S)
    assert {name: set(net.tables[name].origins) for name in net.engines} == before
    assert net.counted["routing_leases_expired"] == 0


def test_digests_are_sent_once_per_direction_of_a_link() -> None:
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


def test_routes_that_expired_after_lost_digests_are_restored() -> None:
    net = Network(3, 1, Faults())
    a, b, c = net.engines
    net.link(a, b)
    net.link(b, c)
    net.up(a)
    net.run(5)
    net.faults = Faults(loss=1.0)
    net.run(2 * LEASE_S)
    assert net.tables[c].origins == {}
    net.faults = Faults()
    net.run(LEASE_S)
    net.check_tables()


def test_late_copy_of_an_advert_does_not_undo_later_adverts() -> None:
    """The round trip is longer than the resend delay, so a copy of the full table arrives after the next advert."""
    net = Network(2, 1, Faults())
    a, b = net.engines
    net.slow[a, b] = net.slow[b, a] = 0.8
    net.up(a, "old")
    net.link(a, b)
    net.run(0.6)
    net.down(a, "old")
    net.up(a, "new")
    net.run(60)
    net.check_tables()


@pytest.mark.parametrize("round_trip_s", [0.5, 3.0, 20.0])
def test_slow_links_converge_and_stop_resending(round_trip_s: float) -> None:
    net = ring(4, 1, Faults())
    for pair in itertools.permutations(net.engines, 2):
        net.slow[pair] = round_trip_s / 2
    for name in net.engines:
        net.up(name)
    net.run(120)
    net.check_tables()
    before = net.sent["Advert"]
    net.run(300)
    assert net.sent["Advert"] == before, "acknowledged adverts are not resent"


def test_number_of_messages_is_bounded_while_an_instance_flaps() -> None:
    """One of two instances restarts 20 times per second for a minute, in a full mesh of six nodes."""
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
    net.check_tables()
    coalescing_windows = 60 / 0.25
    assert adverts <= coalescing_windows * 15 * 2 * 2


def test_only_digests_are_sent_in_an_idle_network() -> None:
    net = ring(6, 1, Faults())
    for name in net.engines:
        net.up(name)
    net.run(30)
    before = Counter(net.sent)
    net.run(600)
    new = net.sent - before
    assert set(new) == {Digest.__name__}
    assert Advert.__name__ in before
