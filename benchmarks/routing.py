"""Benchmark of the routing plane: `make bench-routing`. Virtual time for the network, real time for the tables.

1. Storm: one service is restarted 1,000 times among 50 nodes. Counts the routing messages with damping, without damping,
   and in a model of the flooding of go-micro 2019. In the model, each event is sent to three neighbours (a constant of
   go-micro), and each node that receives an event for the first time forwards it to three others. A restart consists of
   two events, a deletion and a creation, which its advertise interval of 300 ms does not combine.
2. Convergence after a service starts, a service stops, or a link breaks: median and p99 over seeds, 50 nodes, 1 % loss.
3. Tables: look-up of the best of 100,000 routes compared with a plain dict, and processing of an advert with 1,000
   entries.

    python benchmarks/routing.py [--seeds 200] [--only storm|convergence|tables] [--quick]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.table import NETWORK_LINK, Route
from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.engine import Engine
from micro_core.routing.events import Advert, Announce, DeleteRoute, MessageReceived, NeighbourUp, PutRoute
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


def routes(count: int, per_service: int = 4) -> list[Route]:
    return [
        Route(
            service=f"svc.{number // per_service}",
            address="",
            gateway=f"g{number % per_service}",
            network="n",
            router=f"r{number % 97}",
            link=NETWORK_LINK,
            metric=1_000 + number % 17,
        )
        for number in range(count)
    ]


def tables() -> None:
    table, plain = MemoryTable(logger=logging.getLogger("bench"), counters=CountersInMemory()), dict[str, list[Route]]()
    for route in routes(100_000):
        table.put(route)
        plain.setdefault(route.service, []).append(route)
    names = [f"svc.{number}" for number in random.Random(1).choices(range(25_000), k=20_000)]
    for name in names:
        table.lookup(name)
    ours = timed(lambda: [table.lookup(name)[0] for name in names]) / len(names)
    theirs = timed(lambda: [plain[name][0] for name in names]) / len(names)
    print(
        f"\n100,000 routes: look-up of the best route {ours * 1e6:.2f} µs, in a plain dict {theirs * 1e6:.2f} µs (target 2 µs)"
    )
    durations = []
    for _ in range(9):
        engine = Engine(router="m" * 32, network="n", site="s", incarnation=1, random=random.Random(1))
        engine.handle(NeighbourUp("l" * 32, 1_000), 0.0)
        entries = tuple(
            Announce(
                origin="f" * 32,
                incarnation=1,
                sequence=number + 1,
                service=f"svc.{number}",
                versions=("1",),
                capacity=0,
                site="s",
                network="n",
                metric_us=1_000,
                path=("f" * 32, "l" * 32),
            )
            for number in range(1_000)
        )
        advert = Advert(number=1, entries=entries, begins=True, ends=True)
        started_at = time.perf_counter()
        for effect in engine.handle(MessageReceived("l" * 32, advert), 1.0):
            if isinstance(effect, PutRoute):
                table.put(effect.route)
            elif isinstance(effect, DeleteRoute):
                table.delete(effect.key)
        durations.append(time.perf_counter() - started_at)
    print(f"processing of an advert with 1,000 entries: {statistics.median(durations) * 1e3:.1f} ms (target 20 ms)")


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
    parts = {"storm": lambda: print_storm(restarts), "convergence": lambda: print_convergence(seeds), "tables": tables}
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
