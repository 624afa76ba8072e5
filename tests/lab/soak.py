"""Soak test: random networks with faults and churn, one run per seed and kind.

Run by `make soak`, or `python tests/lab/soak.py --seeds 1000`. The invariants are checked after every step. When the
faults have ended, the network must converge within `BOUND_S`. `--kind seeds` runs networks with fixed links, `--kind found`
networks whose nodes find each other (`soak_found.py`); every fourth seed of a run of both kinds is of the second kind.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

BOUND_S = 3.0 + 30.0 + 120.0 + 10.0
"""Detection of dead links + lease of a registry record + maximum suppression of a service + convergence."""
STEPS = 40

_spec = importlib.util.spec_from_file_location("soak_found", Path(__file__).with_name("soak_found.py"))
assert _spec is not None
assert _spec.loader is not None
found = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(found)


async def soak(seed: int) -> tuple[str, float]:
    """Run one seed. Returns (hash of the event log, seconds until convergence).

    Raises AssertionError with the seed if an invariant is violated or the network does not converge.
    """
    lab = Lab(seed, options=LabOptions(keep_log=False))
    source = lab.random
    lab.links.default_conditions = Conditions(
        delay_s=source.choice([0.0005, 0.01, 0.08]),
        jitter_s=source.choice([0.0, 0.01]),
        loss=source.choice([0.0, 0.01, 0.05]),
    )
    count = source.randrange(2, 9)
    nodes = await lab.random_graph(count, source.choice([2, 3, 4]))
    cut: list[tuple[int, int]] = []
    for _ in range(STEPS):
        node, other = nodes[source.randrange(0, count)], nodes[source.randrange(0, count)]
        match source.randrange(0, 10):
            case 0 | 1 | 2 if node.is_alive:
                await node.serve(Service(f"svc.{source.randrange(0, 4)}"))
            case 3 | 4 if node.is_alive and node.services:
                await node.stop_service(node.services[source.randrange(0, len(node.services))])
            case 5 if node.is_alive and source.random() < 0.4:
                await (node.kill() if source.random() < 0.7 else node.stop())
            case 6 if not node.is_alive:
                await node.start()
            case 7 if node is not other:
                lab.partition(node, other)
                cut.append((nodes.index(node), nodes.index(other)))
            case 8 if cut:
                first, second = cut.pop(source.randrange(0, len(cut)))
                lab.heal(nodes[first], nodes[second])
            case 9 if node is not other:
                lab.reset(node, other)
        await lab.advance_time(source.choice([0.0, 0.05, 0.3, 2.0, 6.0]))
        lab.check()
    for first, second in cut:
        lab.heal(nodes[first], nodes[second])
    for node in nodes:
        if not node.is_alive:
            await node.start()
    seconds = await lab.converged(BOUND_S)
    lab.check()
    digest = lab.digest
    await lab.close()
    return digest, seconds


class Result(NamedTuple):
    """The outcome of one seed."""

    seed: int
    is_found: bool
    """Whether the nodes of the network found each other."""
    converged_s: float
    """Seconds until convergence after the last fault. 0 if the run failed."""
    cpu_s: float
    error: str = ""
    """Why the run failed. Empty if it did not."""


def run_seed(seed: int, *, kind: str) -> Result:
    """Run one seed."""
    logging.getLogger("micro").setLevel(logging.CRITICAL)
    logging.getLogger("micro_core").setLevel(logging.CRITICAL)
    is_found = kind == "found" or (kind == "both" and seed % 4 == 3)
    started_at, converged_s, reason = time.process_time(), 0.0, ""
    try:
        _, converged_s = loop.run(found.soak_found(seed) if is_found else soak(seed))
    except Exception as error:  # noqa: BLE001 - reported; the other seeds are still run
        reason = f"{type(error).__name__}: {error}"
    return Result(seed, is_found, converged_s, time.process_time() - started_at, reason)


def run_seeds(seeds: range, *, kind: str, processes: int) -> Iterator[Result]:
    """Run all seeds, `processes` of them at once."""
    run = functools.partial(run_seed, kind=kind)
    if processes == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        for done in as_completed([pool.submit(run, seed) for seed in seeds]):
            yield done.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1_000, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--kind", choices=["seeds", "found", "both"], default="both", help="kind of the networks")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="number of seeds that run at once")
    options = parser.parse_args()
    started_at, results = time.monotonic(), []
    seeds = range(options.first, options.first + options.seeds)
    for result in run_seeds(seeds, kind=options.kind, processes=options.processes):
        results.append(result)
        if result.error:
            sys.stdout.write(
                f"seed {result.seed}: {result.error}\n"
                f"  to repeat: {sys.argv[0]} --kind {options.kind} --first {result.seed} --seeds 1\n"
            )
            sys.stdout.flush()
    for is_found, name in ((False, "fixed links"), (True, "nodes that find each other")):
        group = [result for result in results if result.is_found is is_found]
        if group:
            sys.stdout.write(
                f"{name}: {len(group)} seeds, {sum(result.cpu_s for result in group) / len(group):.1f} s of CPU per seed, "
                f"slowest convergence {max(result.converged_s for result in group):.1f} s\n"
            )
    failed = sum(1 for result in results if result.error)
    sys.stdout.write(f"{len(results)} seeds in {time.monotonic() - started_at:.0f} s: {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
