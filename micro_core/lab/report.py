"""The report of a run: convergence times, messages, violations of invariants, and samples over time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from micro_core.lab.net import Lab

SAMPLE_S = 1.0
"""Interval between two samples, in virtual seconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the whole network at one time."""

    at: float
    nodes: int
    routes: int
    messages: int
    """Routing messages sent so far by all nodes."""
    penalty: float
    """The highest penalty of all services."""
    suppressed: int
    """Number of suppressed services."""


@dataclass(slots=True)
class Report:
    """The results of a scenario, filled while it runs."""

    settled: list[tuple[str, float]] = field(default_factory=list)
    """(name of the step, seconds until the network had converged)"""
    violations: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def as_map(self, lab: Lab) -> dict[str, Any]:
        """Return the report as printed by `micro lab run --json`."""
        nodes = list(lab.nodes.values())
        return {
            "seed": lab.seed,
            "nodes": len(nodes),
            "virtual_s": round(lab.now, 3),
            "settled": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in self.settled],
            "messages": lab.counted("routing_messages_sent"),
            "bytes": lab.counted("routing_bytes_sent"),
            "messages_per_node": {node.name: node.counted("routing_messages_sent") for node in nodes},
            "violations": self.violations,
            "events": lab.events,
            "digest": lab.digest,
        }


class Observer:
    """Takes a sample and checks the invariants once per virtual second."""

    def __init__(
        self, lab: Lab, *, is_checking: bool = True, on_sample: Callable[[Sample], None] | None = None
    ) -> None:
        self.report = Report()
        self._lab = lab
        self._is_checking = is_checking
        self._on_sample = on_sample
        self._task = asyncio.get_running_loop().create_task(self._observe())

    async def settle(self, name: str, timeout_s: float = 120.0) -> float:
        """Wait until the network has converged, and report the seconds this took under `name`.

        Raises NotConverged after `timeout_s` virtual seconds.
        """
        seconds = await self._lab.converged(timeout_s)
        self.report.settled.append((name, seconds))
        return seconds

    async def close(self) -> None:
        """Stop. Raises the error if a sample or a check failed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            lab, alive = self._lab, self._lab.alive()
            if self._is_checking:
                self.report.violations += [f"{lab.now:.3f} {violation}" for violation in lab.checker.violations()]
            flaps = [flap for node in alive for flap in node.node.router.flaps()]
            sample = Sample(
                at=lab.now,
                nodes=len(alive),
                routes=sum(len(node.routes()) for node in alive),
                messages=lab.counted("routing_messages_sent"),
                penalty=max((flap.penalty for flap in flaps), default=0.0),
                suppressed=sum(flap.is_suppressed for flap in flaps),
            )
            self.report.samples.append(sample)
            if self._on_sample is not None:
                self._on_sample(sample)
