"""Measure how large a network the lab can simulate: a random graph of degree 4 with two services per node, and churn.

Prints CPU seconds and memory of this process for the start until convergence and for the churn. With --profile, it also
prints the functions that took the time.

    python benchmarks/lab_size.py [--nodes 50] [--minutes 10] [--every 2.0] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
import resource
import time

from micro_core import Service
from micro_core.lab import loop
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.scenarios import churn_for


async def measure(nodes: int, minutes: float, every_s: float) -> None:
    lab = Lab(3, options=LabOptions(keep_log=False))
    started_at = time.process_time()
    lab_nodes = await lab.random_graph(nodes, 4)
    for node in lab_nodes:
        for letter in "ab":
            await node.serve(Service(f"svc.{node.name}.{letter}"))
    converged_s = await lab.converged(300.0)
    routes = sum(len(node.routes()) for node in lab.alive())
    start_cpu_s = time.process_time() - started_at
    print(
        f"{nodes} nodes, {routes:,} routes in all tables: converged after {converged_s:.2f} s of virtual time, "
        f"{start_cpu_s:.1f} s of CPU, {lab.counted('routing_messages_sent'):,} messages, {memory_mib():.0f} MiB",
        flush=True,
    )
    started_at, before = time.process_time(), lab.counted("routing_messages_sent")
    await churn_for(lab, lab_nodes, minutes * 60, every_s)
    churn_cpu_s = time.process_time() - started_at
    await lab.converged(300.0)
    print(
        f"{minutes:g} min of churn, one change every {every_s:g} s: {churn_cpu_s:.1f} s of CPU, "
        f"{lab.counted('routing_messages_sent') - before:,} messages, {memory_mib():.0f} MiB"
    )


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50, help="number of nodes")
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of churn")
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between two changes")
    parser.add_argument("--profile", action="store_true", help="print a profile")
    arguments = parser.parse_args()
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    profile = cProfile.Profile()
    if arguments.profile:
        profile.enable()
    loop.run(measure(arguments.nodes, arguments.minutes, arguments.every))
    if arguments.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
