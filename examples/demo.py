"""The main job, end to end, with real processes: `make demo`.

Two nodes (sites `eu` and `us`), each with an mDNS registry of its own domain on the loopback interface, joined by
one QUIC link; a greeter on `eu`; and the commands of the founding article, run on `us`. Ends by itself, with exit 0
only if the call was answered. `KEEP=1` keeps everything up until Ctrl-C.
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
PATIENCE_S = 40.0
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
    """Processes, and the directory they live in."""

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
        """Start a process and wait for its line that says `ready`."""
        say(f"[{site}] $ {shlex.join(command)}")
        with (self.directory / f"{title}.log").open("w") as log:
            # An interrupt between the fork and the list would leave a process that nobody ends.
            self.is_forking = True
            process = subprocess.Popen(
                [found(command[0]), *command[1:]],
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
        raise SystemExit(f"{title} ended before it was ready:\n" + (self.directory / f"{title}.log").read_text())

    def show(self, command: list[str], extra: Mapping[str, str] | None = None) -> str:
        """Run a command on `us`, print it and what it says."""
        prefix = "".join(f"{name}={value} " for name, value in (extra or {}).items())
        say(f"[us] $ {prefix}{shlex.join(command)}")
        done = subprocess.run(
            [found(command[0]), *command[1:]],
            env=self.environment("us", extra),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        print(done.stdout + done.stderr)
        if done.returncode != 0:
            raise SystemExit(f"exit code {done.returncode}")
        return done.stdout

    def wait_for_greeter(self) -> None:
        """Until `us` has a route to the greeter."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            done = subprocess.run(
                [found("micro"), "network", "services", "--json"],
                env=self.environment("us"),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            if done.returncode == 0 and GREETER in done.stdout:
                return
            time.sleep(0.1)
        raise SystemExit(f"no route to {GREETER} on us within {PATIENCE_S} s:\n{done.stdout}{done.stderr}")

    def interrupt(self, number: int, frame: object) -> None:
        """However this is ended (but for kill -9), it takes down what it started."""
        del number, frame
        self.is_interrupted = True
        if not self.is_forking:
            raise KeyboardInterrupt

    def stop(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def found(program: str) -> str:
    """`micro` beside the Python that runs this, wherever PATH points."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.exists() else program


def say(text: str) -> None:
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
            for words in ("nodes", "connections", "services", "routes"):
                demo.show(["micro", "network", words])
            answer = demo.show(
                ["micro", "call", GREETER, "Say.Hello", '{"name": "John"}'], {"MICRO_PROXY": "go.micro.network"}
            )
            if json.loads(answer) != {"msg": "Hello John"}:
                say(f"expected the answer Hello John, not {answer!r}")
                return 1
            say(f"It works! ({time.monotonic() - started:.1f} s)")
            if os.environ.get("KEEP"):
                keep(demo)
        except KeyboardInterrupt:
            say("\ninterrupted")
            return 130
        finally:
            demo.stop()
    return 0


def keep(demo: Demo) -> None:
    say("\nStill up. In another terminal, try:\n")
    say(f"  export MICRO_CONFIG={demo.configs['us']} MICRO_PROXY=go.micro.network")
    say(f"  export PATH={Path(sys.executable).parent}:$PATH")
    say("  micro network graph")
    say(f"  micro describe {GREETER}")
    say(f'  micro call {GREETER} Say.Hello \'{{"name": "you"}}\'')
    say("\nCtrl-C ends everything.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("")


if __name__ == "__main__":
    sys.exit(main())
