"""Print how calls are shared between sites after steps of the load, on virtual time.

Site `near` is overloaded, relieved, loses half of its instances, and gets them back. The curve is the share of its calls
that other sites answer, in percent, per second.

    python benchmarks/load_sharing.py [--markdown] [--rtt 0.040] [--nodes 2] [--sites 3] [--random] [--seed 1]

Without options, all combinations of docs/design/003-load.md run; this takes some minutes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from micro_core.lab import loop
from micro_core.lab.load_curve import LoadScenario, LoadSite, settling
from micro_core.lab.net import Lab

STEPS = (("60 %", 0.6, 12), ("130 %", 1.3, 25), ("60 % again", 0.6, 12), ("160 %", 1.6, 25))
AFTER_LOSS = (("80 %, half lost", 0.8, 25), ("80 %, half back", 0.8, 25))
OTHERS = 0.3
"""Load of the other sites by their own callers, as a share of their capacity."""

CASES = ((0.001, 1, 2), (0.040, 1, 2), (0.040, 8, 2), (0.150, 1, 2), (0.150, 2, 2), (0.040, 2, 3))
"""(round trip in seconds, nodes per site, sites)"""


@dataclass(frozen=True)
class Step:
    """The result of one step of the load."""

    name: str
    curve: list[float]
    final: float
    overshoot: float
    settled_after_s: float
    mean_s: float
    failed: int


async def run_case(rtt_s: float, nodes: int, sites: int, *, is_random: bool, seed: int) -> list[Step]:
    """Run all steps and return their results."""
    logging.getLogger("micro").setLevel(logging.ERROR)
    lab = Lab(seed)
    names = ("near", "far", "third")[:sites]

    def between_s(one: str, other: str) -> float:
        return 2 * rtt_s if {one, other} == {"near", "third"} else rtt_s

    scenario = await LoadScenario.create(
        lab, [LoadSite(name=name, nodes=nodes) for name in names], rtt_s=between_s, is_random=is_random
    )
    capacity = 2 * scenario.instance_per_s
    steps = []

    async def step(name: str, load: float, seconds: int) -> None:
        began_at = lab.now
        await scenario.run({"near": load * capacity, **dict.fromkeys(names[1:], OTHERS * capacity)}, seconds)
        curve = scenario.curve("near", began_at, began_at + seconds - 1)
        found = settling(curve, "near", within=0.1 if is_random else 0.03)
        steps.append(
            Step(
                name,
                [1 - point.share("near") for point in curve],
                1 - found.final,
                found.overshoot,
                found.settled_after_s,
                scenario.mean_s("near", began_at + seconds * 2 / 3, lab.now),
                scenario.failed(began_at),
            )
        )

    for one in STEPS:
        await step(*one)
    await lab.advance_time(5)
    await scenario.lose_instances("near", 1)
    await step(*AFTER_LOSS[0])
    await scenario.add_instance("near")
    await step(*AFTER_LOSS[1])
    await lab.advance_time(8)
    await lab.close()
    return steps


def rows(steps: list[Step], title: str, *, is_markdown: bool) -> Iterator[str]:
    """Yield one line per step."""
    for step in steps:
        curve = " ".join(f"{round(100 * share)}" for share in step.curve)
        figures = (
            f"{step.final:.0%}",
            f"{step.overshoot:.0%}",
            f"{step.settled_after_s:.0f} s",
            f"{1000 * step.mean_s:.0f} ms",
            str(step.failed),
        )
        if is_markdown:
            yield f"| {title} | {step.name} | {' | '.join(figures)} | {curve} |"
        else:
            final, overshoot, settled, mean, failed = figures
            yield (
                f"{title:<28} {step.name:<16} final {final:>4}  overshoot {overshoot:>4}  settled {settled:>4}  "
                f"mean {mean:>7}  failed {failed:>3}  {curve}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--rtt", type=float, help="round trip between the sites in seconds")
    parser.add_argument("--nodes", type=int, default=1, help="nodes per site")
    parser.add_argument("--sites", type=int, choices=(2, 3), default=2)
    parser.add_argument("--random", action="store_true", help="Poisson arrivals and exponential durations")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cases = CASES if options.rtt is None else ((options.rtt, options.nodes, options.sites),)
    if options.markdown:
        sys.stdout.write(
            "| sites | load | final | overshoot | settled | mean duration | failed | share per second, % |\n"
        )
        sys.stdout.write("| --- | --- | --- | --- | --- | --- | --- | --- |\n")
    for rtt_s, nodes, sites in cases:
        steps = loop.run(run_case(rtt_s, nodes, sites, is_random=options.random, seed=options.seed))
        title = f"{sites} sites, {1000 * rtt_s:.0f} ms, {nodes} node{'s' if nodes > 1 else ''} each"
        for line in rows(steps, title, is_markdown=options.markdown):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
