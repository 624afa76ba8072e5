"""Benchmark of the routing plane with many nodes: engines and codec on virtual time, in one process. Part of `make bench-routing`.

The nodes form a random graph with four links per node on average, each with a delay and a cost. Every node offers two services.
All links open in the first second. After convergence, there is one event every two seconds: a service starts or stops, or, one
time in twenty, a node is killed and restarted. Messages are encoded, delivered in order after the delay of the link, and decoded.

At the end, the tables of some nodes are compared with what they must contain.

    python benchmarks/routing_scale.py [--nodes 50,200,1000] [--minutes 10] [--services 2] [--seed 1] [--profile FILE]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import heapq
import itertools
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator

from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Count,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourDown,
    NeighbourUp,
    SendMessage,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
DEGREE = 4
EVENT_S = 2.0
KILLED = 0.05
"""Share of the events that kill a node."""
DETECTION_S = 3.0
"""Time until the neighbours of a killed node notice it."""


def node_id(number: int) -> str:
    return "".join(LETTERS[number >> shift & 31] for shift in (10, 5, 0)) + "x" * 29


class Network:
    """Engines and ordered links with delays, on virtual time."""

    def __init__(self, nodes: int, services: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.services = services
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.offered: dict[str, set[str]] = {}
        self.down: set[str] = set()
        self.links: dict[str, dict[str, tuple[float, int]]] = {}
        """Delay in seconds and generation, by node and neighbour."""
        self.sent: Counter[str] = Counter()
        self.bytes = 0
        self.counted: Counter[str] = Counter()
        self._order = itertools.count(1)
        self._queue: list[tuple[float, int, str, str, bytes, int]] = []
        """Deliveries (to, sender, payload, generation), and timers, whose payload is empty."""
        self._timers: dict[str, float] = {}
        self._last: dict[tuple[str, str], float] = {}
        for number in range(nodes):
            name = node_id(number)
            self.links[name] = {}
            self.boot(name)

    def boot(self, name: str) -> None:
        self.engines[name] = Engine(
            router=name,
            network="go.micro",
            site=f"site-{name[:3]}",
            incarnation=1_764_435_600_000 + next(self._order),
            random=random.Random(self.random.random()),
        )
        self.offered[name] = set()
        self._timers[name] = float("inf")
        for number in range(self.services):
            self.start_service(name, f"go.micro.srv.{name[:3]}{number}")

    def connect(self, degree: int = DEGREE) -> None:
        """Open the links of a random connected graph during the first second."""
        names = [*self.engines]
        pairs = {frozenset((names[i], self.random.choice(names[:i]))) for i in range(1, len(names))}
        while len(pairs) < len(names) * degree / 2:
            pairs.add(frozenset(self.random.sample(names, 2)))
        for at, pair in sorted((self.random.random(), sorted(pair)) for pair in pairs):
            self.run_until(at)
            self.link(pair[0], pair[1], self.random.choice([0.005, 0.02, 0.05, 0.1]))

    # ---------------------------------------------------------------- events

    def start_service(self, name: str, service: str) -> None:
        self.offered[name].add(service)
        local = LocalInstance(address=f"tcp://{name[:3]}", version="1")
        self.do(name, self.engines[name].handle(InstanceUp(service, service, local), self.now))

    def stop_service(self, name: str, service: str) -> None:
        self.offered[name].discard(service)
        self.do(name, self.engines[name].handle(InstanceDown(service, service), self.now))

    def link(self, a: str, b: str, delay_s: float) -> None:
        generation = next(self._order)
        for one, other in ((a, b), (b, a)):
            self.links[one][other] = (delay_s, generation)
        for one, other in ((a, b), (b, a)):
            self.do(one, self.engines[one].handle(NeighbourUp(other, round(2e6 * delay_s)), self.now))

    def churn(self) -> None:
        """Start or stop a service of a random node, or kill a node, which restarts ten seconds later."""
        name = self.random.choice([one for one in self.engines if one not in self.down])
        if self.random.random() < KILLED:
            self.kill(name)
        elif len(self.offered[name]) < 2 * self.services and self.random.random() < 0.5:
            self.start_service(name, f"go.micro.srv.{name[:3]}{next(self._order)}")
        elif self.offered[name]:
            self.stop_service(name, min(self.offered[name]))

    def kill(self, name: str) -> None:
        neighbours = {other: link[0] for other, link in self.links[name].items()}
        self.down.add(name)
        del self.engines[name]
        self._timers[name] = float("inf")
        self.links[name] = {}
        self.at(self.now + DETECTION_S, "detect", name, neighbours)
        self.at(self.now + 10.0, "restart", name, neighbours)

    def at(self, when: float, what: str, name: str, neighbours: dict[str, float]) -> None:
        self._planned.append((when, next(self._order), what, name, neighbours))
        self._planned.sort()

    _planned: list[tuple[float, int, str, str, dict[str, float]]] = []  # noqa: RUF012 - one network per process

    def planned(self) -> None:
        while self._planned and self._planned[0][0] <= self.now:
            _, _, what, name, neighbours = self._planned.pop(0)
            if what == "detect":
                for other in neighbours:
                    if other in self.engines and self.links[other].pop(name, None) is not None:
                        self.do(other, self.engines[other].handle(NeighbourDown(name), self.now))
            else:
                self.down.discard(name)
                self.boot(name)
                for other, delay_s in neighbours.items():
                    if other in self.engines:
                        self.link(name, other, delay_s)

    # ------------------------------------------------------------------------ time

    def run_until(self, end: float) -> None:
        queue, links, engines, timers = self._queue, self.links, self.engines, self._timers
        while queue and queue[0][0] <= end:
            at, _, to, sender, payload, generation = heapq.heappop(queue)
            engine = engines.get(to)
            if not payload:
                if engine is not None and timers[to] == at:
                    self.now = at
                    self.do(to, engine.wake(at))
                continue
            link = links[to].get(sender)
            if engine is not None and link is not None and link[1] == generation:
                self.now = at
                self.do(to, engine.handle(MessageReceived(sender, messages.decode(payload)), at))
        self.now = end

    def do(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is SendMessage:
                self.send(name, effect)
            elif type(effect) is Count:
                self.counted[effect.name] += effect.amount
        wake_at = self.engines[name].wake_at
        if wake_at is not None and wake_at != self._timers[name]:
            self._timers[name] = wake_at = max(wake_at, self.now)
            heapq.heappush(self._queue, (wake_at, next(self._order), name, "", b"", 0))

    def send(self, name: str, effect: SendMessage) -> None:
        peer = effect.peer
        link = self.links[name].get(peer)
        if link is None:
            return
        payload = messages.encode(effect.message)
        self.sent[type(effect.message).__name__] += 1
        self.bytes += len(payload)
        key = (name, peer)
        when = max(self.now + link[0] * self.random.uniform(1.0, 1.2), self._last.get(key, 0.0))
        self._last[key] = when
        heapq.heappush(self._queue, (when, next(self._order), peer, name, payload, link[1]))

    # ------------------------------------------------------------------ checks

    def differences(self, sample: int = 20) -> Iterator[str]:
        """Yield what is wrong in the routing information of some nodes."""
        expected = {(origin, service) for origin, services in self.offered.items() for service in services}
        for name in self.random.sample([*self.engines], min(sample, len(self.engines))):
            rib = self.engines[name]._rib
            known = {
                (origin, service)
                for origin, entry in rib.entries.items()
                if entry.offers is not None and (entry.selected or origin == name)
                for service in entry.offers.entries
            }
            missing, wrong = expected - known, known - expected
            if missing or wrong:
                yield f"{name[:3]}: {len(missing)} missing, {len(wrong)} wrong"


def measure(nodes: int, minutes: float, services: int, seed: int) -> None:
    gc.disable()
    Network._planned = []
    started_at = time.process_time()
    net = Network(nodes, services, seed)
    net.connect()
    net.run_until(30.0)
    gc.freeze()
    start_s, start_sent = time.process_time() - started_at, sum(net.sent.values())
    wrong = list(net.differences())
    print(f"\n{nodes} nodes x {services} services")
    print(f"  start, 30 s     {start_s:8.1f} s CPU, {start_sent:,} messages, {net.bytes / 2**20:,.0f} MiB sent", end="")
    print(f", {len(wrong)} of 20 tables wrong", flush=True)
    before, bytes_before = Counter(net.sent), net.bytes
    churn_at = time.process_time()
    events = round(minutes * 60 / EVENT_S)
    for number in range(events):
        net.churn()
        net.run_until(30.0 + (number + 1) * EVENT_S - 0.001)
        net.planned()
        net.run_until(30.0 + (number + 1) * EVENT_S)
    churn_s = time.process_time() - churn_at
    net.sent.subtract(before)
    sent = sum(net.sent.values())
    for _ in range(20):
        net.run_until(net.now + EVENT_S)
        net.planned()
    wrong = list(net.differences())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"  churn, {minutes:g} min   {churn_s:8.1f} s CPU, {sent:,} messages, {(net.bytes - bytes_before) / 2**20:,.0f} MiB",
        end="",
    )
    print(f", {len(wrong)} of 20 tables wrong {wrong[:2] or ''}")
    print(f"  per event       {sent / max(1, events):8.0f} messages, {churn_s / max(1, events) * 1e3:.0f} ms CPU")
    print(f"  per message     {churn_s / max(1, sent) * 1e6:8.0f} µs CPU; {dict(net.sent)}")
    print(f"  total           {start_s + churn_s:8.1f} s CPU, peak memory {memory:,.0f} MiB", flush=True)
    print(f"  {dict(net.counted.most_common(8))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="50,200,1000", help="numbers of nodes, separated by commas")
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of churn")
    parser.add_argument("--services", type=int, default=2, help="services per node")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", metavar="FILE", help="write a profile")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    for nodes in options.nodes.split(","):
        measure(int(nodes), options.minutes, options.services, options.seed)
    if profile is not None:
        profile.disable()
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
