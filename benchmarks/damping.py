"""Compare flap damping policies in several situations, on virtual time.

The result is the table of docs/design/002-flap-damping.md. Each policy runs each scenario on a ring of eight nodes. The
observer is the node opposite the origin. The columns are: routing messages in addition to those of an idle network; when
an announcement was suppressed for the first time; for how long the service ran while the observer had no route; and how
long after the last start the observer had a route again.

    python benchmarks/damping.py [--markdown]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.options import EngineOptions
from micro_core.routing.router import RouterOptions
from micro_core.rpc.service import Service

NAME = "svc.one"
SAMPLE_S = 0.05
"""Interval of the observations, in virtual seconds."""

POLICIES = {
    "none": DampingPolicy(dry_run=True),
    # go-micro 2019: a penalty of 100 for each event of a route. A restart consists of two events.
    "original": DampingPolicy(withdrawal=200, change=100, suppress=200.1, reuse=20, half_life_s=30, max_suppress_s=90),
    "RFC 2439": DampingPolicy(
        withdrawal=1_000, change=500, suppress=2_000, reuse=750, half_life_s=900, max_suppress_s=3_600
    ),
    "RFC 7196": DampingPolicy(
        withdrawal=1_000, change=500, suppress=6_000, reuse=750, half_life_s=900, max_suppress_s=3_600
    ),
    "ours": DampingPolicy(),
}


@dataclass
class Result:
    """The result of one scenario with one policy."""

    messages: int = 0
    suppressed_after_s: float | None = None
    unreachable_s: float = 0.0
    reachable_after_s: float | None = None
    """None if the service did not become reachable within an hour."""
    wrong: int = 0


class Experiment:
    """A ring of eight nodes. The service runs at `near`, the observer is `far`."""

    def __init__(self, lab: Lab, nodes: list[LabNode]) -> None:
        self.lab = lab
        self.near, self.far = nodes[0], nodes[4]
        self.result = Result()
        self.started_at = lab.now
        self.running: list[Service] = []

    async def up(self, number: int = 0) -> None:
        self.running.append(await self.near.serve(Service(NAME), instance_id=f"one-{number}-{self.lab.next_number()}"))

    async def down(self) -> None:
        await self.near.stop_service(self.running.pop(0))

    async def wait(self, seconds: float) -> None:
        """Let time pass and observe the routes at the far node."""
        until = self.lab.now + seconds
        while self.lab.now < until - 1e-9:
            await self.lab.advance_time(min(SAMPLE_S, until - self.lab.now))
            if self.running and not self.far.routes(NAME):
                self.result.unreachable_s += SAMPLE_S
            if self.result.suppressed_after_s is None and any(
                flap.is_suppressed for flap in self.near.node.router.flaps()
            ):
                self.result.suppressed_after_s = self.lab.now - self.started_at


async def flap(experiment: Experiment, period_s: float, lasting_s: float) -> None:
    for _ in range(int(lasting_s / period_s)):
        await experiment.up()
        await experiment.wait(period_s / 2)
        await experiment.down()
        await experiment.wait(period_s / 2)
    await experiment.up()


async def fast_flap(experiment: Experiment) -> None:
    await flap(experiment, 0.4, 60.0)


async def every_5_s(experiment: Experiment) -> None:
    await flap(experiment, 5.0, 300.0)


async def every_11_s(experiment: Experiment) -> None:
    await flap(experiment, 11.0, 300.0)


async def rolling_restart(experiment: Experiment) -> None:
    for number in range(20):
        await experiment.up(number)
    await experiment.wait(5.0)
    for number in range(20):
        await experiment.down()
        await experiment.wait(0.5)
        await experiment.up(number)
        await experiment.wait(1.0)


async def single_restart(experiment: Experiment) -> None:
    await experiment.up()
    await experiment.wait(30.0)
    await experiment.down()
    await experiment.wait(2.0)
    await experiment.up()


SCENARIOS: dict[str, Callable[[Experiment], Awaitable[None]]] = {
    "flap every 0.4 s, 1 min": fast_flap,
    "flap every 5 s, 5 min": every_5_s,
    "flap every 11 s, 5 min": every_11_s,
    "rolling restart of 20": rolling_restart,
    "one restart": single_restart,
}


async def run(policy: DampingPolicy, scenario: Callable[[Experiment], Awaitable[None]]) -> Result:
    router = RouterOptions(engine=EngineOptions(damping=policy))
    lab = Lab(1, options=LabOptions(keep_log=False, router=router))
    nodes = await lab.ring(8)
    await lab.converged(60)
    experiment = Experiment(lab, nodes)
    before = lab.counted("routing_messages_sent")
    await scenario(experiment)
    up_at = lab.now
    while not experiment.far.routes(NAME) and lab.now - up_at < 3_700:
        await experiment.wait(SAMPLE_S)
    result = experiment.result
    result.reachable_after_s = lab.now - up_at if experiment.far.routes(NAME) else None
    elapsed_s = lab.now - experiment.started_at
    sent = lab.counted("routing_messages_sent") - before
    if result.reachable_after_s is not None:
        await lab.converged(60)
    idle_before = lab.counted("routing_messages_sent")
    await lab.advance_time(elapsed_s)
    result.messages = max(0, sent - (lab.counted("routing_messages_sent") - idle_before))
    result.wrong = len(lab.checker.differences()) + len(lab.checker.violations())
    await lab.close()
    return result


def format_seconds(seconds: float | None, never: str) -> str:
    return never if seconds is None else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    head = [
        "situation",
        "policy",
        "messages",
        "first suppressed",
        "up but unreachable",
        "reachable again after",
        "wrong at the end",
    ]
    rows = [head, ["---"] * len(head)] if arguments.markdown else [head]
    for situation, scenario in SCENARIOS.items():
        for name, policy in POLICIES.items():
            result = loop.run(run(policy, scenario))
            rows.append(
                [
                    situation,
                    name,
                    str(result.messages),
                    format_seconds(result.suppressed_after_s, "never"),
                    format_seconds(result.unreachable_s, ""),
                    format_seconds(result.reachable_after_s, "not within an hour"),
                    str(result.wrong),
                ]
            )
    widths = [max(len(row[column]) for row in rows if row[column] != "---") for column in range(len(head))]
    for row in rows:
        if arguments.markdown:
            print(f"| {' | '.join(row)} |")
        else:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
