"""What the clients and nodes reported, and what follows from it. Pure: times are those of `time.monotonic`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SAMPLE_AGE_S = 5.0
"""Age in seconds at which the sample of a node no longer counts: it does not answer."""

MAX_GLITCH_S = 1.5
"""When a link is replaced, its two ends report that at different times, up to one interval of the polls apart."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client in `cloud`. `failure` is empty if `answered_by` (a cloud) answered it."""

    at: float
    cloud: int
    service: str
    failure: str
    took_s: float
    answered_by: int


@dataclass(frozen=True, slots=True)
class Published:
    """One message of the publisher in `cloud`."""

    at: float
    cloud: int
    topic: str
    number: int
    failure: str


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery to `subscriber` in `cloud`."""

    at: float
    cloud: int
    topic: str
    subscriber: str
    publisher: int
    number: int


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The answers of one node. `missing` is the number of (service, site) that it has no route to."""

    at: float
    node: str
    node_id: str
    links: frozenset[str]
    missing: int
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lost:
    """A message that was published at `at` and did not reach the subscribers of `target`."""

    at: float
    source: int
    target: int
    topic: str


@dataclass(slots=True)
class Observations:
    """All that was reported since the start of a scenario."""

    calls: list[Call] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    samples: list[NodeSample] = field(default_factory=list)
    poll_failures: list[list[Any]] = field(default_factory=list)
    """Time, node and error of each poll that failed or was slow."""
    max_lag_s: float = 0.0
    ids: dict[str, str] = field(default_factory=dict)
    """The id of each node by name."""

    def add(self, cloud: int, report: Mapping[str, Any]) -> None:
        """Store a report of the clients in `cloud`; see `caller.Report`."""
        self.calls += [
            Call(at, cloud, service, failure, took_s, by) for at, service, failure, took_s, by in report["calls"]
        ]
        self.published += [
            Published(at, cloud, topic, number, failure) for at, topic, number, failure in report["published"]
        ]
        self.received += [
            Received(at, cloud, topic, subscriber, publisher, number)
            for at, topic, subscriber, publisher, number in report["received"]
        ]
        self.samples += [
            NodeSample(
                sample["at"],
                sample["node"],
                sample["id"],
                frozenset(sample["links"]),
                sample["missing"],
                sample["counters"],
            )
            for sample in report["samples"]
        ]
        self.poll_failures += report["poll_failures"]
        self.ids |= {sample["node"]: sample["id"] for sample in report["samples"]}
        self.max_lag_s = max(self.max_lag_s, report["max_lag_s"])


# ---------------------------------------------------------------------- topology


def components(samples: Iterable[NodeSample]) -> list[set[str]]:
    """Return the names of the nodes of each component. A link counts if both ends report it."""
    by_id = {sample.node_id: sample for sample in samples}
    left, found = set(by_id), []
    while left:
        todo, component = [left.pop()], set()
        while todo:
            own = todo.pop()
            component.add(by_id[own].node)
            for peer in by_id[own].links & left:
                if own in by_id[peer].links:
                    left.discard(peer)
                    todo.append(peer)
        found.append(component)
    return sorted(found, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class State:
    """The network at one time: the sizes of the components, the nodes that do not answer, and the missing routes."""

    at: float
    sizes: tuple[int, ...]
    silent: tuple[str, ...]
    missing: int

    @property
    def is_one(self) -> bool:
        """Whether all nodes are linked, directly or over others, and each has routes to all services."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the network is not one; empty if it is. While nodes do not answer, their links are not known."""
        if self.silent:
            return "nodes do not answer"
        if len(self.sizes) != 1:
            return "several components"
        return "missing routes" if self.missing else ""


def state_at(samples: Sequence[NodeSample], at: float, live: Iterable[str]) -> State:
    """Return the state at `at`, from the latest sample of each node in `live`."""
    latest: dict[str, NodeSample] = {}
    names = set(live)
    for sample in samples:
        if at - MAX_SAMPLE_AGE_S <= sample.at <= at and sample.node in names:
            latest[sample.node] = sample
    found = components(latest.values())
    return State(
        at,
        tuple(len(component) for component in found),
        tuple(sorted(names - latest.keys())),
        sum(sample.missing for sample in latest.values()),
    )


def time_to_one(samples: Sequence[NodeSample], heal_at: float, end: float, live: Iterable[str]) -> float | None:
    """Return the seconds from `heal_at` until the network is one for the rest of the time, None if it is not at the end.

    Later interruptions count if they are longer than `MAX_GLITCH_S`.
    """
    names = tuple(live)
    times = sorted({sample.at for sample in samples if heal_at < sample.at <= end})
    apart_since: float | None = heal_at
    recovered: float | None = None
    for at in times:
        if not state_at(samples, at, names).is_one:
            apart_since = at if apart_since is None else apart_since
        elif apart_since is not None:
            if recovered is None or at - apart_since > MAX_GLITCH_S:
                recovered = at
            apart_since = None
    if apart_since is not None and (recovered is None or end - apart_since > MAX_GLITCH_S):
        return None
    return None if recovered is None else recovered - heal_at


# ----------------------------------------------------------------------- routing


@dataclass(frozen=True, slots=True)
class Rate:
    """The change of a counter of `node` per second, between `since` and `until`."""

    node: str
    since: float
    until: float
    per_s: float


def rates(samples: Iterable[NodeSample], counter: str) -> list[Rate]:
    """Return the rates between consecutive samples of each node. A counter that fell is that of a new process."""
    found: list[Rate] = []
    previous: dict[str, NodeSample] = {}
    for sample in samples:
        before = previous.get(sample.node)
        if before is not None and sample.at > before.at:
            now, then = sample.counters.get(counter, 0), before.counters.get(counter, 0)
            count = now - then if now >= then else now
            found.append(Rate(sample.node, before.at, sample.at, count / (sample.at - before.at)))
        previous[sample.node] = sample
    return found


def time_to_calm(found: Iterable[Rate], heal_at: float, limit_per_s: float) -> float:
    """Return the seconds from `heal_at` until no node exceeds the limit any more; 0 if none does."""
    return max(
        (rate.until - heal_at for rate in found if rate.until > heal_at and rate.per_s >= limit_per_s), default=0.0
    )


def mean_rates(found: Iterable[Rate], since: float, until: float) -> dict[str, float]:
    """Return the mean rate of each node over the intervals within `since` and `until`."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for rate in found:
        if rate.since >= since and rate.until <= until:
            totals[rate.node][0] += rate.per_s * (rate.until - rate.since)
            totals[rate.node][1] += rate.until - rate.since
    return {node: count / seconds for node, (count, seconds) in totals.items() if seconds}


# ---------------------------------------------------------------------- messages


def lost_messages(seen: Observations, clouds: Sequence[int], since: float, until: float) -> list[Lost]:
    """Return each accepted message that did not reach the subscribers of a cloud, for all clouds."""
    delivered = {(one.topic, one.publisher, one.number, one.cloud) for one in seen.received}
    return [
        Lost(one.at, one.cloud, cloud, one.topic)
        for one in seen.published
        if since <= one.at < until and not one.failure
        for cloud in clouds
        if (one.topic, one.cloud, one.number, cloud) not in delivered
    ]


def doubled_messages(seen: Observations) -> int:
    """Return how many deliveries were not the first of a message to a subscriber, or to a queue group of a cloud."""
    counts = Counter((one.topic, one.publisher, one.number, one.cloud, one.subscriber) for one in seen.received)
    return sum(count - 1 for count in counts.values())


# ------------------------------------------------------------------------- calls


def failures_by_reason(calls: Iterable[Call]) -> dict[str, int]:
    """Return how often each kind of error occurred, most frequent first."""
    return dict(Counter(call.failure.partition(" ")[0] for call in calls if call.failure).most_common())


def slow_until(calls: Sequence[Call], since: float, limit_s: float, matches: Callable[[Call], bool]) -> float:
    """Return the seconds from `since` until the calls that `matches` selects are fast for good.

    They are slow in a window of one second if their median exceeds `limit_s` there. Failed calls count as slow.
    """
    windows: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        if call.at >= since and matches(call):
            windows[int(call.at - since)].append(call.took_s if not call.failure else float("inf"))
    slow = [index for index, times in windows.items() if sorted(times)[len(times) // 2] > limit_s]
    return max(slow) + 1.0 if slow else 0.0
