"""Calls and messages in the background of a run, each of them recorded, and which failures the faults do not explain."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from micro_core.contract.errors import MicroError
from micro_core.contract.names import interest_name
from micro_core.lab.connectivity import is_connected
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.used_routes import UsedRoutes, used_routes
from micro_core.rpc.service import Service

DETECTION_S = 4.0
"""Time in which a dead link or node is detected and routes lead around it: three missed keepalives and one interval."""

ENDPOINT = "Work.Do"


@dataclass(slots=True)
class CallRecord:
    """One call of the background traffic."""

    caller: str
    service: str
    began_at: float
    ended_at: float
    error: str
    """Empty for a successful call."""
    answered_by: str
    route: tuple[str, ...]
    """The nodes on the best route when the call began."""
    is_touched: bool
    """Whether a fault explains a failure of the call."""

    @property
    def seconds(self) -> float:
        """The duration of the call."""
        return self.ended_at - self.began_at

    def __str__(self) -> str:
        route = " > ".join(self.route)
        return f"{self.began_at:.3f} {self.caller} calls {self.service} through {route}: {self.error or 'ok'}"


def worker(name: str, site: str, *, duration_s: float = 0.0) -> Service:
    """Return a service with the endpoint that the background traffic calls. It returns `site`."""
    service = Service(name)

    async def do() -> str:
        if duration_s:
            await asyncio.sleep(duration_s)
        return site

    service.endpoint(ENDPOINT, idempotent=True)(do)
    return service


class Calls:
    """Calls services at a constant rate, in turn, and records each call. The calls of each pair are evenly spaced."""

    def __init__(
        self,
        lab: Lab,
        pairs: Sequence[tuple[LabNode, str]],
        *,
        per_s: float,
        timeout_s: float = 2.0,
        retries: int | None = None,
    ) -> None:
        self.records: list[CallRecord] = []
        self._lab = lab
        self._pairs = list(pairs)
        self._interval_s = 1.0 / per_s
        self._options: dict[str, object] = {"timeout_s": timeout_s}
        if retries is not None:
            self._options["retries"] = retries
        self._running: dict[asyncio.Task[None], None] = {}
        self._errors: list[BaseException] = []
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop, and wait for the calls that have begun. Raises the error if the traffic itself failed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error
        if self._running:
            await asyncio.wait([*self._running])
        if self._errors:
            raise self._errors[0]

    def failed(self, since: float = 0.0, until: float = float("inf")) -> list[CallRecord]:
        """Return the failed calls that began in an interval."""
        return [one for one in self.records if one.error and since <= one.began_at < until]

    def unexplained(self, since: float = 0.0, until: float = float("inf")) -> list[CallRecord]:
        """Return the failed calls that no fault touched."""
        return [one for one in self.failed(since, until) if not one.is_touched]

    def count(self, since: float = 0.0, until: float = float("inf")) -> int:
        """Return the number of calls that began in an interval."""
        return sum(since <= one.began_at < until for one in self.records)

    def quantile_s(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the duration that `share` of the calls of an interval do not exceed, 0 without calls."""
        found = sorted(one.seconds for one in self.records if since <= one.began_at < until)
        return found[min(len(found) - 1, int(share * len(found)))] if found else 0.0

    async def _run(self) -> None:
        loop, number = asyncio.get_running_loop(), 0
        begin = self._lab.now
        while True:
            caller, service = self._pairs[number % len(self._pairs)]
            if caller.is_alive:
                task = loop.create_task(self._call(caller, service))
                self._running[task] = None
                task.add_done_callback(self._ended)
            number += 1
            await asyncio.sleep(max(0.0, begin + number * self._interval_s - self._lab.now))

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _call(self, caller: LabNode, service: str) -> None:
        lab, began_at = self._lab, self._lab.now
        before = used_routes(lab, caller, service)
        error, answer = "", ""
        try:
            answer = await caller.call(service, ENDPOINT, **self._options)
        except MicroError as failure:
            error = f"{type(failure).__name__}: {failure}"
        is_touched = bool(error) and self._is_touched(caller, service, before, began_at)
        self.records.append(
            CallRecord(caller.name, service, began_at, lab.now, error, str(answer), before.best, is_touched)
        )

    def _is_touched(self, caller: LabNode, service: str, before: UsedRoutes, began_at: float) -> bool:
        lab = self._lab
        after = used_routes(lab, caller, service)
        if lab.faults.touch(before.subjects | after.subjects, began_at, lab.now, DETECTION_S):
            return True
        if before.is_complete and after.is_complete:
            return False
        # Without a route, the reason is a fault of the last seconds, or that no path exists.
        if lab.faults.has_changed(began_at - DETECTION_S, lab.now):
            return True
        servers = [node for node in lab.alive() if any(one.name == service for one in node.services)]
        return not any(is_connected(lab, caller, server) for server in servers)


@dataclass(slots=True)
class MessageRecord:
    """One message of the background traffic."""

    id: str
    topic: str
    publisher: str
    published_at: float
    error: str = ""
    received: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The times at which each subscriber received it."""
    expected: dict[str, bool] = field(default_factory=dict)
    """The subscribers, and whether a fault explains that they did not receive it."""


class Messages:
    """Publishes messages at a constant rate from several sites in turn, and records who receives them."""

    def __init__(self, lab: Lab, topic: str) -> None:
        self.records: dict[str, MessageRecord] = {}
        self._lab = lab
        self._topic = topic
        self._subscribers: dict[str, LabNode] = {}
        self._queues: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def subscribe(self, node: LabNode, *, queue: str = "") -> str:
        """Start a subscriber on the site of a node. Return its name. Members of one queue on a site share the messages."""
        name = f"sub.{self._topic}.{node.name}.{self._lab.next_number()}"
        service = Service(name)

        async def receive(number: str) -> None:
            record = self.records.get(number)
            if record is not None:
                record.received[name].append(self._lab.now)

        service.subscriber(self._topic, queue=queue)(receive)
        await node.serve(service)
        self._subscribers[name] = node
        self._queues[name] = f"{queue}@{node.site}" if queue else name
        return name

    def publish_from(self, publishers: Sequence[LabNode], *, per_s: float) -> None:
        """Publish from now on until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._run(publishers, 1.0 / per_s))

    async def stop(self) -> None:
        """Stop publishing. Messages under way still arrive. Raises the error if the traffic itself failed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    async def _run(self, publishers: Sequence[LabNode], interval_s: float) -> None:
        number, begin = 0, self._lab.now
        while True:
            node = publishers[number % len(publishers)]
            if node.is_alive:
                await self._publish(node, f"m{number}")
            number += 1
            await asyncio.sleep(max(0.0, begin + number * interval_s - self._lab.now))

    async def _publish(self, node: LabNode, name: str) -> None:
        lab = self._lab
        record = self.records[name] = MessageRecord(name, self._topic, node.name, lab.now)
        for subscriber, at in self._subscribers.items():
            if at.is_alive:
                record.expected[self._queues[subscriber]] = self._is_touched(node, at)
        try:
            await node.publish(self._topic, name)
        except MicroError as error:
            record.error = f"{type(error).__name__}: {error}"

    def _is_touched(self, node: LabNode, at: LabNode) -> bool:
        """Return whether a fault may keep a message that is published now from a subscriber."""
        lab, until = self._lab, self._lab.now + 0.5
        if lab.faults.has_changed(lab.now - DETECTION_S, until):
            return True
        if lab.faults.touch((node.name, at.name), lab.now, until, DETECTION_S):
            return True
        routes = used_routes(lab, node, interest_name(self._topic))
        if lab.faults.touch(routes.subjects, lab.now, until, DETECTION_S):
            return True
        return not is_connected(lab, node, at)

    # ------------------------------------------------------------------- results

    def doubled(self, since: float = 0.0) -> list[str]:
        """Return the messages that a subscriber or a queue group received more than once."""
        return [
            f"{record.published_at:.3f} {record.id} of {record.publisher}: {group} received it {count} times"
            for record in self._since(since)
            for group, count in self._received(record).items()
            if count > 1
        ]

    def lost(self, since: float = 0.0, until: float = float("inf")) -> list[tuple[float, str, str]]:
        """Return (time, publisher, subscriber or queue group) of the messages of an interval that were not received."""
        return [
            (record.published_at, record.publisher, group)
            for record in self._since(since)
            if record.published_at < until
            for group in record.expected
            if not self._received(record)[group]
        ]

    def unexplained(self, since: float = 0.0, until: float = float("inf")) -> list[str]:
        """Return the messages of an interval that were not received although no fault explains it."""
        return [
            f"{record.published_at:.3f} {record.id} of {record.publisher}: {group} did not receive it"
            for record in self._since(since)
            if record.published_at < until
            for group, is_touched in record.expected.items()
            if not is_touched and not self._received(record)[group]
        ]

    def longest_loss_s(self, since: float = 0.0) -> float:
        """Return the longest time for which messages of one publisher to one subscriber or queue group were lost."""
        lost_by_pair: dict[tuple[str, str], list[bool]] = defaultdict(list)
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for record in self._since(since):
            received = self._received(record)
            for group in record.expected:
                lost_by_pair[record.publisher, group].append(not received[group])
                times[record.publisher, group].append(record.published_at)
        longest = 0.0
        for pair, flags in lost_by_pair.items():
            began_at: float | None = None
            for is_lost, at in zip(flags, times[pair], strict=True):
                if is_lost and began_at is None:
                    began_at = at
                if began_at is not None:
                    longest = max(longest, at - began_at)
                if not is_lost:
                    began_at = None
        return longest

    def count(self, since: float = 0.0) -> int:
        """Return the number of deliveries that were expected."""
        return sum(len(record.expected) for record in self._since(since))

    def _since(self, since: float) -> list[MessageRecord]:
        return [record for record in self.records.values() if record.published_at >= since]

    def _received(self, record: MessageRecord) -> Counter[str]:
        counts: Counter[str] = Counter()
        for subscriber, received_at in record.received.items():
            counts[self._queues[subscriber]] += len(received_at)
        return counts


Predicate = Callable[[], bool]


async def time_until(lab: Lab, is_true: Predicate, *, timeout_s: float, step_s: float = 0.05) -> float:
    """Return the virtual seconds until a condition holds, infinite if it does not within `timeout_s`."""
    began_at = lab.now
    while not is_true():
        if lab.now - began_at >= timeout_s:
            return float("inf")
        await lab.advance_time(step_s)
    return lab.now - began_at
