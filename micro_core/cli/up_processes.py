"""The processes of `micro up`: started stage by stage, and stopped in reverse order.

Each process runs in a session of its own. Ctrl-C therefore reaches only `micro up`, which stops the others in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from itertools import groupby

from micro_core.cli.up_tables import ProcessPlan
from micro_core.contract.errors import DeadlineExceeded, MicroError, Unreachable

GRACE_S = 20.0
"""Seconds that a process has to exit after SIGTERM. A node waits ten seconds for calls in progress."""

IMMEDIATE_STOP_S = 3.0
"""Seconds that a process has to exit after a second signal."""

INITIAL_RESTART_DELAY_S = 0.5
MAX_RESTART_DELAY_S = 10.0
STABLE_S = 30.0
"""A process that ran for this long is restarted after the initial delay. Otherwise, the delay doubles."""

MAX_LINE_BYTES = 16 * 1024
"""Longer lines are printed in pieces."""

PrintLine = Callable[[str, str], None]
"""Prints a line of a process: `print_line(process, line)`. The empty name stands for `micro up` itself."""


class RunningProcess:
    """One process, including its restarts."""

    def __init__(self, plan: ProcessPlan, print_line: PrintLine) -> None:
        self.plan = plan
        self.ready = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        """Done when the process has exited and is not restarted. None until `begin`."""
        self.failed = False
        """Whether the process exited unexpectedly with an error."""
        self.is_stopping = False
        self._print_line = print_line
        self._process: Process | None = None

    def begin(self) -> None:
        """Start the process in a task."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def wait_ready(self) -> None:
        """Return when the process has reported that it is ready.

        Raises Unreachable if it exits first, DeadlineExceeded if the time limit of its plan expires.
        """
        assert self.task is not None
        ready = asyncio.get_running_loop().create_task(self.ready.wait())
        try:
            await asyncio.wait({ready, self.task}, timeout=self.plan.ready_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self.ready.is_set():
            return
        if self.task.done():
            self.task.result()
            raise Unreachable(f"{self.plan.name} exited before it was ready", hint="see its output above")
        raise DeadlineExceeded(
            f"{self.plan.name} did not print {self.plan.ready!r} within {self.plan.ready_s:g} s",
            hint='set ready = "" if it never prints such a line',
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process and do not restart it."""
        self.is_stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and all processes that it has started."""
        self.is_stopping = True
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        delay_s = INITIAL_RESTART_DELAY_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._run_once()
            if self.is_stopping:
                return
            reason = _exit_reason(code)
            if not self.plan.restart:
                self.failed = code != 0
                self._print_line(self.plan.name, f"exited unexpectedly: {reason}")
                return
            is_stable = loop.time() - started > STABLE_S
            delay_s = INITIAL_RESTART_DELAY_S if is_stable else min(delay_s * 2, MAX_RESTART_DELAY_S)
            self._print_line(self.plan.name, f"exited unexpectedly: {reason}; restarting in {delay_s:.3g} s")
            await asyncio.sleep(delay_s)
            if self.is_stopping:
                return

    async def _run_once(self) -> int:
        """Start the process, wait until it exits, and return its exit code. Raises Unreachable if it cannot start."""
        plan = self.plan
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *plan.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                env=dict(plan.environment),
                cwd=plan.directory,
                start_new_session=True,
            )
        except OSError as error:
            raise Unreachable(f"cannot start {plan.name}: {error.strerror or error}", hint=plan.command[0]) from error
        if self.is_stopping:
            process.send_signal(signal.SIGTERM)
        if not plan.ready:
            self.ready.set()
        assert process.stdout is not None
        reading = asyncio.get_running_loop().create_task(self._read(process.stdout))
        code = await process.wait()
        # Processes that it has started may keep the pipe open, so the wait for the rest of the output is limited.
        await asyncio.wait({reading}, timeout=1.0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return code

    async def _read(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while data := await stream.read(65_536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._line(line)
            while len(rest) > MAX_LINE_BYTES:
                self._line(rest[:MAX_LINE_BYTES])
                rest = rest[MAX_LINE_BYTES:]
        if rest:
            self._line(rest)

    def _line(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip("\r")
        self._print_line(self.plan.name, text)
        if self.plan.ready and text.startswith(self.plan.ready):
            self.ready.set()


class Processes:
    """All processes of a file."""

    def __init__(self, plans: Sequence[ProcessPlan], print_line: PrintLine) -> None:
        running = [RunningProcess(plan, print_line) for plan in plans]
        self._stages = [list(stage) for _, stage in groupby(running, key=lambda process: process.plan.stage)]
        self._running = running
        self._stops_immediately = asyncio.Event()

    async def start(self) -> None:
        """Start the processes stage by stage, and return when all are ready.

        Raises the error of the first process that fails: Unreachable or DeadlineExceeded.
        """
        for stage in self._stages:
            for process in stage:
                process.begin()
            waiting = [asyncio.get_running_loop().create_task(process.wait_ready()) for process in stage]
            try:
                await asyncio.gather(*waiting)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    async def wait(self) -> None:
        """Return when all processes have exited. Cancelling this does not stop them."""
        # `asyncio.gather` would cancel the tasks of the processes.
        await asyncio.wait({process.task for process in self._running if process.task is not None})

    async def stop(self) -> None:
        """Send SIGTERM in reverse order of the start, and SIGKILL to each process that does not exit in time."""
        for process in self._running:
            # Prevents a restart while the other processes stop.
            process.is_stopping = True
        for stage in reversed(self._stages):
            started = [process for process in stage if process.task is not None]
            for process in started:
                process.signal(signal.SIGTERM)
            tasks = {process.task for process in started if process.task is not None}
            if not tasks:
                continue
            await self._wait_for_exit(tasks)
            for process in started:
                process.kill()
            await asyncio.wait(tasks)

    def stop_immediately(self) -> None:
        """Do not wait for calls in progress: send a second SIGTERM to all processes, and SIGKILL soon after."""
        self._stops_immediately.set()
        for process in self._running:
            process.signal(signal.SIGTERM)

    @property
    def failures(self) -> list[str]:
        """The names of the processes that exited unexpectedly with an error or could not be started."""
        return [process.plan.name for process in self._running if process.failed or _start_error(process) is not None]

    async def _wait_for_exit(self, tasks: set[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        immediate = loop.create_task(self._stops_immediately.wait())
        deadline = loop.time() + GRACE_S
        pending: set[asyncio.Task[None]] = set(tasks)
        while pending and loop.time() < deadline:
            watched: set[asyncio.Task[object]] = {*pending}
            if not immediate.done():
                watched.add(immediate)
            await asyncio.wait(watched, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            pending = {task for task in pending if not task.done()}
            if self._stops_immediately.is_set():
                deadline = min(deadline, loop.time() + IMMEDIATE_STOP_S)
                await asyncio.wait(pending, timeout=IMMEDIATE_STOP_S) if pending else None
                break
        immediate.cancel()
        await asyncio.gather(immediate, return_exceptions=True)


def _start_error(process: RunningProcess) -> MicroError | None:
    if process.task is None or not process.task.done() or process.task.cancelled():
        return None
    error = process.task.exception()
    return error if isinstance(error, MicroError) else None


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
