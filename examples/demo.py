"""Call a service on another site, with real processes: `make demo`.

The demo starts two nodes (on the sites `eu` and `us`) that are linked over QUIC, each with an mDNS registry on the
loopback interface, and a greeter on `eu`. It then runs the `micro` commands that inspect the network and call the greeter
from `us`. It exits with code 0 only if the call was answered correctly. `KEEP=1` keeps everything running until Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
GREETER = "go.micro.srv.greeter"
TIMEOUT_S = 40.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SITE = """\
[node]
name = "{site}-1"
site = "{site}"
listen = "127.0.0.1:{port}"
nodes = [{nodes}]
plugins = ["quic", "mdns"]
state_dir = "{state}"

[plugins.mdns]
interfaces = "127.0.0.1"
"""


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Demo:
    """The processes of the demo and their directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[str]] = []
        self.is_forking = self.is_interrupted = False
        port = free_udp_port()
        (directory / "state").mkdir(mode=0o700)
        state = directory / "state"
        self.configs: dict[str, Path] = {}
        for site, listen, nodes in (("eu", port, ""), ("us", free_udp_port(), f'"quic://127.0.0.1:{port}"')):
            self.configs[site] = directory / f"{site}.toml"
            self.configs[site].write_text(SITE.format(site=site, port=listen, nodes=nodes, state=state))

    def environment(self, site: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean.get('PATH', '')}"
        return {**clean, "PATH": path, "MICRO_CONFIG": str(self.configs[site]), **(extra or {})}

    def start(self, title: str, site: str, command: list[str]) -> None:
        """Start a process and wait until it prints `ready`."""
        report(f"[{site}] $ {shlex.join(command)}")
        with (self.directory / f"{title}.log").open("w") as log:
            # An interrupt between the fork and `append` would leave a process running.
            self.is_forking = True
            process = subprocess.Popen(
                [find_program(command[0]), *command[1:]],
                env=self.environment(site),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            self.processes.append(process)
            self.is_forking = False
        if self.is_interrupted:
            raise KeyboardInterrupt
        assert process.stdout is not None
        for line in process.stdout:
            print(f"       {line}", end="")
            if line.startswith("ready"):
                return
        raise SystemExit(f"{title} exited before it was ready:\n" + (self.directory / f"{title}.log").read_text())

    def show(self, command: list[str], extra: Mapping[str, str] | None = None) -> str:
        """Run a command on the site `us`; print the command and its output."""
        prefix = "".join(f"{name}={value} " for name, value in (extra or {}).items())
        report(f"[us] $ {prefix}{shlex.join(command)}")
        done = subprocess.run(
            [find_program(command[0]), *command[1:]],
            env=self.environment("us", extra),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        print(done.stdout + done.stderr)
        if done.returncode != 0:
            raise SystemExit(f"exit code {done.returncode}")
        return done.stdout

    def wait_for_greeter(self) -> None:
        """Wait until `us` has a route to the greeter."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            done = subprocess.run(
                [find_program("micro"), "network", "services", "--json"],
                env=self.environment("us"),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            if done.returncode == 0 and GREETER in done.stdout:
                return
            time.sleep(0.1)
        raise SystemExit(f"no route to {GREETER} on us within {TIMEOUT_S} s:\n{done.stdout}{done.stderr}")

    def interrupt(self, number: int, frame: object) -> None:
        """Handle a signal: stop all processes before exiting."""
        del number, frame
        self.is_interrupted = True
        if not self.is_forking:
            raise KeyboardInterrupt

    def stop(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # already stopping
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_program(program: str) -> str:
    """Return the program next to the running Python interpreter, else its name."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.exists() else program


def report(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="micro-demo-") as name:
        demo = Demo(Path(name))
        try:
            for number in SIGNALS:
                signal.signal(number, demo.interrupt)
            demo.start("eu", "eu", ["micro", "run"])
            demo.start("us", "us", ["micro", "run"])
            demo.start("greeter", "eu", [sys.executable, str(HERE / "greeter.py")])
            demo.wait_for_greeter()
            for subcommand in ("nodes", "connections", "services", "routes"):
                demo.show(["micro", "network", subcommand])
            answer = demo.show(
                ["micro", "call", GREETER, "Say.Hello", '{"name": "John"}'], {"MICRO_PROXY": "go.micro.network"}
            )
            if json.loads(answer) != {"msg": "Hello John"}:
                report(f"expected the answer Hello John, got {answer!r}")
                return 1
            report(f"It works! ({time.monotonic() - started:.1f} s)")
            if os.environ.get("KEEP"):
                keep_running(demo)
        except KeyboardInterrupt:
            report("\ninterrupted")
            return 130
        finally:
            demo.stop()
    return 0


def keep_running(demo: Demo) -> None:
    report("\nStill running. Try in another terminal:\n")
    report(f"  export MICRO_CONFIG={demo.configs['us']} MICRO_PROXY=go.micro.network")
    report(f"  export PATH={Path(sys.executable).parent}:$PATH")
    report("  micro network graph")
    report(f"  micro describe {GREETER}")
    report(f'  micro call {GREETER} Say.Hello \'{{"name": "you"}}\'')
    report("\nCtrl-C stops everything.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        report("")


if __name__ == "__main__":
    sys.exit(main())
