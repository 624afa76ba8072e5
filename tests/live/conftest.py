"""Fixtures that start nodes, services and commands as processes on the loopback interface, and terminate them."""

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

TIMEOUT_S = 20.0

MICRO = [sys.executable, "-m", "micro_core"]


@dataclass
class Process:
    """A child process and the lines it has printed. A thread reads its output, so that the pipe never fills up."""

    title: str
    child: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as output:
            for line in output:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[list[str]], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the printed lines satisfy `condition`. Raises AssertionError if the process ends or the time runs out first."""
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self.lines) or self.child.poll() is not None, timeout_s) or (
                not condition(self.lines)
            ):
                raise AssertionError(f"{self.title} did not print the expected output:\n" + "\n".join(self.lines))

    def wait_ready(self) -> None:
        """Wait until the process has printed that it is ready."""
        self.wait_for(lambda lines: any(line.startswith("ready") for line in lines))

    def kill(self) -> None:
        """Send SIGKILL and wait for the process to end."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> int:
        """Send SIGTERM, wait for the process to end, and return its exit code."""
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
    """A site and its configuration file, which all its nodes, services and commands use."""

    name: str
    config: Path
    address: str
    """Address at which the node accepts calls."""
    tunnel: str
    """Host and port at which the node accepts links, or `none`."""


class Lab:
    """The sites and processes of one test."""

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
        """Write the configuration file of a site and return the site.

        Args:
            name: Name of the site.
            joins: Sites whose nodes the node of this site dials.
            plugins: Names of plugins.
            listens: Whether the node accepts links.
            extra: Further text for the configuration file.
            node: Name of a further node of the same site. By default the name of the first node.
        """
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
        """Return the environment for processes of a site, without other MICRO_* variables."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        return {**clean, "MICRO_CONFIG": str(site.config), "PYTHONUNBUFFERED": "1", **extra}

    def start(self, title: str, site: Site, command: Sequence[str], **extra: str) -> Process:
        """Start a process. `extra` are environment variables."""
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
        """Start `micro run` for a site and wait until it is ready."""
        process = self.start(f"node {site.name}", site, [*MICRO, "run", *arguments])
        process.wait_ready()
        return process

    def python(self, title: str, site: Site, source: str, **extra: str) -> Process:
        """Start a Python program and wait until it has printed a line that begins with `ready`."""
        path = self.directory / f"{title}.py"
        path.write_text(source)
        process = self.start(title, site, [sys.executable, str(path)], **extra)
        process.wait_ready()
        return process

    def micro(self, site: Site, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a `micro` command and return its exit code and output."""
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
        """Run a `micro` command with --json, check that it succeeds, and return the decoded output."""
        done = self.micro(site, *arguments, "--json", **extra)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> float:
        """Poll `condition` until it is true and return the elapsed seconds. `what` describes it in the error."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout_s:
                output = "\n\n".join(f"{p.title}:\n" + "\n".join(p.lines[-30:]) for p in self.processes)
                raise AssertionError(f"not true within {timeout_s} s: {what}\n{output}")
            time.sleep(0.05)
        return time.monotonic() - started

    def close(self) -> None:
        """Stop all processes, the last one first."""
        for process in reversed(self.processes):
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.stop()


def new_lab() -> Iterator[Lab]:
    # Not tmp_path, which is too long: the path of a Unix socket has at most 108 characters.
    with tempfile.TemporaryDirectory(prefix="micro-") as directory:
        lab = Lab(Path(directory))
        try:
            yield lab
        finally:
            lab.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a lab for one test. Its processes are stopped at the end of the test."""
    yield from new_lab()


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """Return a lab for all tests of a module, which must not change its state."""
    yield from new_lab()
