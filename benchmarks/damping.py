"""Flap damping by experiment, on virtual time: which constants, in which situations. Makes the table of
docs/design/002-flap-damping.md.

Each policy runs each scenario on a ring of eight nodes; a client's view is that of the node opposite. Shown are routing messages
(those of an idle network subtracted), the first moment at which good news was held, for how long the service was there and could
not be seen from the far side, and how long after the last start it was seen again.

    python benchmarks/damping.py [--markdown]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.lab import invariants, loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.routing.damping import DampingPolicy
from micro_core.routing.options import EngineOptions
from micro_core.routing.router import RouterOptions
from micro_core.rpc.service import Service

NAME = "svc.one"
LOOK_S = 0.05

POLICIES = {
    "none": DampingPolicy(dry_run=True),
    # go-micro 2019: 100 for each event of a route, and a recycling is two of them.
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
class Seen:
    """What came of one scenario under one policy."""

    messages: int = 0
    held_after_s: float | None = None
    hidden_s: float = 0.0
    back_after_s: float | None = None
    """None: not within an hour."""
    wrong: int = 0


class Bench:
    """A ring of eight; the service is on `near`, the looking is done at `far`."""

    def __init__(self, lab: Lab, nodes: list[LabNode]) -> None:
        self.lab = lab
        self.near, self.far = nodes[0], nodes[4]
        self.seen = Seen()
        self.began_at = lab.now
        self.running: list[Service] = []

    async def up(self, number: int = 0) -> None:
        self.running.append(await self.near.serve(Service(NAME), instance_id=f"one-{number}-{self.lab.next_number()}"))

    async def down(self) -> None:
        await self.near.stop_service(self.running.pop(0))

    async def wait(self, seconds: float) -> None:
        """Let time pass, with an eye on what can be seen from the far side."""
        until = self.lab.now + seconds
        while self.lab.now < until - 1e-9:
            await self.lab.pass_time(min(LOOK_S, until - self.lab.now))
            if self.running and not self.far.routes(NAME):
                self.seen.hidden_s += LOOK_S
            if self.seen.held_after_s is None and any(flap.is_suppressed for flap in self.near.node.router.flaps()):
                self.seen.held_after_s = self.lab.now - self.began_at


async def flap(bench: Bench, period_s: float, lasting_s: float) -> None:
    for _ in range(int(lasting_s / period_s)):
        await bench.up()
        await bench.wait(period_s / 2)
        await bench.down()
        await bench.wait(period_s / 2)
    await bench.up()


async def fast_flap(bench: Bench) -> None:
    await flap(bench, 0.4, 60.0)


async def every_5_s(bench: Bench) -> None:
    await flap(bench, 5.0, 300.0)


async def every_11_s(bench: Bench) -> None:
    await flap(bench, 11.0, 300.0)


async def rolling_restart(bench: Bench) -> None:
    for number in range(20):
        await bench.up(number)
    await bench.wait(5.0)
    for number in range(20):
        await bench.down()
        await bench.wait(0.5)
        await bench.up(number)
        await bench.wait(1.0)


async def honest_restart(bench: Bench) -> None:
    await bench.up()
    await bench.wait(30.0)
    await bench.down()
    await bench.wait(2.0)
    await bench.up()


SCENARIOS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "flap every 0.4 s, 1 min": fast_flap,
    "flap every 5 s, 5 min": every_5_s,
    "flap every 11 s, 5 min": every_11_s,
    "rolling restart of 20": rolling_restart,
    "one honest restart": honest_restart,
}


async def run(policy: DampingPolicy, scenario: Callable[[Bench], Awaitable[None]]) -> Seen:
    router = RouterOptions(engine=EngineOptions(damping=policy))
    lab = Lab(1, options=LabOptions(keep_log=False, router=router))
    nodes = await lab.ring(8)
    await lab.converged(60)
    bench = Bench(lab, nodes)
    before = lab.counted("routing_messages_sent")
    await scenario(bench)
    up_at = lab.now
    while not bench.far.routes(NAME) and lab.now - up_at < 3_700:
        await bench.wait(LOOK_S)
    seen = bench.seen
    seen.back_after_s = lab.now - up_at if bench.far.routes(NAME) else None
    spent_s = lab.now - bench.began_at
    sent = lab.counted("routing_messages_sent") - before
    if seen.back_after_s is not None:
        await lab.converged(60)
    quiet = lab.counted("routing_messages_sent")
    await lab.pass_time(spent_s)
    seen.messages = max(0, sent - (lab.counted("routing_messages_sent") - quiet))
    seen.wrong = len(invariants.differences(lab)) + len(invariants.violations(lab))
    await lab.close()
    return seen


def said(seconds: float | None, never: str) -> str:
    return never if seconds is None else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    head = [
        "situation",
        "policy",
        "messages",
        "first held",
        "there and not seen",
        "seen again after",
        "wrong at the end",
    ]
    rows = [head, ["---"] * len(head)] if chosen.markdown else [head]
    for situation, scenario in SCENARIOS.items():
        for name, policy in POLICIES.items():
            seen = loop.run(run(policy, scenario))
            rows.append(
                [
                    situation,
                    name,
                    str(seen.messages),
                    said(seen.held_after_s, "never"),
                    said(seen.hidden_s, ""),
                    said(seen.back_after_s, "not in an hour"),
                    str(seen.wrong),
                ]
            )
    widths = [max(len(row[place]) for row in rows if row[place] != "---") for place in range(len(head))]
    for row in rows:
        if chosen.markdown:
            print(f"| {' | '.join(row)} |")
        else:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
