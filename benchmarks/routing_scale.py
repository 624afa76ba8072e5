"""Benchmark of the routing plane with many nodes: engines and codec on virtual time. Part of `make bench-routing`.

The nodes form a random graph with four links per node on average, each with a delay and a cost. Every node offers the same number of services.
All links open in the first second. After convergence, there is one event every two seconds: a service starts or stops, or, one
time in twenty, a node is killed and restarted. Messages are encoded, delivered in order after the delay of the link, and decoded.

The nodes are divided between two processes so that nodes with a link of the shortest delay are in the same one. The processes
exchange their messages once per shortest delay of a link between them, on virtual time, so no message arrives late. At the end,
the tables of some nodes are compared with what they must contain.

    python benchmarks/routing_scale.py [--networks 50x2,200x2,1000x2,200x50] [--minutes 10] [--seed 1] [--processes 2]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import heapq
import itertools
import marshal
import multiprocessing
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

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
    RoutingEvent,
    SendMessage,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
DEGREE = 4
EVENT_S = 2.0
KILLED = 0.05
"""Share of the events that kill a node."""
DELAYS_S = (0.005, 0.02, 0.05, 0.1)
"""One-way delays of the links. The cost of a link is its round trip."""
DETECTION_S = 3.0
"""Time until the neighbours of a killed node notice it."""


def node_id(number: int) -> str:
    return "".join(LETTERS[number >> shift & 31] for shift in (10, 5, 0)) + "x" * 29


NEVER = float("inf")


class Network:
    """Engines and ordered links with delays, on virtual time.

    With two processes, both follow the same plan, and each runs the engines of one half of the nodes. `other` is the connection to
    the other process, and `process` 0 or 1.
    """

    def __init__(self, nodes: int, services: int, seed: int, process: int = 0, other: Connection | None = None) -> None:
        self.random = random.Random(seed)
        """For the plan, equal in both processes."""
        self.own_random = random.Random(f"{seed} {process}")
        self.services = services
        self.process, self.other = process, other
        self.outgoing: list[tuple[float, str, str, bytes, int]] = []
        """Messages to nodes of the other process, and when they arrive."""
        self.planned_events: list[tuple[float, int, str, str, dict[str, float]]] = []
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.offered: dict[str, set[str]] = {}
        self.elsewhere: dict[str, bool] = {}
        """Whether the engine of a node runs in the other process."""
        self.down: set[str] = set()
        self.links: dict[str, dict[str, tuple[float, int]]] = {}
        """Delay in seconds and generation, by node and neighbour."""
        self.sent: Counter[str] = Counter()
        self.bytes = 0
        self.counted: Counter[str] = Counter()
        self._order = itertools.count(1)
        self._order_of_messages = itertools.count(1)
        self._queue: list[tuple[float, int, str, str, bytes, int]] = []
        """Deliveries (to, sender, payload, generation), and timers, whose payload is empty."""
        self._timers: dict[str, float] = {}
        self._last: dict[tuple[str, str], float] = {}
        names = [node_id(number) for number in range(nodes)]
        self._openings = self._plan(names, DEGREE)
        first_half = _half_of(names, self._openings)
        self._step_s = min(
            (delay_s for _, a, b, delay_s in self._openings if (a in first_half) is not (b in first_half)),
            default=DELAYS_S[0],
        )
        for name in names:
            self.links[name] = {}
            self.elsewhere[name] = other is not None and (name in first_half) is not (process == 0)
            self.boot(name)

    def boot(self, name: str) -> None:
        incarnation = 1_764_435_600_000 + next(self._order)
        self.offered[name] = set()
        for number in range(self.services):
            self.offered[name].add(f"go.micro.srv.{name[:3]}{number}")
        if self.elsewhere[name]:
            return
        self.engines[name] = Engine(
            router=name,
            network="go.micro",
            site=f"site-{name[:3]}",
            incarnation=incarnation,
            random=random.Random(self.own_random.random()),
        )
        self._timers[name] = NEVER
        for service in sorted(self.offered[name]):
            self.start_service(name, service)

    def _plan(self, names: list[str], degree: int) -> list[tuple[float, str, str, float]]:
        """Return the links of a random connected graph: when each opens during the first second, its nodes, and its delay."""
        pairs = {frozenset((names[i], self.random.choice(names[:i]))) for i in range(1, len(names))}
        while len(pairs) < len(names) * degree / 2:
            pairs.add(frozenset(self.random.sample(names, 2)))
        openings = sorted((self.random.random(), pair) for pair in sorted(sorted(pair) for pair in pairs))
        return [(at, pair[0], pair[1], self.random.choice(DELAYS_S)) for at, pair in openings]

    def connect(self) -> None:
        """Open the links."""
        for at, a, b, delay_s in self._openings:
            self.run_until(at)
            self.link(a, b, delay_s)

    # ---------------------------------------------------------------- events

    def start_service(self, name: str, service: str) -> None:
        self.offered[name].add(service)
        local = LocalInstance(address=f"tcp://{name[:3]}", version="1")
        self.handle(name, InstanceUp(service, service, local))

    def stop_service(self, name: str, service: str) -> None:
        self.offered[name].discard(service)
        self.handle(name, InstanceDown(service, service))

    def handle(self, name: str, event: RoutingEvent) -> None:
        """Pass an event of the plan to the engine of a node, unless that runs in the other process."""
        engine = self.engines.get(name)
        if engine is not None:
            self.do(name, engine.handle(event, self.now))

    def link(self, a: str, b: str, delay_s: float) -> None:
        generation = next(self._order)
        for one, other in ((a, b), (b, a)):
            self.links[one][other] = (delay_s, generation)
        for one, other in ((a, b), (b, a)):
            self.handle(one, NeighbourUp(other, round(2e6 * delay_s)))

    def churn(self) -> None:
        """Start or stop a service of a random node, or kill a node, which restarts ten seconds later."""
        name = self.random.choice([one for one in self.links if one not in self.down])
        if self.random.random() < KILLED:
            self.kill(name)
        elif len(self.offered[name]) < 2 * self.services and self.random.random() < 0.5:
            self.start_service(name, f"go.micro.srv.{name[:3]}{next(self._order)}")
        elif self.offered[name]:
            self.stop_service(name, min(self.offered[name]))

    def kill(self, name: str) -> None:
        neighbours = {other: link[0] for other, link in self.links[name].items()}
        self.down.add(name)
        self.engines.pop(name, None)
        self._timers[name] = NEVER
        self.links[name] = {}
        self.at(self.now + DETECTION_S, "detect", name, neighbours)
        self.at(self.now + 10.0, "restart", name, neighbours)

    def at(self, when: float, what: str, name: str, neighbours: dict[str, float]) -> None:
        self.planned_events.append((when, next(self._order), what, name, neighbours))
        self.planned_events.sort()

    def planned(self) -> None:
        while self.planned_events and self.planned_events[0][0] <= self.now:
            _, _, what, name, neighbours = self.planned_events.pop(0)
            if what == "detect":
                for other in neighbours:
                    if other not in self.down and self.links[other].pop(name, None) is not None:
                        self.handle(other, NeighbourDown(name))
            else:
                self.down.discard(name)
                self.boot(name)
                for other, delay_s in neighbours.items():
                    if other not in self.down:
                        self.link(name, other, delay_s)

    # ------------------------------------------------------------------------ time

    def run_until(self, end: float) -> None:
        queue = self._queue
        while True:
            start = self.exchange()
            if start > end:
                break
            self._run(min(end, start + self._step_s - 1e-9) if self.other is not None else end)
            if self.other is None and (not queue or queue[0][0] > end):
                break
        self.now = end

    def exchange(self) -> float:
        """Exchange messages with the other process. Returns when the next event of both is due."""
        due = self._queue[0][0] if self._queue else NEVER
        if self.other is None:
            return due
        due = min([due, *(message[0] for message in self.outgoing)])
        mine = marshal.dumps((due, self.outgoing))
        self.outgoing = []
        if self.process == 0:
            self.other.send_bytes(mine)
        their_due: float
        their_due, arriving = marshal.loads(self.other.recv_bytes())
        if self.process == 1:
            self.other.send_bytes(mine)
        for at, to, sender, payload, generation in arriving:
            heapq.heappush(self._queue, (at, next(self._order_of_messages), to, sender, payload, generation))
        return min(due, their_due)

    def _run(self, end: float) -> None:
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

    def do(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is SendMessage:
                self.send(name, effect)
            elif type(effect) is Count:
                self.counted[effect.name] += effect.amount
        wake_at = self.engines[name].wake_at
        if wake_at is not None and wake_at != self._timers[name]:
            self._timers[name] = wake_at = max(wake_at, self.now)
            heapq.heappush(self._queue, (wake_at, next(self._order_of_messages), name, "", b"", 0))

    def send(self, name: str, effect: SendMessage) -> None:
        peer = effect.peer
        link = self.links[name].get(peer)
        if link is None:
            return
        payload = messages.encode(effect.message)
        self.sent[type(effect.message).__name__] += 1
        self.bytes += len(payload)
        key = (name, peer)
        when = max(self.now + link[0] * self.own_random.uniform(1.0, 1.2), self._last.get(key, 0.0))
        self._last[key] = when
        if self.elsewhere[peer]:
            self.outgoing.append((when, peer, name, payload, link[1]))
        else:
            heapq.heappush(self._queue, (when, next(self._order_of_messages), peer, name, payload, link[1]))

    # ------------------------------------------------------------------ checks

    def differences(self, sample: int = 20) -> Iterator[str]:
        """Yield what is wrong in the routing information of some nodes."""
        expected = {(origin, service) for origin, services in self.offered.items() for service in services}
        for name in self.own_random.sample([*self.engines], min(sample, len(self.engines))):
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


def _half_of(names: list[str], openings: list[tuple[float, str, str, float]]) -> set[str]:
    """Return about half of the nodes, so that no link with the shortest delay leads to the others."""
    near: dict[str, set[str]] = {name: {name} for name in names}
    links = Counter[str]()
    for _, a, b, delay_s in openings:
        links.update((a, b))
        if delay_s == DELAYS_S[0] and near[a] is not near[b]:
            joined = near[a] | near[b]
            near.update(dict.fromkeys(joined, joined))
    clusters = {id(cluster): sorted(cluster) for cluster in near.values()}.values()
    half: set[str] = set()
    # The work of a node depends on the number of its links.
    rest = sum(links.values())
    work = 0
    for cluster in sorted(clusters, key=lambda one: (-sum(links[name] for name in one), one)):
        weight = sum(links[name] for name in cluster)
        if work + weight <= rest - weight:
            half |= set(cluster)
            work += weight
            rest -= weight
    return half


@dataclass
class Phase:
    """The work of one process, or of both, in one phase."""

    seconds: float
    cpu_s: float
    sent: Counter[str]
    size: int
    wrong: list[str]
    memory_mib: float
    counted: Counter[str] = field(default_factory=Counter)

    def add(self, other: Phase) -> None:
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_s += other.cpu_s
        self.sent += other.sent
        self.size += other.size
        self.wrong += other.wrong
        self.memory_mib += other.memory_mib
        self.counted += other.counted


def run(net: Network, minutes: float) -> Iterator[Phase]:
    """Run the network. Yields the start and the churn."""
    gc.disable()
    started, cpu = time.perf_counter(), time.process_time()

    def phase() -> Phase:
        nonlocal started, cpu
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        sent, net.sent = net.sent, Counter()
        size, net.bytes = net.bytes, 0
        found = Phase(seconds, cpu_s, sent, size, [*net.differences()], memory, net.counted)
        started, cpu = time.perf_counter(), time.process_time()
        return found

    net.connect()
    net.run_until(30.0)
    yield phase()
    for number in range(round(minutes * 60 / EVENT_S)):
        net.churn()
        net.run_until(30.0 + (number + 1) * EVENT_S - 0.001)
        net.planned()
        net.run_until(30.0 + (number + 1) * EVENT_S)
    result = phase()
    # Services of the last nodes that were killed come back, and the tables can be compared.
    for _ in range(20):
        net.run_until(net.now + EVENT_S)
        net.planned()
    result.wrong = [*net.differences()]
    yield result


def run_second(options: tuple[int, int, int], minutes: float, other: Connection) -> None:
    """Run the second process: its half of the nodes, and send the results."""
    for phase in run(Network(*options, 1, other), minutes):
        other.send(phase)


def measure(nodes: int, minutes: float, services: int, seed: int, processes: int) -> None:
    """Run a network, and print what it needed."""
    events = max(1, round(minutes * 60 / EVENT_S))
    other = second = None
    if processes == 2:
        other, theirs = multiprocessing.Pipe()
        second = multiprocessing.Process(
            target=run_second, args=((nodes, services, seed), minutes, theirs), daemon=True
        )
        second.start()
    print(f"\n{nodes} nodes x {services} services, {processes} processes", flush=True)
    total_s = total_cpu = 0.0
    for name, phase in zip(
        ("start, 30 s", f"churn, {minutes:g} min"), run(Network(nodes, services, seed, 0, other), minutes), strict=True
    ):
        if other is not None:
            phase.add(other.recv())
        total_s, total_cpu = total_s + phase.seconds, total_cpu + phase.cpu_s
        sent = sum(phase.sent.values())
        print(f"  {name:<15} {phase.seconds:8.1f} s, {phase.cpu_s:.1f} s CPU, {sent:,} messages", end="")
        print(f", {phase.size / 2**20:,.0f} MiB, {len(phase.wrong)} tables wrong {phase.wrong[:2] or ''}", flush=True)
    print(f"  per event       {sent / events:8.0f} messages, {phase.cpu_s / events * 1e3:.0f} ms CPU")
    print(f"  per message     {phase.cpu_s / max(1, sent) * 1e6:8.0f} µs CPU; {dict(phase.sent)}")
    print(f"  total           {total_s:8.1f} s, {total_cpu:.1f} s CPU, peak memory {phase.memory_mib:,.0f} MiB")
    print(f"  {dict(phase.counted.most_common(8))}", flush=True)
    if second is not None:
        second.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks",
        default="50x2,200x2,1000x2,200x50",
        metavar="NODESxSERVICES,...",
        help="nodes, and services per node",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of churn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--profile", metavar="FILE", help="write a profile of the first process")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    for network in options.networks.split(","):
        nodes, services = map(int, network.split("x"))
        arguments = (nodes, options.minutes, services, options.seed, options.processes)
        if profile is not None:
            measure(*arguments)
            continue
        # In a process of its own: the peak memory of a process never falls.
        process = multiprocessing.Process(target=measure, args=arguments)
        process.start()
        process.join()
    if profile is not None:
        profile.disable()
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
