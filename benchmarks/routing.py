"""The routing plane in figures: `make bench-routing`. Virtual time for the network, real time for the tables.

1. Storm: 50 nodes, one service recycled 1,000 times: routing messages with damping, without it, and by a model of the
   original's flood. The model: go-micro 2019 adverts every event to each neighbour (fan-out 3, its own constant), each of
   which passes it on to three of its own until it has been seen (TTL unused); each recycling is a delete and a create, and
   both flood; batched by its advertise interval of 300 ms, which recycling every 400 ms never merges.
2. Convergence after a service comes, goes, or a link dies: median and p99 over seeds, 50 nodes, 1 % loss.
3. Tables: 100,000 routes: the best of a service, beside a plain dict; an advert of 1,000 events.

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
from micro_core.lab import invariants, loop
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

RECYCLES = 1_000
FAN_OUT = 3
"""Neighbours that the original told of each event."""


def options(*, damping: bool) -> LabOptions:
    policy = DampingPolicy(dry_run=not damping)
    return LabOptions(keep_log=False, router=RouterOptions(engine=EngineOptions(damping=policy)))


async def storm(nodes: int, recycles: int, *, damping: bool) -> tuple[int, int]:
    """(routing messages of the storm alone, things that are wrong at the end)"""
    lab = Lab(1, options=options(damping=damping))
    members = await lab.random_graph(nodes)
    await lab.converged(120)
    began_at, before = lab.now, lab.counted("routing_messages_sent")
    for _ in range(recycles):
        service = await members[0].serve(Service("svc.storm"))
        await lab.pass_time(0.3)
        await members[0].stop_service(service)
        await lab.pass_time(0.1)
    await lab.pass_time(5)
    spent_s = lab.now - began_at
    sent = lab.counted("routing_messages_sent") - before
    wrong = len(invariants.differences(lab)) + len(invariants.violations(lab))
    # What a quiet network says in the same time is not the storm's.
    quiet = lab.counted("routing_messages_sent")
    await lab.pass_time(spent_s)
    sent -= lab.counted("routing_messages_sent") - quiet
    await lab.close()
    return max(sent, 0), wrong


def flood_of_the_original(nodes: int, recycles: int, source: random.Random) -> int:
    """Messages of its flood: each node that hears an event for the first time tells three others."""
    total = 0
    for _ in range(2 * recycles):
        heard, border = {0}, [0]
        while border:
            border.pop()
            for _ in range(FAN_OUT):
                total += 1
                other = source.randrange(0, nodes)
                if other not in heard:
                    heard.add(other)
                    border.append(other)
    return total


async def convergence(seed: int, nodes: int) -> dict[str, float]:
    """Seconds until all agree, after each of three events."""
    lab = Lab(seed, conditions=Conditions(delay_s=0.010, jitter_s=0.005, loss=0.01), options=options(damping=True))
    members = await lab.random_graph(nodes)
    await lab.pass_time(3)
    node = members[lab.random.randrange(0, nodes)]
    service = await node.serve(Service("svc.one"))
    found = {"a service comes": await settled(lab, lambda: everybody_has("svc.one", members))}
    await lab.pass_time(2)
    await node.stop_service(service)
    found["it goes"] = await settled(lab, lambda: nobody_has("svc.one", members))
    await lab.pass_time(2)
    await node.serve(Service("svc.two"))
    await lab.pass_time(2)
    link = node.node.network.links()[0]
    lab.reset(node, lab.nodes[link.peer_name])
    found["a link dies"] = await settled(lab, lambda: not invariants.differences(lab))
    await lab.close()
    return found


def everybody_has(service: str, members: Sequence[LabNode]) -> bool:
    return all(member.node.table.lookup(service) for member in members)


def nobody_has(service: str, members: Sequence[LabNode]) -> bool:
    return not any(member.node.table.lookup(service) for member in members)


async def settled(lab: Lab, is_so: Callable[[], bool]) -> float:
    began_at = lab.now
    while not is_so():
        if lab.now - began_at > 60:
            return 60.0
        await lab.pass_time(0.01)
    return lab.now - began_at


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
        f"\n100,000 routes: the best of a service {ours * 1e6:.2f} µs, out of a plain dict {theirs * 1e6:.2f} µs (target 2 µs)"
    )
    spent = []
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
        began = time.perf_counter()
        for effect in engine.handle(MessageReceived("l" * 32, advert), 1.0):
            if isinstance(effect, PutRoute):
                table.put(effect.route)
            elif isinstance(effect, DeleteRoute):
                table.delete(effect.key)
        spent.append(time.perf_counter() - began)
    print(f"an advert of 1,000 events, applied to that table: {statistics.median(spent) * 1e3:.1f} ms (target 20 ms)")


def timed(work: Callable[[], object]) -> float:
    best = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        best.append(time.perf_counter() - began)
    return statistics.median(best)


def on_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(work)


def print_storm(recycles: int) -> None:
    flood = flood_of_the_original(50, recycles, random.Random(1))
    damped, wrong = on_virtual_time(storm(50, recycles, damping=True))
    undamped, wrong_undamped = on_virtual_time(storm(50, recycles, damping=False))
    print(f"one service recycled {recycles} times among 50 nodes, routing messages:")
    print(f"  the original's flood (model)  {flood:>8}")
    print(
        f"  without damping               {undamped:>8}   {undamped / flood:.1%}   wrong at the end: {wrong_undamped}"
    )
    print(
        f"  with damping                  {damped:>8}   {damped / flood:.1%}   wrong at the end: {wrong}   (target 5 %, 0)"
    )


def print_convergence(seeds: int) -> None:
    """Each seed is a run of its own, so there are as many at once as there are cores."""
    figures: dict[str, list[float]] = {}
    with concurrent.futures.ProcessPoolExecutor(initializer=be_quiet) as pool:
        for found in pool.map(convergence_of, range(seeds)):
            for what, seconds in found.items():
                figures.setdefault(what, []).append(seconds)
    print(f"\nseconds until all of 50 nodes agree, 1 % loss, {seeds} seeds:")
    for what, values in figures.items():
        values.sort()
        p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
        print(
            f"  {what:<16} median {statistics.median(values):.2f}   p99 {p99:.2f}   most {values[-1]:.2f}", flush=True
        )


def convergence_of(seed: int) -> dict[str, float]:
    found: dict[str, float] = on_virtual_time(convergence(seed, 50))
    return found


def be_quiet() -> None:
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", choices=("storm", "convergence", "tables"), help="one of the three")
    chosen = parser.parse_args()
    be_quiet()
    recycles, seeds = (RECYCLES // 10, max(2, chosen.seeds // 10)) if chosen.quick else (RECYCLES, chosen.seeds)
    parts = {"storm": lambda: print_storm(recycles), "convergence": lambda: print_convergence(seeds), "tables": tables}
    for name, part in parts.items():
        if chosen.only in (None, name):
            part()


if __name__ == "__main__":
    main()
