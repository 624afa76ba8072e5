"""Real processes on loopback: nodes, services and commands, each started here and ended here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port

PATIENCE_S = 20.0

MICRO = [sys.executable, "-m", "micro_core"]


@dataclass
class Process:
    """A child and what it has said; a thread reads along, so that no pipe ever fills."""

    title: str
    child: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as said:
            for line in said:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, wanted: Callable[[list[str]], bool], timeout_s: float = PATIENCE_S) -> None:
        """Until what was said satisfies `wanted`."""
        with self.changed:
            if not self.changed.wait_for(lambda: wanted(self.lines) or self.child.poll() is not None, timeout_s) or (
                not wanted(self.lines)
            ):
                raise AssertionError(f"{self.title} did not say it:\n" + "\n".join(self.lines))

    def wait_ready(self) -> None:
        self.wait_for(lambda lines: any(line.startswith("ready") for line in lines))

    def kill(self) -> None:
        """As `kill -9`."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"{self.title} did not stop on SIGTERM:\n" + "\n".join(self.lines)) from None
        finally:
            self._reader.join(timeout=5)


@dataclass
class Site:
    """One site's settings: every node, service and command of it shares them."""

    name: str
    config: Path
    address: str
    """Where the node takes calls."""
    tunnel: str
    """Where the node is linked to."""


class Lab:
    """Sites and processes of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []
        (directory / "state").mkdir(mode=0o700)

    def site(
        self,
        name: str,
        *,
        joins: Sequence[Site] = (),
        plugins: Sequence[str] = ("quic",),
        listens: bool = True,
        extra: str = "",
        node: str = "",
    ) -> Site:
        """Write a site's micro.toml. `listens=False`: its node only dials out. `node` names one more node of a site."""
        node_name = node or f"{name}-1"
        address = f"tcp://127.0.0.1:{free_port()}"
        listen = f"127.0.0.1:{free_port()}" if listens else "none"
        config = self.directory / f"{node or name}.toml"
        settings = {
            "name": node_name,
            "site": name,
            "address": address,
            "listen": listen,
            "nodes": [f"quic://{site.tunnel}" for site in joins],
            "plugins": list(plugins),
            "state_dir": str(self.directory / "state"),
        }
        lines = ["[node]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), extra]
        config.write_text("\n".join(lines) + "\n")
        return Site(name=name, config=config, address=address, tunnel=listen)

    def environment(self, site: Site, **extra: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        return {**clean, "MICRO_CONFIG": str(site.config), "PYTHONUNBUFFERED": "1", **extra}

    def start(self, title: str, site: Site, command: Sequence[str], **extra: str) -> Process:
        child = subprocess.Popen(
            list(command),
            env=self.environment(site, **extra),
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process = Process(title, child)
        self.processes.append(process)
        return process

    def node(self, site: Site, *arguments: str) -> Process:
        """`micro run` for a site, ready."""
        process = self.start(f"node {site.name}", site, [*MICRO, "run", *arguments])
        process.wait_ready()
        return process

    def python(self, title: str, site: Site, source: str, **extra: str) -> Process:
        """A program of the test's own, ready."""
        path = self.directory / f"{title}.py"
        path.write_text(source)
        process = self.start(title, site, [sys.executable, str(path)], **extra)
        process.wait_ready()
        return process

    def micro(self, site: Site, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*MICRO, *arguments],
            env=self.environment(site, **extra),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def json(self, site: Site, *arguments: str, **extra: str) -> Any:
        """Run a command with --json; its answer."""
        done = self.micro(site, *arguments, "--json", **extra)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> float:
        """Ask until it is so; returns the seconds it took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout_s:
                said = "\n\n".join(f"{p.title}:\n" + "\n".join(p.lines[-30:]) for p in self.processes)
                raise AssertionError(f"not within {timeout_s} s: {what}\n{said}")
            time.sleep(0.05)
        return time.monotonic() - started

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.stop()


def new_lab() -> Iterator[Lab]:
    # Not tmp_path: its length would not leave room for the name of a Unix socket.
    with tempfile.TemporaryDirectory(prefix="micro-") as directory:
        lab = Lab(Path(directory))
        try:
            yield lab
        finally:
            lab.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A place for sites and processes; everything is ended at the end."""
    yield from new_lab()


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """The same, for all tests of a module: they look, and change nothing."""
    yield from new_lab()
