"""The clients of one cloud in one process: callers, publishers, subscribers, and the polling of its nodes.

    python -m benchmarks.wan.caller CLOUD

Commands are lines of JSON on standard input: `{"active": BOOL}` starts and stops calls and messages,
`{"poll_s": SECONDS}` sets the interval of the polling (0: none). Every half second, one line of JSON with what happened is
printed; see `Report`. All times are those of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from typing import Any

from benchmarks.wan import layout
from benchmarks.wan.layout import NODES, NodePlace
from micro_core import Client, Service
from micro_core.contract.errors import MicroError
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.drivers.runtime import Runtime, build_runtime

REPORT_S = 0.5
LARGE_SHARE = 0.1
"""Share of the calls whose request needs several packets."""

LARGE_BYTES = 4_000
SMALL_BYTES = 100
POLL_TIMEOUT_S = 3.0
SLOW_POLL_S = 0.5
"""An answer that takes longer is reported like a failure, but counts."""

MAX_OPEN_CALLS = 500


class Report:
    """The events since the last report, as lists in the order of the fields of `observations`."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, str, float, int]] = []
        self.published: list[tuple[float, str, int, str]] = []
        self.received: list[tuple[float, str, str, int, int]] = []
        self.samples: list[dict[str, Any]] = []
        self.poll_failures: list[tuple[float, str, str]] = []
        self.max_lag_s = 0.0

    def line(self) -> str:
        """Return the events as a line of JSON."""
        return json.dumps(
            {
                "calls": self.calls,
                "published": self.published,
                "received": self.received,
                "samples": self.samples,
                "poll_failures": self.poll_failures,
                "max_lag_s": round(self.max_lag_s, 4),
            }
        )


class Caller:
    """The clients of `cloud`. `client` calls through the nodes of the site, `direct` without them."""

    def __init__(self, cloud: int, client: Client, direct: Client) -> None:
        self._cloud = cloud
        self._client = client
        # One topic is published through a node, as clients with a proxy do, the other on the broker of the site.
        self._publishers = {layout.TOPIC_ALL: direct, layout.TOPIC_QUEUE: client}
        self._random = random.Random(cloud)
        self._expected = {
            (service, layout.site_of(where)) for service, clouds in layout.service_clouds().items() for where in clouds
        }
        self._services = sorted(layout.service_clouds())
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = dict.fromkeys(layout.TOPICS, 0)
        self.report = Report()
        self.active = asyncio.Event()
        self.poll_s = 1.0

    # ------------------------------------------------------------------ calls

    async def call_services(self) -> None:
        """Start calls at the rate of this cloud, to services in random order."""
        interval_s = len(layout.CLOUDS) / layout.CALLS_PER_S
        while True:
            await self.active.wait()
            await asyncio.sleep(interval_s * self._random.uniform(0.8, 1.2))
            if len(self._tasks) >= MAX_OPEN_CALLS:
                raise SystemExit("the calls take longer than their deadline")
            self._spawn(self._call(self._random.choice(self._services)))

    async def _call(self, service: str) -> None:
        size = LARGE_BYTES if self._random.random() < LARGE_SHARE else SMALL_BYTES
        started = time.monotonic()
        answered_by, failure = 0, ""
        try:
            answer = await self._client.call(service, "Wan.Echo", {"padding": "x" * size}, timeout_s=layout.DEADLINE_S)
            answered_by = int(answer["cloud"])
        except MicroError as error:
            failure = f"{type(error).__name__} {error}"[:300]
        took_s = time.monotonic() - started
        self.report.calls.append((round(started, 3), service, failure, round(took_s, 4), answered_by))

    # --------------------------------------------------------------- messages

    async def publish(self, topic: str) -> None:
        """Publish numbered messages."""
        while True:
            await self.active.wait()
            await asyncio.sleep(self._random.uniform(0.8, 1.2) / layout.MESSAGES_PER_S)
            self._numbers[topic] += 1
            self._spawn(self._publish(topic, self._numbers[topic]))

    async def _publish(self, topic: str, number: int) -> None:
        started, failure = time.monotonic(), ""
        try:
            await self._publishers[topic].publish(
                topic, {"from": self._cloud, "number": number}, timeout_s=layout.DEADLINE_S
            )
        except MicroError as error:
            failure = f"{type(error).__name__} {error}"[:300]
        self.report.published.append((round(started, 3), topic, number, failure))

    def subscribe(self, service: Service, topic: str, queue: str) -> None:
        """Add a subscriber to `service` that records its messages."""
        subscriber = queue or "all"

        @service.subscriber(topic, queue=queue)
        async def receive(message: dict[str, Any]) -> None:
            self.report.received.append(
                (round(time.monotonic(), 3), topic, subscriber, message["from"], message["number"])
            )

    # ---------------------------------------------------------------- polling

    async def poll(self, node: NodePlace) -> None:
        """Query the counters, links and services of `node` again and again, as long as it answers."""
        while True:
            await asyncio.sleep(self.poll_s or 0.5)
            if not self.poll_s:
                continue
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    sample = await self._sample(node)
                # The report may have been replaced during the queries.
                self.report.samples.append(sample)
            except (MicroError, TimeoutError) as error:
                # The node is stopped, frozen or busy: its last sample becomes too old to count.
                failure = f"{type(error).__name__} {error}"[:200]
                self.report.poll_failures.append((round(time.monotonic(), 3), node.name, failure))

    async def _sample(self, node: NodePlace) -> dict[str, Any]:
        stats = await self._query(node, "Debug.Stats", {})
        at = time.monotonic()
        own = await self._query(node, "Network.Nodes", {"radius": 0})
        links = await self._query(node, "Network.Connections", {})
        services = await self._query(node, "Network.Services", {})
        known = {(entry["service"], site) for entry in services["services"] for site in entry["sites"]}
        return {
            "at": round(at, 3),
            "node": node.name,
            "id": own["nodes"][0]["id"],
            "links": [link["id"] for link in links["connections"]],
            "missing": len(self._expected - known),
            "counters": {
                name: value for name, value in stats["counters"].items() if name.startswith(("routing_", "proxy_"))
            },
        }

    async def _query(self, node: NodePlace, endpoint: str, request: dict[str, Any]) -> Any:
        started = time.monotonic()
        answer = await self._client.call(
            NETWORK_SERVICE, endpoint, request, address=node.call_address, timeout_s=POLL_TIMEOUT_S, retries=0
        )
        took_s = time.monotonic() - started
        if took_s > SLOW_POLL_S:
            self.report.poll_failures.append((round(started, 3), node.name, f"{endpoint} took {took_s:.2f} s"))
        return answer

    # ---------------------------------------------------------------- process

    async def print_reports(self) -> None:
        """Print a report every `REPORT_S` seconds, with the largest delay of the event loop."""
        printed_at = time.monotonic()
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(0.05)
            self.report.max_lag_s = max(self.report.max_lag_s, time.monotonic() - slept_at - 0.05)
            if time.monotonic() - printed_at >= REPORT_S:
                printed_at = time.monotonic()
                report, self.report = self.report, Report()
                sys.stdout.write(report.line() + "\n")
                sys.stdout.flush()

    async def read_commands(self) -> None:
        """Carry out the commands on standard input until it is closed."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            if "poll_s" in command:
                self.poll_s = command["poll_s"]
            if command.get("active"):
                self.active.set()
            elif "active" in command:
                self.active.clear()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def subscribers(caller: Caller, runtime: Runtime) -> list[Service]:
    """Start one subscriber that receives all messages, and the members of a queue group."""
    broker = await runtime.open_broker()
    found = []
    for topic, queue in ((layout.TOPIC_ALL, ""), *((layout.TOPIC_QUEUE, "workers"),) * layout.QUEUE_MEMBERS):
        name = "wan.worker" if queue else "wan.listener"
        service = Service(name, registry=runtime.registry, transport=runtime.transport, broker=broker)
        caller.subscribe(service, topic, queue)
        await service.start()
        found.append(service)
    return found


async def run(cloud: int) -> None:
    """Run until standard input is closed."""
    runtime = await build_runtime()
    client = Client(runtime=runtime, name=f"caller-c{cloud}")
    direct = Client(runtime=runtime, proxy="", name=f"publisher-c{cloud}")
    caller = Caller(cloud, client, direct)
    services = await subscribers(caller, runtime)
    work = [
        caller.call_services(),
        *(caller.publish(topic) for topic in layout.TOPICS),
        *(caller.poll(node) for node in NODES if node.cloud == cloud),
        caller.print_reports(),
        caller.read_commands(),
    ]
    tasks = [asyncio.ensure_future(one) for one in work]
    # The harness also sends SIGTERM, which would end the process with a traceback.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tasks[-1].cancel)
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for service in services:
        await service.stop(drain_s=0.5)
    await client.close()
    await direct.close()
    await runtime.close()
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1])))
