"""The figures of one scenario, from what was observed. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.wan import layout
from benchmarks.wan.layout import CLOUDS
from benchmarks.wan.network import CpuSample
from benchmarks.wan.observations import (
    Call,
    Lost,
    Observations,
    State,
    doubled_messages,
    failures_by_reason,
    lost_messages,
    mean_rates,
    rates,
    slow_until,
    state_at,
    time_to_calm,
    time_to_one,
)
from benchmarks.wan.run import DETECTION_S, Run

CALM_PER_S = 20.0
"""Routing messages per second and node above which the network is not calm."""

SENT = "routing_messages_sent"
SLOW_S = 0.25
"""Time of a call between clouds 1 and 2 that took the path of 400 ms, not that of 140 ms."""

STATE_STEP_S = 0.5
MAX_LISTED = 3_000

LISTS = ("failures", "losses", "rates", "states", "poll_failures")
"""Fields of `Figures` that are long, and only needed to find a cause."""


@dataclass(slots=True, kw_only=True)
class Figures:
    """The figures of one scenario. Times are in seconds after the heal, or after the fault if nothing heals."""

    calls: int
    failed: int
    untouched: int
    """Failed calls for whose service there was a path, and that started after the detection time and before the heal."""
    late: int
    """Failed calls that started later than the grace time after the heal."""
    last_failure_s: float | None
    one_s: float | None
    """Until the network was one component, for good."""
    calm_s: float
    """Until no node sent more than `CALM_PER_S` routing messages per second."""
    max_rate: float
    mean_rate: float
    elsewhere_rate: float
    """Largest mean rate of a node outside cloud 3 during the fault."""
    expected: int
    """Deliveries of messages that were to be expected: one per accepted message and cloud."""
    refused: int
    """Messages whose publisher got an error."""
    lost: int
    lost_untouched: int
    """Lost deliveries between connected clouds, except those published within the detection time after a change."""
    lost_span_s: float
    """Time between the first and the last lost message between connected clouds."""
    doubled: int
    cpu_mean_percent: float
    cpu_max_percent: float
    idle_cpu_percent: float | None
    slow_s: float
    """Until calls between clouds 1 and 2 avoided a path that had become slow, after the fault."""
    path_ms: list[float] = field(default_factory=list)
    """Median time of calls between clouds 1 and 2: before the fault, and in the last 10 s of it."""
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    poll_failures: list[list[Any]] = field(default_factory=list)
    """Time after the heal, node and error of each poll that failed or was slow."""
    not_one_s: dict[str, float] = field(default_factory=dict)
    """Seconds after the heal in which the network was not one component, by reason; see `State.reason`."""
    rates: dict[str, list[list[float]]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)
    """The components, the nodes that did not answer and the missing routes after the heal, when they changed."""


def measure(run: Run, end: float, cpu: Sequence[CpuSample]) -> Figures:
    """Return the figures of a scenario that ended at `end`."""
    seen = run.net.seen
    calls = [call for call in seen.calls if run.since <= call.at < end]
    failed = [call for call in calls if call.failure]
    lost = lost_messages(seen, CLOUDS, run.since, end)
    connected = [one for one in lost if not _is_apart(run, one.at, one.source, one.target)]
    sent = [rate for rate in rates(seen.samples, SENT) if rate.until <= end]
    fault_rates = mean_rates(sent, run.fault_at, run.heal_at)
    used = _cpu_percent(cpu, run.since, end)
    states = _states(run, end) if run.heal_at else []
    idle = run.facts.get("idle_cpu_percent")
    return Figures(
        calls=len(calls),
        failed=len(failed),
        untouched=sum(1 for call in failed if _is_untouched(run, call)),
        late=sum(1 for call in failed if run.heal_at and call.at > run.heal_at + run.grace_s),
        last_failure_s=_last_failure_s(run, failed),
        one_s=time_to_one(seen.samples, run.heal_at, end, run.net.live) if run.heal_at else 0.0,
        calm_s=time_to_calm(sent, run.heal_at, CALM_PER_S) if run.heal_at else 0.0,
        max_rate=max((rate.per_s for rate in sent), default=0.0),
        mean_rate=_mean(mean_rates(sent, run.since, end).values()),
        elsewhere_rate=max((rate for node, rate in fault_rates.items() if not node.startswith("c3-")), default=0.0),
        expected=len(CLOUDS) * sum(1 for one in seen.published if run.since <= one.at < end and not one.failure),
        refused=sum(1 for one in seen.published if run.since <= one.at < end and one.failure),
        lost=len(lost),
        lost_untouched=sum(1 for one in connected if not _is_near_change(run, one.at)),
        lost_span_s=_span_s(connected),
        doubled=doubled_messages(seen),
        cpu_mean_percent=_mean(used.values()),
        cpu_max_percent=max(used.values(), default=0.0),
        idle_cpu_percent=max(idle.values()) if idle else None,
        slow_s=slow_until([c for c in calls if c.at < run.heal_at], run.fault_at, SLOW_S, _is_between_1_and_2),
        path_ms=[
            _median_ms(call for call in calls if since <= call.at < until and _is_between_1_and_2(call))
            for since, until in ((run.since, run.fault_at), (run.heal_at - 10.0, run.heal_at))
        ],
        reasons=failures_by_reason(failed),
        failures=[_listed(run, call) for call in failed[:MAX_LISTED]],
        losses=[_listed_loss(run, one) for one in lost[:MAX_LISTED]],
        rates=_curves(run, sent),
        states=_shown_states(run, states),
        not_one_s=_not_one_s(states),
        poll_failures=[
            [round(at - (run.heal_at or run.since), 1), node, error] for at, node, error in seen.poll_failures
        ],
    )


def _is_apart(run: Run, at: float, source: int, target: int) -> bool:
    # A message that was sent just before the fault may be under way; one just before the heal may be lost.
    return run.fault_at - 1.0 <= at <= run.heal_at + DETECTION_S and (source, target) in run.apart


def _is_near_change(run: Run, at: float) -> bool:
    return any(moment - 1.0 <= at <= moment + DETECTION_S for moment in run.changes)


def _is_untouched(run: Run, call: Call) -> bool:
    clouds = layout.service_clouds()[call.service]
    has_path = any((call.cloud, cloud) not in run.apart for cloud in clouds)
    return has_path and run.fault_at + DETECTION_S < call.at < run.heal_at - layout.DEADLINE_S


def _last_failure_s(run: Run, failed: Iterable[Call]) -> float | None:
    return max((call.at - run.heal_at for call in failed if run.heal_at and call.at > run.heal_at), default=None)


def _is_between_1_and_2(call: Call) -> bool:
    return {(call.cloud, where) for where in layout.service_clouds()[call.service]} in ({(1, 2)}, {(2, 1)})


def _median_ms(calls: Iterable[Call]) -> float:
    times = sorted(call.took_s for call in calls if not call.failure)
    return round(1_000 * times[len(times) // 2], 1) if times else 0.0


def _span_s(lost: Sequence[Lost]) -> float:
    return max(one.at for one in lost) - min(one.at for one in lost) if lost else 0.0


def _cpu_percent(samples: Sequence[CpuSample], since: float, until: float) -> dict[str, float]:
    """Return the mean CPU use of each node in percent of a core. A restart of the process begins at zero."""
    used: dict[str, float] = defaultdict(float)
    took: dict[str, float] = defaultdict(float)
    previous: dict[str, CpuSample] = {}
    for sample in samples:
        before = previous.get(sample.node)
        if before is not None and since <= before.at and sample.at <= until and sample.cpu_s >= before.cpu_s:
            used[sample.node] += sample.cpu_s - before.cpu_s
            took[sample.node] += sample.at - before.at
        previous[sample.node] = sample
    return {node: 100 * used[node] / seconds for node, seconds in took.items() if seconds}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _listed(run: Run, call: Call) -> dict[str, Any]:
    origin = run.heal_at or run.since
    return {
        "after_fault_s": round(call.at - (run.fault_at or run.since), 2),
        "after_heal_s": round(call.at - origin, 2),
        "from": call.cloud,
        "service": call.service,
        "in": list(layout.service_clouds()[call.service]),
        "took_s": call.took_s,
        "failure": call.failure,
    }


def _listed_loss(run: Run, one: Lost) -> dict[str, Any]:
    return {
        "after_fault_s": round(one.at - (run.fault_at or run.since), 2),
        "from": one.source,
        "to": one.target,
        "topic": one.topic,
    }


def _curves(run: Run, sent: Iterable[Any]) -> dict[str, list[list[float]]]:
    """Return the routing messages per second of each node, as pairs of the time after the fault and the rate."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for rate in sent:
        found[rate.node].append([round(rate.until - (run.fault_at or run.since), 1), round(rate.per_s, 1)])
    return dict(found)


def _states(run: Run, end: float) -> list[State]:
    """Return the state of the network every `STATE_STEP_S` seconds after the heal."""
    steps = int((end - run.heal_at) / STATE_STEP_S)
    return [state_at(run.net.seen.samples, run.heal_at + step * STATE_STEP_S, run.net.live) for step in range(steps)]


def _shown_states(run: Run, states: Iterable[State]) -> list[dict[str, Any]]:
    """Return each state that differs from the one before."""
    found: list[dict[str, Any]] = []
    previous: tuple[Any, ...] = ()
    for state in states:
        content = (state.sizes, state.silent, state.missing)
        if content != previous:
            found.append({"after_heal_s": round(state.at - run.heal_at, 1), **asdict(state)})
        previous = content
    return found


def _not_one_s(states: Iterable[State]) -> dict[str, float]:
    return {reason: count * STATE_STEP_S for reason, count in Counter(s.reason for s in states).items() if reason}


def unused(seen: Observations) -> bool:
    """Return whether nothing was observed: the clients do not work, and no figure would be valid."""
    return not seen.calls or not seen.published or not seen.samples
