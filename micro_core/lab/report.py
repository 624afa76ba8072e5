"""What a run has shown: convergence, messages, violations, and samples over time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from micro_core.lab import invariants

if TYPE_CHECKING:
    from micro_core.lab.net import Lab

SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the whole network."""

    at: float
    nodes: int
    routes: int
    messages: int
    """Routing messages sent so far, by all nodes."""
    penalty: float
    """The worst of any service."""
    held: int


@dataclass(slots=True)
class Report:
    """Filled while a scenario runs."""

    settled: list[tuple[str, float]] = field(default_factory=list)
    """(what, seconds until all agreed)"""
    violations: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def as_map(self, lab: Lab) -> dict[str, Any]:
        """The answer of `micro lab run --json`."""
        members = list(lab.nodes.values())
        return {
            "seed": lab.seed,
            "nodes": len(members),
            "virtual_s": round(lab.now, 3),
            "settled": [{"what": what, "seconds": round(seconds, 3)} for what, seconds in self.settled],
            "messages": lab.counted("routing_messages_sent"),
            "bytes": lab.counted("routing_bytes_sent"),
            "messages_per_node": {member.name: member.counted("routing_messages_sent") for member in members},
            "violations": self.violations,
            "events": lab.events,
            "digest": lab.digest,
        }


class Observer:
    """Looks once a virtual second: samples, and invariants that must hold at every moment."""

    def __init__(
        self, lab: Lab, *, is_checking: bool = True, on_sample: Callable[[Sample], None] | None = None
    ) -> None:
        self.report = Report()
        self._lab = lab
        self._is_checking = is_checking
        self._on_sample = on_sample
        self._task = asyncio.get_running_loop().create_task(self._observe())

    async def settle(self, what: str, timeout_s: float = 120.0) -> float:
        """Wait until all agree, and note how long it took. Raises NotConverged."""
        seconds = await self._lab.converged(timeout_s)
        self.report.settled.append((what, seconds))
        return seconds

    async def close(self) -> None:
        """End; raises what went wrong while looking."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            lab, alive = self._lab, self._lab.alive()
            if self._is_checking:
                self.report.violations += [f"{lab.now:.3f} {wrong}" for wrong in invariants.violations(lab)]
            flaps = [flap for member in alive for flap in member.node.router.flaps()]
            sample = Sample(
                at=lab.now,
                nodes=len(alive),
                routes=sum(len(member.routes()) for member in alive),
                messages=lab.counted("routing_messages_sent"),
                penalty=max((flap.penalty for flap in flaps), default=0.0),
                held=sum(flap.is_held for flap in flaps),
            )
            self.report.samples.append(sample)
            if self._on_sample is not None:
                self._on_sample(sample)
