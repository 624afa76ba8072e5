"""Soak: random networks, faults and churn, a seed a run: `make soak`, or `python tests/lab/soak.py --seeds 1000`.

After every step what must hold at every moment is checked; when the faults stop, everything must be as it should be within
`BOUND_S`: the time to notice dead links, the longest lease of a registry's record that nobody withdrew, the longest time an
announcement may be held, and what convergence takes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from micro_core.lab import loop
from micro_core.lab.net import Lab, LabOptions
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

BOUND_S = 3.0 + 30.0 + 120.0 + 10.0
STEPS = 40


async def soak(seed: int) -> tuple[str, float]:
    """Run one seed: (digest, seconds until all agreed). Raises AssertionError with the seed."""
    lab = Lab(seed, options=LabOptions(keep_log=False))
    source = lab.random
    lab.wires.usual = Conditions(
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
                one, another = cut.pop(source.randrange(0, len(cut)))
                lab.heal(nodes[one], nodes[another])
            case 9 if node is not other:
                lab.reset(node, other)
        await lab.pass_time(source.choice([0.0, 0.05, 0.3, 2.0, 6.0]))
        lab.check()
    for one, another in cut:
        lab.heal(nodes[one], nodes[another])
    for node in nodes:
        if not node.is_alive:
            await node.start()
    seconds = await lab.converged(BOUND_S)
    lab.check()
    digest = lab.digest
    await lab.close()
    return digest, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    chosen = parser.parse_args()
    logging.getLogger("micro").setLevel(logging.CRITICAL)
    logging.getLogger("micro_core").setLevel(logging.CRITICAL)
    began, worst, failed = time.monotonic(), 0.0, 0
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        try:
            _, seconds = loop.run(soak(seed))
            worst = max(worst, seconds)
        except Exception as error:  # noqa: BLE001 - the next seed is worth trying, and this one is told
            failed += 1
            sys.stdout.write(
                f"seed {seed}: {type(error).__name__}: {error}\n  again: {sys.argv[0]} --first {seed} --seeds 1\n"
            )
    spent = time.monotonic() - began
    sys.stdout.write(
        f"{chosen.seeds} seeds in {spent:.0f} s: {failed} failed; all agreed within {worst:.1f} s of {BOUND_S:.0f}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
