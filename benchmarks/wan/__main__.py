"""Run the scenarios: `python -m benchmarks.wan --only partition,halves`. Needs root and network namespaces.

Four clouds of three nodes (`micro run`), found through DNS and the Redis of each cloud, 24 services, 60 calls per second and
two topics. Prints one table and exits with 1 if a target is missed. `--list` shows the scenarios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.wan.measure import LISTS, measure, unused
from benchmarks.wan.namespaces import skip_reason
from benchmarks.wan.network import WanNetwork
from benchmarks.wan.observations import Observations
from benchmarks.wan.processes import StartError
from benchmarks.wan.report import Row, table
from benchmarks.wan.run import BEFORE_S, Run
from benchmarks.wan.scenarios import SCENARIOS, Scenario, measure_idle
from benchmarks.wan.targets import evaluate

SETTLE_TIMEOUT_S = 45.0
SETTLED_S = 3.0
WARM_UP_S = 8.0
LATE_S = 3.5
"""Seconds at the end of a scenario for the answers of calls and messages that are under way."""

SCENARIO_TIMEOUT_S = 300.0
MAX_WAIT_S = 3_600.0
EXIT_SKIPPED = 77


class Bench:
    """Runs scenarios, all of one kind of broker on one network as long as it recovers."""

    def __init__(self, directory: Path, *, quick: bool, fresh: bool, log_level: str) -> None:
        self._directory = directory
        self._quick = quick
        self._fresh = fresh
        self._log_level = log_level
        self._net: WanNetwork | None = None
        self._starts = 0
        self.started_s: list[float] = []
        """Seconds from each start of the network until it was one component."""

    async def run(self, scenario: Scenario, broker: str) -> Row:
        """Run one scenario, on a settled network."""
        row = Row(name=scenario.name, broker=broker)
        try:
            async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                await self._measure(scenario, await self._settled(broker, row), row)
        except (StartError, TimeoutError, OSError) as error:
            row.problem = str(error) or f"not done within {SCENARIO_TIMEOUT_S:.0f} s"
            await self.close()
        return row

    async def close(self) -> None:
        """Stop the network, if there is one."""
        net, self._net = self._net, None
        if net is not None:
            await net.close()

    async def _settled(self, broker: str, row: Row) -> WanNetwork:
        if self._net is not None and (self._fresh or self._net.broker != broker):
            await self.close()
        if self._net is not None and not await self._until_settled(self._net):
            state = self._net.state()
            row.details["restarted"] = f"not one component within {SETTLE_TIMEOUT_S:.0f} s: {_shown(state)}"
            await self.close()
        if self._net is None:
            self._starts += 1
            net = self._net = WanNetwork(self._directory / f"network-{self._starts}", broker, self._log_level)
            began = time.monotonic()
            await net.start()
            net.command_callers(active=True)
            if not await self._until_settled(net):
                raise StartError(f"the network did not become one component: {_shown(net.state())}")
            self.started_s.append(round(time.monotonic() - began - SETTLED_S, 1))
            # Links and routes change for some seconds after the start.
            await asyncio.sleep(WARM_UP_S)
        return self._net

    async def _until_settled(self, net: WanNetwork) -> bool:
        return await net.until(lambda: net.state().is_one, SETTLE_TIMEOUT_S, hold_s=SETTLED_S)

    async def _measure(self, scenario: Scenario, net: WanNetwork, row: Row) -> None:
        ids, relay = net.seen.ids, await net.paths.stats()
        net.seen, net.cpu = Observations(ids=ids), []
        run = Run(net, self._quick)
        load_before = os.getloadavg()[0]
        try:
            await run.sleep(BEFORE_S)
            await scenario.play(run)
            await run.sleep(scenario.after_s)
            end = time.monotonic()
            load = (load_before, os.getloadavg()[0])
            await run.sleep(LATE_S)
            if "idle" in scenario.checks:
                await measure_idle(run)
        finally:
            await net.paths.restore()
        if unused(net.seen):
            raise StartError("no calls, messages or samples were recorded")
        relay_after = await net.paths.stats()
        row.figures = measure(run, end, net.cpu)
        row.checks = evaluate(scenario.checks, row.figures)
        row.load = (round(load[0], 2), round(load[1], 2))
        packets = relay_after["packets"] - relay["packets"]
        row.details |= {
            "summary": scenario.summary,
            "seconds": round(end - run.since, 1),
            "fault_s": round(run.heal_at - run.fault_at, 1),
            "facts": run.facts,
            "client_lag_s": net.seen.max_lag_s,
            "memory_mib": {name: node.resident_bytes() >> 20 for name, node in net.nodes.items()},
            "relay": {
                **relay_after,
                "packets": packets,
                "cpu_us_per_packet": round(1e6 * (relay_after["cpu_s"] - relay["cpu_s"]) / max(1, packets), 1),
            },
        }
        for repair in run.repairs:
            await repair()


def _shown(state: Any) -> str:
    return f"components {state.sizes}, silent {state.silent}, {state.missing} missing routes"


def choose(only: str, broker: str) -> list[tuple[Scenario, str]]:
    """Return the scenarios with their broker: those of `only`, or all. Raises SystemExit for an unknown name."""
    names = [name for name in only.split(",") if name]
    unknown = sorted(set(names) - {scenario.name for scenario in SCENARIOS})
    if unknown:
        raise SystemExit(f"unknown scenario {unknown[0]!r}; known: {', '.join(one.name for one in SCENARIOS)}")
    chosen = [one for one in SCENARIOS if not names or one.name in names]
    if broker:
        return [(one, broker) for one in chosen if broker in one.brokers]
    found = [(one, "node" if "node" in one.brokers else "nats") for one in chosen]
    if not names:
        # Whether messages are doubled or lost depends on the kind of broker.
        found += [(one, "nats") for one in SCENARIOS if one.name in ("calm", "kill-leader")]
    return sorted(found, key=lambda pair: pair[1] != "node")


def write_json(path: Path, bench: Bench, rows: Sequence[Row], arguments: argparse.Namespace, *, lists: bool) -> None:
    """Write the figures to `path`, with `lists` also each failed call, lost message, rate and state."""
    shown = [asdict(row) for row in rows]
    for row in shown:
        for name in LISTS if not lists and row["figures"] else ():
            del row["figures"][name]
    content = {
        "format": "micro.wan/1",
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "quick": arguments.quick,
        "nice": arguments.nice,
        "start_to_one_component_s": bench.started_s,
        "rows": shown,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=None if lists else 1) + "\n")


async def run_all(arguments: argparse.Namespace, directory: Path) -> int:
    """Run the chosen scenarios and print the table. Return the exit code."""
    bench = Bench(directory, quick=arguments.quick, fresh=arguments.fresh, log_level=arguments.log)
    rows: list[Row] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    is_interrupted = False
    try:
        for scenario, broker in choose(arguments.only, arguments.broker):
            print(f"... {scenario.name} ({broker}): {scenario.summary}", flush=True)
            row = await bench.run(scenario, broker)
            rows.append(row)
            print(table([row]), flush=True)
            if arguments.json:
                write_json(arguments.json, bench, rows, arguments, lists=False)
            if arguments.keep:
                write_json(directory / "details.json", bench, rows, arguments, lists=True)
    except asyncio.CancelledError:
        is_interrupted = True
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Closing takes a few seconds; a second Ctrl-C must not leave processes behind.
            loop.add_signal_handler(number, lambda: None)
        await bench.close()
    print("\n" + table(rows))
    print(f"\nstart until one component: {bench.started_s} s")
    if is_interrupted:
        return 130
    return 0 if rows and all(row.is_met for row in rows) else 1


@contextlib.contextmanager
def only_run() -> Iterator[None]:
    """Wait until no other run on this machine is left: two at a time would measure each other. Raises SystemExit."""
    with (Path(tempfile.gettempdir()) / "micro-wan.lock").open("w") as lock:
        end, is_reported = time.monotonic() + MAX_WAIT_S, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SystemExit(f"another run has not ended within {MAX_WAIT_S:.0f} s") from None
                if not is_reported:
                    print("waiting until another run ends", flush=True)
                is_reported = True
                time.sleep(1.0)
        yield


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wan", description=__doc__)
    parser.add_argument("--only", default="", help="scenarios, comma separated")
    parser.add_argument("--list", action="store_true", help="show the scenarios")
    parser.add_argument("--quick", action="store_true", help="shorter faults: all scenarios within 20 minutes")
    parser.add_argument("--fresh", action="store_true", help="start a new network for each scenario")
    parser.add_argument(
        "--broker", choices=("node", "nats", "nats-durable"), default="", help="run all with this broker"
    )
    parser.add_argument("--json", type=Path, help="file for all figures, e.g. benchmarks/results/wan.json")
    parser.add_argument("--keep", type=Path, help="directory for the logs and details.json")
    parser.add_argument(
        "--nice", type=int, default=0, help="priority of all processes, e.g. -5 on a machine that does other work, too"
    )
    parser.add_argument("--log", default="warning", help="log level of the nodes")
    arguments = parser.parse_args()
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:12} {scenario.summary}")
        return 0
    reason = skip_reason()
    if reason:
        print(f"skipped: {reason}")
        return EXIT_SKIPPED
    os.nice(arguments.nice)
    directory = arguments.keep.absolute() if arguments.keep else Path(tempfile.mkdtemp(prefix="micro-wan-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with only_run():
            return asyncio.run(run_all(arguments, directory))
    finally:
        if not arguments.keep:
            with contextlib.suppress(OSError):
                shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
