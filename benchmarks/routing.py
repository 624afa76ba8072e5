"""Benchmark of the routing plane: `make bench-routing`. Virtual time for the network, real time for the tables.

1. Storm: one service is restarted 1,000 times among 50 nodes. Counts the routing messages with damping, without damping,
   and in a model of the flooding of go-micro 2019. In the model, each event is sent to three neighbours (a constant of
   go-micro), and each node that receives an event for the first time forwards it to three others. A restart consists of
   two events, a deletion and a creation, which its advertise interval of 300 ms does not combine.
2. Convergence after a service starts, a service stops, or a link breaks: median and p99 over seeds, 50 nodes, 1 % loss.
3. Tables: learning of 100,000 services of 1,000 origins, memory, look-up of the best route, and changes of the cost of an origin
   and of a link.

    python benchmarks/routing.py [--seeds 200] [--only storm|convergence|tables] [--quick]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import logging
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.table import Offer
from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.routing import messages
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.engine import Engine
from micro_core.routing.entries import Entry, OfferChanges, OfferEntry, OriginAnnounce
from micro_core.routing.events import (
    Advert,
    ChangeOffers,
    DeleteOriginRoute,
    Effect,
    MessageReceived,
    NeighbourCost,
    NeighbourUp,
    PutOriginRoute,
)
from micro_core.routing.options import EngineOptions
from micro_core.routing.router import RouterOptions
from micro_core.rpc.service import Service

RESTARTS = 1_000
FAN_OUT = 3
"""Number of neighbours to which go-micro sends each event."""


def options(*, damping: bool) -> LabOptions:
    policy = DampingPolicy(dry_run=not damping)
    return LabOptions(keep_log=False, router=RouterOptions(engine=EngineOptions(damping=policy)))


async def storm(nodes: int, restarts: int, *, damping: bool) -> tuple[int, int]:
    """Return (routing messages of the storm, number of differences and violations at the end)."""
    lab = Lab(1, options=options(damping=damping))
    lab_nodes = await lab.random_graph(nodes)
    await lab.converged(120)
    started_at, before = lab.now, lab.counted("routing_messages_sent")
    for _ in range(restarts):
        service = await lab_nodes[0].serve(Service("svc.storm"))
        await lab.advance_time(0.3)
        await lab_nodes[0].stop_service(service)
        await lab.advance_time(0.1)
    await lab.advance_time(5)
    elapsed_s = lab.now - started_at
    sent = lab.counted("routing_messages_sent") - before
    wrong = len(lab.checker.differences()) + len(lab.checker.violations())
    # Subtract the messages of an idle network in the same time.
    idle_before = lab.counted("routing_messages_sent")
    await lab.advance_time(elapsed_s)
    sent -= lab.counted("routing_messages_sent") - idle_before
    await lab.close()
    return max(sent, 0), wrong


def flood_of_go_micro(nodes: int, restarts: int, source: random.Random) -> int:
    """Return the number of messages if each node forwards an event to three others when it receives it the first time."""
    total = 0
    for _ in range(2 * restarts):
        reached, border = {0}, [0]
        while border:
            border.pop()
            for _ in range(FAN_OUT):
                total += 1
                other = source.randrange(0, nodes)
                if other not in reached:
                    reached.add(other)
                    border.append(other)
    return total


async def convergence(seed: int, nodes: int) -> dict[str, float]:
    """Return the seconds until convergence after each of three events."""
    lab = Lab(seed, conditions=Conditions(delay_s=0.010, jitter_s=0.005, loss=0.01), options=options(damping=True))
    lab_nodes = await lab.random_graph(nodes)
    await lab.advance_time(3)
    node = lab_nodes[lab.random.randrange(0, nodes)]
    service = await node.serve(Service("svc.one"))
    found = {"service starts": await seconds_until(lab, lambda: all_have("svc.one", lab_nodes))}
    await lab.advance_time(2)
    await node.stop_service(service)
    found["service stops"] = await seconds_until(lab, lambda: none_has("svc.one", lab_nodes))
    await lab.advance_time(2)
    await node.serve(Service("svc.two"))
    await lab.advance_time(2)
    link = node.node.network.links()[0]
    lab.reset(node, lab.nodes[link.peer_name])
    found["link breaks"] = await seconds_until(lab, lambda: not lab.checker.differences())
    await lab.close()
    return found


def all_have(service: str, lab_nodes: Sequence[LabNode]) -> bool:
    return all(node.node.table.lookup(service) for node in lab_nodes)


def none_has(service: str, lab_nodes: Sequence[LabNode]) -> bool:
    return not any(node.node.table.lookup(service) for node in lab_nodes)


async def seconds_until(lab: Lab, is_true: Callable[[], bool]) -> float:
    started_at = lab.now
    while not is_true():
        if lab.now - started_at > 60:
            return 60.0
        await lab.advance_time(0.01)
    return lab.now - started_at


def adverts(origins: int, services: int, peer: str, metric_us: int = 1_000) -> list[Advert]:
    """Return adverts of `peer` that contain `origins` origins with `services` services each."""
    entries: list[Entry] = []
    for number in range(origins):
        origin = node_id(number)
        route = OriginAnnounce(
            origin=origin,
            seqno=(1, 1),
            site="s",
            network="n",
            metric_us=metric_us,
            path=(origin, peer),
        )
        offers = [OfferEntry(Offer(f"svc.{number}.{one}", ("1",), 1), one + 1) for one in range(services)]
        entries += [route, OfferChanges(origin, 1, 0, services, tuple(offers))]
    chunks = [tuple(entries[start : start + 8]) for start in range(0, len(entries), 8)]
    return [
        Advert(number=index + 1, entries=chunk, begins=index == 0, ends=index == len(chunks) - 1)
        for index, chunk in enumerate(chunks)
    ]


def node_id(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(letters[number >> shift & 31] for shift in (10, 5, 0)) + "x" * 29


def apply(table: MemoryTable, effects: Sequence[Effect]) -> None:
    for effect in effects:
        match effect:
            case PutOriginRoute(route):
                table.put_origin_route(route)
            case DeleteOriginRoute(key):
                table.delete_origin_route(key)
            case ChangeOffers(origin, changed, removed, is_complete):
                table.change_offers(origin, changed, removed, is_complete=is_complete)


def tables(origins: int = 1_000, services: int = 100) -> None:
    left, right = "l" * 32, "r" * 32
    engine = Engine(router="m" * 32, network="n", site="s", incarnation=1, random=random.Random(1))
    table = MemoryTable(logger=logging.getLogger("bench"), counters=CountersInMemory())
    for peer in (left, right):
        apply(table, engine.handle(NeighbourUp(peer, 10_000), 0.0))
    count = origins * services
    payloads = {peer: [messages.encode(one) for one in adverts(origins, services, peer)] for peer in (left, right)}
    gc.collect()
    tracemalloc.start()
    durations = {}
    for peer, received in payloads.items():
        decoded = [messages.decode(payload) for payload in received]
        started_at = time.perf_counter()
        for message in decoded:
            apply(table, engine.handle(MessageReceived(peer, message), 1.0))
        durations[peer] = time.perf_counter() - started_at
    del decoded
    memory = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    print(
        f"\n{count:,} services of {origins:,} origins (times with the table; tracing of memory doubles those of learning)"
    )
    print(f"learn a service           {durations[left] / count * 1e6:8.2f} µs (target 10 µs)")
    print(f"receive it once more      {durations[right] / count * 1e6:8.2f} µs")
    print(f"memory                    {memory:8.0f} bytes per service and origin, two neighbours (target 400)")
    names = [
        f"svc.{number % origins}.{number % services}" for number in random.Random(1).choices(range(count), k=20_000)
    ]
    for name in names:
        table.lookup(name)
    print(
        f"look up the best route    {timed(lambda: [table.lookup(one)[0] for one in names]) / 2e4 * 1e6:8.2f} µs (target 2 µs)"
    )
    change = OriginAnnounce(
        origin=node_id(7), seqno=(1, 1), site="s", network="n", metric_us=9_000, path=(node_id(7), left)
    )
    payload = messages.encode(Advert(number=len(payloads[left]) + 1, entries=(change,)))
    # Send what was learned to the other neighbour first, so that it is not measured.
    apply(table, engine.wake(1.9))
    started_at = time.perf_counter()
    apply(table, engine.handle(MessageReceived(left, messages.decode(payload)), 2.0))
    print(f"change one origin         {(time.perf_counter() - started_at) * 1e6:8.0f} µs")
    durations_s = []
    for cost_us in (40_000, 10_000, 90_000, 10_000):
        started_at = time.perf_counter()
        effects = engine.handle(NeighbourCost(left, cost_us), 3.0)
        apply(table, effects)
        assert len(effects) >= origins, "the change of the cost was not large enough to take effect at once"
        durations_s.append(time.perf_counter() - started_at)
    print(
        f"change the cost of a link {statistics.median(durations_s) * 1e3:8.2f} ms"
        f" = {statistics.median(durations_s) / origins * 1e6:.2f} µs per origin (target 5 ms)"
    )


def timed(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(5):
        started_at = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started_at)
    return statistics.median(durations)


def on_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(work)


def print_storm(restarts: int) -> None:
    flood = flood_of_go_micro(50, restarts, random.Random(1))
    damped, wrong = on_virtual_time(storm(50, restarts, damping=True))
    undamped, wrong_undamped = on_virtual_time(storm(50, restarts, damping=False))
    print(f"one service restarted {restarts} times among 50 nodes, routing messages:")
    print(f"  flooding of go-micro (model)  {flood:>8}")
    print(
        f"  without damping               {undamped:>8}   {undamped / flood:.1%}   differences at the end: {wrong_undamped}"
    )
    print(
        f"  with damping                  {damped:>8}   {damped / flood:.1%}   differences at the end: {wrong}   (target 5 %, 0)"
    )


def print_convergence(seeds: int) -> None:
    """Run the seeds in parallel on all cores."""
    figures: dict[str, list[float]] = {}
    with concurrent.futures.ProcessPoolExecutor(initializer=disable_logs) as pool:
        for found in pool.map(convergence_of, range(seeds)):
            for event, seconds in found.items():
                figures.setdefault(event, []).append(seconds)
    print(f"\nseconds until convergence of 50 nodes, 1 % loss, {seeds} seeds:")
    for event, values in figures.items():
        values.sort()
        p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
        print(
            f"  {event:<16} median {statistics.median(values):.2f}   p99 {p99:.2f}   max {values[-1]:.2f}", flush=True
        )


def convergence_of(seed: int) -> dict[str, float]:
    found: dict[str, float] = on_virtual_time(convergence(seed, 50))
    return found


def disable_logs() -> None:
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="number of seeds for the convergence")
    parser.add_argument("--quick", action="store_true", help="run a tenth of the restarts and seeds")
    parser.add_argument("--only", choices=("storm", "convergence", "tables"), help="run one of the three parts")
    arguments = parser.parse_args()
    disable_logs()
    restarts, seeds = (
        (RESTARTS // 10, max(2, arguments.seeds // 10)) if arguments.quick else (RESTARTS, arguments.seeds)
    )
    parts: dict[str, Callable[[], None]] = {
        "storm": lambda: print_storm(restarts),
        "convergence": lambda: print_convergence(seeds),
        "tables": tables,
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
