"""The processes of `micro up`: started stage by stage, read line by line, ended in the reverse order.

Each is a session of its own, so that Ctrl-C reaches `micro up` alone, which then ends them in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from itertools import groupby

from micro_core.cli.up_file import ProcessPlan
from micro_core.contract.errors import DeadlineExceeded, MicroError, Unreachable

GRACE_S = 20.0
"""How long a process may take to end: a node gives calls in flight ten seconds."""

HURRY_S = 3.0
"""The same once somebody is in a hurry."""

RESTART_FIRST_S = 0.5
RESTART_LAST_S = 10.0
LIVED_S = 30.0
"""A process that ran so long is started again at once; the pause doubles for one that keeps ending."""

MAX_LINE_BYTES = 16 * 1024
"""Longer lines are shown in pieces."""

Say = Callable[[str, str], None]
"""`say(process, line)`."""


class Running:
    """One process, and its restarts."""

    def __init__(self, plan: ProcessPlan, say: Say) -> None:
        self.plan = plan
        self.ready = asyncio.Event()
        self.over: asyncio.Task[None] | None = None
        """Done when it has ended for good."""
        self.failed = False
        """It ended by itself, and not well."""
        self.is_stopping = False
        self._say = say
        self._process: Process | None = None

    def begin(self) -> None:
        self.over = asyncio.get_running_loop().create_task(self._run())

    async def wait_ready(self) -> None:
        """Return when it serves. Raises Unreachable when it ends first, DeadlineExceeded."""
        assert self.over is not None
        ready = asyncio.get_running_loop().create_task(self.ready.wait())
        try:
            await asyncio.wait({ready, self.over}, timeout=self.plan.ready_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self.ready.is_set():
            return
        if self.over.done():
            self.over.result()
            raise Unreachable(f"{self.plan.name} ended before it was ready", hint="what it said is above")
        raise DeadlineExceeded(
            f"{self.plan.name} did not say {self.plan.ready!r} within {self.plan.ready_s:g} s",
            hint='ready = "" where it never says so',
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.is_stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it, and whatever it has started, at once."""
        self.is_stopping = True
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        pause_s = RESTART_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await self._live()
            if self.is_stopping:
                return
            what = _how_it_ended(code)
            if not self.plan.restart:
                self.failed = code != 0
                self._say(self.plan.name, f"ended by itself: {what}")
                return
            pause_s = RESTART_FIRST_S if loop.time() - began > LIVED_S else min(pause_s * 2, RESTART_LAST_S)
            self._say(self.plan.name, f"ended by itself: {what}; starting again in {pause_s:.3g} s")
            await asyncio.sleep(pause_s)
            if self.is_stopping:
                return

    async def _live(self) -> int:
        """From start to end; returns the exit code. Raises Unreachable when it cannot be started."""
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
            raise Unreachable(
                f"{plan.name} cannot be started: {error.strerror or error}", hint=plan.command[0]
            ) from error
        if self.is_stopping:
            process.send_signal(signal.SIGTERM)
        if not plan.ready:
            self.ready.set()
        assert process.stdout is not None
        reading = asyncio.get_running_loop().create_task(self._read(process.stdout))
        code = await process.wait()
        # What it has started may live on and keep the pipe open: its last words are waited for, and no more.
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
        self._say(self.plan.name, text)
        if self.plan.ready and text.startswith(self.plan.ready):
            self.ready.set()


class Processes:
    """All of them. `start` returns when they serve; `stop` when they have ended."""

    def __init__(self, plans: Sequence[ProcessPlan], say: Say) -> None:
        running = [Running(plan, say) for plan in plans]
        self._stages = [list(stage) for _, stage in groupby(running, key=lambda one: one.plan.stage)]
        self._running = running
        self._is_hurried = asyncio.Event()

    async def start(self) -> None:
        """Stage by stage, those of one stage together. Raises what the first that fails raises."""
        for stage in self._stages:
            for one in stage:
                one.begin()
            waiting = [asyncio.get_running_loop().create_task(one.wait_ready()) for one in stage]
            try:
                await asyncio.gather(*waiting)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    async def wait(self) -> None:
        """Return when every one has ended by itself."""
        # Not `gather`: whoever gives up waiting must not end the processes with it.
        await asyncio.wait({one.over for one in self._running if one.over is not None})

    async def stop(self) -> None:
        """SIGTERM, in the reverse order of the start; SIGKILL for those that do not end in time."""
        for one in self._running:
            # None is started again while the others end.
            one.is_stopping = True
        for stage in reversed(self._stages):
            standing = [one for one in stage if one.over is not None]
            for one in standing:
                one.signal(signal.SIGTERM)
            overs = {one.over for one in standing if one.over is not None}
            if not overs:
                continue
            await self._ended(overs)
            for one in standing:
                one.kill()
            await asyncio.wait(overs)

    def hurry(self) -> None:
        """Wait for nobody's calls: everything is told once more, which hurries a node, and killed soon after."""
        self._is_hurried.set()
        for one in self._running:
            one.signal(signal.SIGTERM)

    @property
    def failures(self) -> list[str]:
        """Those that ended by themselves, and not well."""
        return [one.plan.name for one in self._running if one.failed or _raised(one) is not None]

    async def _ended(self, overs: set[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        hurried = loop.create_task(self._is_hurried.wait())
        deadline = loop.time() + GRACE_S
        pending: set[asyncio.Task[None]] = set(overs)
        while pending and loop.time() < deadline:
            watched: set[asyncio.Task[object]] = {*pending}
            if not hurried.done():
                watched.add(hurried)
            await asyncio.wait(watched, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            pending = {task for task in pending if not task.done()}
            if self._is_hurried.is_set():
                deadline = min(deadline, loop.time() + HURRY_S)
                await asyncio.wait(pending, timeout=HURRY_S) if pending else None
                break
        hurried.cancel()
        await asyncio.gather(hurried, return_exceptions=True)


def _raised(one: Running) -> MicroError | None:
    if one.over is None or not one.over.done() or one.over.cancelled():
        return None
    error = one.over.exception()
    return error if isinstance(error, MicroError) else None


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
