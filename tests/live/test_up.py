"""`micro up` with several nodes and services as processes."""

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

OF_COMPONENTS = """
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


class Project:
    """A directory with a micro.toml, in which `micro up` and other commands are run."""

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
def project(lab: Any) -> Project:
    return Project(lab)


def printed(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(text in line for line in lines)


def index_of(lines: list[str], text: str) -> int:
    return next(number for number, line in enumerate(lines) if text in line)


def processes_with(variable: str) -> list[int]:
    """Return the ids of other processes whose environment contains `variable`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if variable.encode() in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_nodes_start_before_services_and_all_processes_stop_on_a_signal(project: Project) -> None:
    project.write(TWO_SITES)
    up = project.start()
    up.wait_for(printed("all ready"), timeout_s=60)
    for name in ("eu      | ready", "us      | ready"):
        assert index_of(up.lines, name) < index_of(up.lines, "greeter | ready"), "nodes before services"
    project.lab.until(lambda: project.hello("us", "John") == "Hello John", "us reaches the greeter of eu")
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)
    up.wait_for(printed("up      | stopped"))
    assert printed("eu      | stopped")(up.lines)
    assert printed("us      | stopped")(up.lines)
    assert processes_with(f"MICRO_CONFIG={project.directory}") == []


def test_node_is_started_as_separate_components(project: Project) -> None:
    project.write(OF_COMPONENTS)
    up = project.start()
    up.wait_for(printed("all ready"), timeout_s=60)
    for component in ("registry", "broker", "tunnel", "router", "proxy"):
        assert any(line.startswith(f"eu.{component}") and "| ready" in line for line in up.lines), component
    project.lab.until(lambda: project.hello("eu", "components") == "Hello components", "the node calls the greeter")
    up.child.send_signal(signal.SIGTERM)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)


def test_failed_process_is_reported_and_the_others_continue(project: Project) -> None:
    project.write(
        TWO_SITES + '\n[services.brief]\nsite = "us"\nready = ""\ncommand = ["python", "-c", "raise SystemExit(7)"]'
    )
    up = project.start()
    up.wait_for(printed("brief   | exited unexpectedly: exit code 7"), timeout_s=60)
    up.wait_for(printed("all ready"), timeout_s=60)
    project.lab.until(lambda: project.hello("us", "John") == "Hello John", "the other processes continue")
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 1
    up.wait_for(printed("exited unexpectedly with an error: brief"))


def test_process_is_restarted_if_configured(project: Project) -> None:
    project.write(TWO_SITES.replace('site = "eu"', 'site = "eu"\nrestart = true'))
    up = project.start()
    up.wait_for(printed("all ready"), timeout_s=60)
    (line,) = [line for line in up.lines if "greeter | ready" in line]
    assert line
    children = [
        pid
        for pid in processes_with(f"MICRO_CONFIG={project.directory}")
        if b"greeter.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    (greeter,) = children
    os.kill(greeter, signal.SIGKILL)
    up.wait_for(printed("exited unexpectedly: killed by SIGKILL; restarting"))
    up.wait_for(lambda lines: sum("greeter | ready" in line for line in lines) == 2)
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(timeout=40) == 0, "\n".join(up.lines)


def test_process_that_ends_before_it_is_ready_stops_all(project: Project) -> None:
    project.write(TWO_SITES + '\n[services.broken]\nsite = "eu"\ncommand = ["python", "-c", "print(42)"]')
    up = project.start()
    assert up.child.wait(timeout=90) == 1
    up.wait_for(printed("broken exited before it was ready"))
    assert processes_with(f"MICRO_CONFIG={project.directory}") == []


def test_second_signal_stops_remaining_processes_at_once(project: Project) -> None:
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    project.write(TWO_SITES + f'\n[services.stubborn]\nsite = "eu"\ncommand = ["python", "-c", {json.dumps(stubborn)}]')
    up = project.start()
    up.wait_for(printed("all ready"), timeout_s=60)
    up.child.send_signal(signal.SIGINT)
    up.wait_for(printed("draining"))
    up.child.send_signal(signal.SIGINT)
    # After one signal, `micro up` waits up to 20 s for each of two groups of processes.
    assert up.child.wait(timeout=18) == 0
    assert processes_with(f"MICRO_CONFIG={project.directory}") == []
