"""How large a network the lab carries: a random graph of degree 4, two services a node, then churn.

CPU seconds and memory of this process, for the start until all agree and for the churn; with --profile, what took them.

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
    began = time.process_time()
    members = await lab.random_graph(nodes, 4)
    for member in members:
        for letter in "ab":
            await member.serve(Service(f"svc.{member.name}.{letter}"))
    settled_s = await lab.converged(300.0)
    routes = sum(len(member.routes()) for member in lab.alive())
    started = time.process_time() - began
    print(
        f"{nodes} nodes, {routes:,} routes in their tables: start until all agree {settled_s:.2f} s of virtual time, "
        f"{started:.1f} s of CPU, {lab.counted('routing_messages_sent'):,} messages, {memory_mib():.0f} MiB",
        flush=True,
    )
    began, before = time.process_time(), lab.counted("routing_messages_sent")
    await churn_for(lab, members, minutes * 60, every_s)
    spent = time.process_time() - began
    await lab.converged(300.0)
    print(
        f"{minutes:g} min of churn, something every {every_s:g} s: {spent:.1f} s of CPU, "
        f"{lab.counted('routing_messages_sent') - before:,} messages, {memory_mib():.0f} MiB"
    )


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of churn")
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between two things that happen")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    profile = cProfile.Profile()
    if chosen.profile:
        profile.enable()
    loop.run(measure(chosen.nodes, chosen.minutes, chosen.every))
    if chosen.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
