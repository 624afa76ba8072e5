"""Watches a running lab: the connected components, and the routing messages and processor time of each node over time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from micro_core.lab.connectivity import components
from micro_core.lab.net import Lab

SAMPLE_S = 0.5
CALM_PER_S = 20.0
"""A node is calm when it sends fewer routing messages per second than this."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The state at one time."""

    at: float
    components: int
    sent: dict[str, int] = field(repr=False)
    """Routing messages sent so far by each node."""
    work_s: dict[str, float] = field(repr=False)
    """Processor time used so far by the current process of each node."""
    lag_s: float
    """The longest time by which a node lags behind its work."""


class Monitor:
    """Reads the state every `SAMPLE_S` virtual seconds."""

    def __init__(self, lab: Lab) -> None:
        self.readings: list[Reading] = []
        self._lab = lab
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop. Raises the error if a reading failed."""
        self.readings.append(self._read())
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        while True:
            self.readings.append(self._read())
            await asyncio.sleep(SAMPLE_S)

    def _read(self) -> Reading:
        nodes = self._lab.nodes.values()
        running = {node.name: node.process for node in nodes if node.process is not None}
        return Reading(
            at=self._lab.now,
            components=len(components(self._lab)),
            sent={node.name: node.counted("routing_messages_sent") for node in nodes},
            work_s={name: process.work_s for name, process in running.items()},
            lag_s=max((process.lag_s for process in running.values()), default=0.0),
        )

    # ------------------------------------------------------------------- results

    def messages(self, since: float, until: float = float("inf")) -> int:
        """Return the routing messages that all nodes sent in an interval."""
        found = self._between(since, until)
        return sum(found[-1].sent.values()) - sum(found[0].sent.values()) if found else 0

    def highest_rate(self, since: float, until: float = float("inf")) -> float:
        """Return the highest number of routing messages per second of one node in an interval, over one second."""
        return max((rate for _, rate in self._rates(since, until)), default=0.0)

    def calm_after_s(self, since: float, until: float = float("inf"), *, per_s: float = CALM_PER_S) -> float:
        """Return the seconds from `since` after which no node exceeds a rate of routing messages any more."""
        return max((at - since for at, rate in self._rates(since, until) if rate >= per_s), default=0.0)

    def one_component_after_s(self, since: float, until: float = float("inf")) -> float:
        """Return the seconds from `since` after which there is only one component. Infinite if that never happens."""
        found = self._between(since, until)
        split = [reading.at for reading in found if reading.components > 1]
        if not found or (split and split[-1] == found[-1].at):
            return float("inf")
        return max(0.0, split[-1] + SAMPLE_S - since) if split else 0.0

    def max_lag_s(self, since: float, until: float = float("inf")) -> float:
        """Return the longest time by which a node lagged behind its work in an interval."""
        return max((reading.lag_s for reading in self._between(since, until)), default=0.0)

    def _between(self, since: float, until: float) -> list[Reading]:
        return [reading for reading in self.readings if since <= reading.at <= until]

    def _rates(self, since: float, until: float) -> list[tuple[float, float]]:
        """Return (time, highest rate of one node in the second before it)."""
        found = self._between(since, until)
        return [
            (
                after.at,
                max((after.sent[name] - before.sent.get(name, 0)) / (after.at - before.at) for name in after.sent),
            )
            for before, after in zip(found, found[2:], strict=False)
        ]
