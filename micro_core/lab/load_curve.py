"""Load scenarios: sites with instances of limited capacity, callers on each site, and a curve of who answered the calls."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from micro_core.contract.clock import Random
from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions
from micro_core.rpc.service import Service

NAME = "go.micro.srv.worker"

SITE_DELAY_S = 0.000_1
"""One-way delay between the nodes of one site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSite:
    """A site with `instances` instances, and `nodes` nodes that are linked to those of all other sites."""

    name: str
    instances: int = 2
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call: when it began, from which site, which site answered (empty for an error), and its duration in seconds."""

    began_at: float
    caller: str
    answered_by: str
    duration_s: float


@dataclass
class LoadScenario:
    """Sites under load. An instance executes `concurrency` calls at once, each for `handler_s` seconds."""

    lab: Lab
    handler_s: float
    concurrency: int
    timeout_s: float
    is_random: bool = True
    """Poisson arrivals and exponential durations, instead of regular ones."""
    nodes: dict[str, list[LabNode]] = field(default_factory=dict)
    """The nodes of each site."""
    instances: dict[str, list[Service]] = field(default_factory=dict)
    """The running instances of each site."""
    calls: list[Call] = field(default_factory=list)
    """All calls that have ended."""

    @property
    def instance_per_s(self) -> float:
        """Calls per second that one instance can serve."""
        return self.concurrency / self.handler_s

    @classmethod
    async def create(
        cls,
        lab: Lab,
        sites: Sequence[LoadSite],
        *,
        rtt_s: float | Callable[[str, str], float],
        handler_s: float = 0.040,
        concurrency: int = 2,
        timeout_s: float = 5.0,
        is_random: bool = True,
    ) -> LoadScenario:
        """Start the nodes and the instances of all sites, and wait until every node knows them.

        Args:
            lab: An empty lab.
            sites: The sites. The first node of the first site dials no other node.
            rtt_s: Round-trip time between two sites in seconds, or a function of their names.
            handler_s: Mean duration of a call in seconds.
            concurrency: Number of calls that one instance executes at once.
            timeout_s: Timeout of each call in seconds.
            is_random: Whether arrivals are a Poisson process and durations exponentially distributed. Otherwise both
                are regular, which shows the behaviour of the choice without noise.
        """
        scenario = cls(lab, handler_s, concurrency, timeout_s, is_random)
        started: list[tuple[str, LabNode]] = []
        for site in sites:
            scenario.nodes[site.name], scenario.instances[site.name] = [], []
            for number in range(site.nodes):
                name = site.name if site.nodes == 1 else f"{site.name}{number}"
                for other_site, other in started:
                    between_s = rtt_s if isinstance(rtt_s, float) else rtt_s(site.name, other_site)
                    delay_s = SITE_DELAY_S if other_site == site.name else between_s / 2
                    lab.links.set(name, other.name, Conditions(delay_s=delay_s))
                node = await lab.add(name, site=site.name, links=[other for _, other in started])
                started.append((site.name, node))
                scenario.nodes[site.name].append(node)
            for _ in range(site.instances):
                await scenario.add_instance(site.name)
        await lab.advance_time(20)
        return scenario

    async def add_instance(self, site: str) -> None:
        """Start another instance on a site."""
        service, semaphore = Service(NAME), asyncio.Semaphore(self.concurrency)
        source = self.lab.nodes[self.nodes[site][0].name].random(f"worker {self.lab.next_number()}")

        @service.endpoint("Work.Do")
        async def do() -> str:
            async with semaphore:
                await asyncio.sleep(self._interval(source, self.handler_s))
            return site

        await self.nodes[site][0].serve(service)
        self.instances[site].append(service)

    async def lose_instances(self, site: str, count: int, *, is_crash: bool = False) -> None:
        """Stop `count` instances of a site, or let them crash."""
        node = self.nodes[site][0]
        for _ in range(count):
            service = self.instances[site].pop()
            await (node.kill_service(service) if is_crash else node.stop_service(service))

    async def run(self, per_s: Mapping[str, float], seconds: float) -> None:
        """Call from each site at the given rates (calls per second), evenly from all its nodes."""
        await asyncio.gather(
            *(
                self._call_from(site, node, rate / len(self.nodes[site]), seconds)
                for site, rate in per_s.items()
                for node in self.nodes[site]
            )
        )

    async def _call_from(self, site: str, node: LabNode, per_s: float, seconds: float) -> None:
        source = node.random(f"caller {self.lab.next_number()}")
        until = self.lab.now + seconds
        pending: set[asyncio.Task[None]] = set()
        while True:
            await asyncio.sleep(self._interval(source, 1 / per_s))
            if self.lab.now >= until:
                break
            task = asyncio.get_running_loop().create_task(self._call(site, node))
            pending.add(task)
            task.add_done_callback(pending.discard)

    def _interval(self, source: Random, mean_s: float) -> float:
        return -mean_s * math.log(1.0 - source.random()) if self.is_random else mean_s

    async def _call(self, site: str, node: LabNode) -> None:
        began_at, answered_by = self.lab.now, ""
        try:
            answered_by = await node.call(NAME, "Work.Do", timeout_s=self.timeout_s)
        except MicroError:
            pass
        self.calls.append(Call(began_at, site, answered_by, self.lab.now - began_at))

    # -------------------------------------------------------------------- results

    def failed(self, since: float = 0.0) -> int:
        """Return the number of failed calls that began at `since` or later."""
        return sum(not call.answered_by for call in self.calls if call.began_at >= since)

    def share(self, caller: str, answered_by: str, since: float, until: float) -> float:
        """Return the share of the answered calls from `caller` in a period that `answered_by` has answered."""
        answers = Counter(
            call.answered_by for call in self.calls if call.caller == caller and since <= call.began_at < until
        )
        answers.pop("", None)
        return answers[answered_by] / max(1, answers.total())

    def mean_s(self, caller: str, since: float, until: float) -> float:
        """Return the mean duration in seconds of the calls from `caller` in a period."""
        found = [call.duration_s for call in self.calls if call.caller == caller and since <= call.began_at < until]
        return sum(found) / max(1, len(found))

    def curve(self, caller: str, since: float, until: float, step_s: float = 1.0) -> list[CurvePoint]:
        """Return who answered the calls from `caller`, in steps of `step_s` seconds."""
        points = []
        for number in range(round((until - since) / step_s)):
            begin = since + number * step_s
            calls = [call for call in self.calls if call.caller == caller and begin <= call.began_at < begin + step_s]
            answers = Counter(call.answered_by for call in calls)
            failed = answers.pop("", 0)
            mean_s = sum(call.duration_s for call in calls) / max(1, len(calls))
            points.append(CurvePoint(begin, dict(answers), failed, mean_s))
        return points


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The calls of one caller that began in one step: the answers of each site, failed calls, and their mean duration."""

    at: float
    answers: dict[str, int]
    failed: int
    mean_s: float

    def share(self, site: str) -> float:
        """Return the share of the answers that `site` gave."""
        return self.answers.get(site, 0) / max(1, sum(self.answers.values()))


@dataclass(frozen=True, slots=True)
class Settling:
    """How the share of a site followed a step of the load. Shares are moving averages over `SMOOTHED_S` seconds."""

    final: float
    """Mean share in the last third of the curve."""
    overshoot: float
    """How far the share went beyond its final value, as a fraction of all calls."""
    settled_after_s: float
    """Seconds after which the share stayed close to its final value."""


SMOOTHED_S = 3


def settling(curve: Sequence[CurvePoint], site: str, *, within: float = 0.1) -> Settling:
    """Analyse a curve with steps of one second that begins with a step of the load.

    Args:
        curve: The curve.
        site: The site whose share is analysed.
        within: Deviation from the final share that counts as close to it, as a fraction of all calls.
    """
    totals = [sum(point.answers.values()) for point in curve]
    answers = [point.answers.get(site, 0) for point in curve]
    count = len(curve) - SMOOTHED_S + 1
    shares = [sum(answers[at : at + SMOOTHED_S]) / max(1, sum(totals[at : at + SMOOTHED_S])) for at in range(count)]
    last_third = len(curve) * 2 // 3
    final = sum(answers[last_third:]) / max(1, sum(totals[last_third:]))
    is_rising = final > shares[0]
    overshoot = max(0.0, max(shares) - final) if is_rising else max(0.0, final - min(shares))
    unsettled = [at for at, share in enumerate(shares) if abs(share - final) > within]
    return Settling(final, overshoot, float(unsettled[-1] + 1) if unsettled else 0.0)
