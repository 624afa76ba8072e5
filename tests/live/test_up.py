"""`micro up` with real processes: one file, several nodes and services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port
from tests.live.conftest import Process

ROOT = Path(__file__).parents[2]
GREETER = "go.micro.srv.greeter"
MICRO = [sys.executable, "-m", "micro_core"]

pytestmark = pytest.mark.timeout(240)

TWO_SITES = """
[node]
plugins = ["quic"]
state_dir = "{state}"

[nodes.eu]
listen = "127.0.0.1:{eu}"

[nodes.us]
listen = "127.0.0.1:{us}"
nodes = ["quic://127.0.0.1:{eu}"]

[services.greeter]
command = "python greeter.py"
site = "eu"
"""

OF_PARTS = """
[node]
plugins = ["quic", "registry:service", "broker:service"]
state_dir = "{state}"

[plugins."registry:service"]
address = "tcp://127.0.0.1:{eu}"

[nodes.eu]
listen = "none"
components = ["registry", "broker", "tunnel", "router", "proxy"]

[services.greeter]
command = ["python", "greeter.py"]
"""


class Upper:
    """Runs `micro up` in a directory of its own."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.directory: Path = lab.directory
        (self.directory / "greeter.py").write_text((ROOT / "examples" / "greeter.py").read_text())

    def write(self, text: str) -> None:
        ports = {"eu": free_port(), "us": free_port(), "state": self.directory / "state"}
        (self.directory / "micro.toml").write_text(text.format(**ports))

    def environment(self, **extra: str) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")} | extra

    def start(self) -> Process:
        child = subprocess.Popen(
            [*MICRO, "up"],
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process = Process("up", child)
        self.lab.processes.append(process)
        return process

    def micro(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MICRO, *arguments],
            cwd=self.directory,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def hello(self, site: str, name: str) -> str:
        done = self.micro(
            "call",
            GREETER,
            "Say.Hello",
            json.dumps({"name": name}),
            MICRO_SITE=site,
            MICRO_PROXY="go.micro.network",
        )
        return str(json.loads(done.stdout)["msg"]) if done.returncode == 0 else done.stderr


@pytest.fixture
def upper(lab: Any) -> Upper:
    return Upper(lab)


def said(line: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(line in one for one in lines)


def place(lines: list[str], wanted: str) -> int:
    return next(number for number, line in enumerate(lines) if wanted in line)


def processes_of(group: str) -> list[int]:
    """Processes of this machine whose command line holds `group`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if group.encode() in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_two_sites_and_a_service_come_up_in_order_are_called_and_are_drained_in_the_reverse_order(upper: Upper) -> None:
    upper.write(TWO_SITES)
    up = upper.start()
    up.wait_for(said("all ready"), timeout_s=60)
    for name in ("eu      | ready", "us      | ready"):
        assert place(up.lines, name) < place(up.lines, "greeter | ready"), "nodes before services"
    upper.lab.until(lambda: upper.hello("us", "John") == "Hello John", "us reaches the greeter of eu")
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)
    up.wait_for(said("up      | stopped"))
    assert said("eu      | stopped")(up.lines)
    assert said("us      | stopped")(up.lines)
    assert processes_of(f"MICRO_CONFIG={upper.directory}") == []


def test_a_node_is_brought_up_as_parts(upper: Upper) -> None:
    upper.write(OF_PARTS)
    up = upper.start()
    up.wait_for(said("all ready"), timeout_s=60)
    for part in ("registry", "broker", "tunnel", "router", "proxy"):
        assert any(line.startswith(f"eu.{part}") and "| ready" in line for line in up.lines), part
    upper.lab.until(lambda: upper.hello("eu", "parts") == "Hello parts", "the parts are a node")
    up.child.send_signal(signal.SIGTERM)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)


def test_a_process_that_dies_is_named_the_others_go_on_and_the_exit_code_says_so(upper: Upper) -> None:
    upper.write(
        TWO_SITES + '\n[services.brief]\nsite = "us"\nready = ""\ncommand = ["python", "-c", "raise SystemExit(7)"]'
    )
    up = upper.start()
    up.wait_for(said("brief   | exited unexpectedly: exit code 7"), timeout_s=60)
    up.wait_for(said("all ready"), timeout_s=60)
    upper.lab.until(lambda: upper.hello("us", "John") == "Hello John", "the others go on")
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 1
    up.wait_for(said("exited unexpectedly with an error: brief"))


def test_a_process_is_started_again_where_the_file_says_so(upper: Upper) -> None:
    upper.write(TWO_SITES.replace('site = "eu"', 'site = "eu"\nrestart = true'))
    up = upper.start()
    up.wait_for(said("all ready"), timeout_s=60)
    (line,) = [line for line in up.lines if "greeter | ready" in line]
    assert line
    children = [
        pid
        for pid in processes_of(f"MICRO_CONFIG={upper.directory}")
        if b"greeter.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    (greeter,) = children
    os.kill(greeter, signal.SIGKILL)
    up.wait_for(said("exited unexpectedly: killed by SIGKILL; restarting"))
    up.wait_for(lambda lines: sum("greeter | ready" in line for line in lines) == 2)
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)


def test_what_ends_before_it_is_ready_ends_all(upper: Upper) -> None:
    upper.write(TWO_SITES + '\n[services.broken]\nsite = "eu"\ncommand = ["python", "-c", "print(42)"]')
    up = upper.start()
    assert up.child.wait(timeout=90) == 1
    up.wait_for(said("broken exited before it was ready"))
    assert processes_of(f"MICRO_CONFIG={upper.directory}") == []


def test_a_second_signal_hurries(upper: Upper) -> None:
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    upper.write(TWO_SITES + f'\n[services.stubborn]\nsite = "eu"\ncommand = ["python", "-c", {json.dumps(stubborn)}]')
    up = upper.start()
    up.wait_for(said("all ready"), timeout_s=60)
    up.child.send_signal(signal.SIGINT)
    up.wait_for(said("draining"))
    up.child.send_signal(signal.SIGINT)
    # Far less than the twenty seconds that a process is given otherwise, for each of two stages.
    assert up.child.wait(timeout=18) == 0
    assert processes_of(f"MICRO_CONFIG={upper.directory}") == []
