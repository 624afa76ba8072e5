"""`micro up`: the nodes and services of one file, in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import typer

from micro_core.cli.output import SERVICE_ERROR, UsageError, guarded, note, say_error, show_json, show_table
from micro_core.cli.up_file import ProcessPlan, read_plan
from micro_core.cli.up_processes import Processes, Say
from micro_core.contract.errors import ConfigError, MicroError

COLOURS = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")


def bring_up(file: str, *, check: bool, as_json: bool) -> None:
    """Start what `file` asks for and keep it up; with `check`, only read it."""

    def body() -> None:
        if as_json and not check:
            raise UsageError(
                "--json goes with --check: what is up goes on saying what it does", hint="micro up --check --json"
            )
        path = Path(file).expanduser()
        if not path.exists():
            raise ConfigError(f"there is no file {file}", hint="micro up -f FILE; its tables are in docs/up.md")
        plans = read_plan(path)
        if check:
            _show(plans, as_json=as_json)
            return
        code = asyncio.run(_run(plans))
        if code:
            raise typer.Exit(code)

    guarded(body, as_json=as_json)


def _show(plans: Sequence[ProcessPlan], *, as_json: bool) -> None:
    rows = [
        {
            "name": plan.name,
            "stage": plan.stage,
            "site": plan.site,
            "command": list(plan.command),
            "directory": str(plan.directory),
            "restart": plan.restart,
        }
        for plan in plans
    ]
    if as_json:
        show_json("micro.up/1", {"processes": rows})
        return
    cells = [[plan.name, plan.site, _shown(plan.command)] for plan in plans]
    show_table(["process", "site", "command"], cells, "nothing to start")


def _shown(command: Sequence[str]) -> str:
    words = ["micro", *command[3:]] if tuple(command[1:3]) == ("-m", "micro_core") else command
    return " ".join(words)


async def _run(plans: Sequence[ProcessPlan]) -> int:
    """Until a signal comes, or all have ended. Returns the exit code."""
    stopped = asyncio.Event()
    say = _Printer([plan.name for plan in plans], stopped).say
    processes = Processes(plans, say)
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if stopped.is_set():
            processes.hurry()
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    stopping = loop.create_task(stopped.wait())
    up = loop.create_task(_up(processes, say))
    await asyncio.wait({stopping, up}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    failure: MicroError | None = None
    if up.done() and isinstance(error := up.exception(), MicroError):
        failure = error
        say_error(error)
    elif up.done():
        up.result()
    # From here on a signal hurries.
    stopped.set()
    up.cancel()
    say("", "draining; again to hurry")
    await processes.stop()
    await asyncio.gather(up, stopping, return_exceptions=True)
    say("", "stopped")
    died = processes.failures
    if died:
        note(f"ended by themselves, and not well: {', '.join(died)}")
    return SERVICE_ERROR if died or failure is not None else 0


async def _up(processes: Processes, say: Say) -> None:
    await processes.start()
    say("", "all ready; Ctrl-C drains")
    await processes.wait()


class _Printer:
    """Lines behind the name of their process, each in one write; coloured on a terminal that wants it."""

    def __init__(self, names: Sequence[str], stopped: asyncio.Event) -> None:
        self._width = max(map(len, ("up", *names)))
        self._stopped = stopped
        is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        colours = dict(zip(names, cycle(COLOURS), strict=False)) if is_coloured else {}
        self._colours = {**colours, "up": "1"} if is_coloured else {}

    def say(self, name: str, line: str) -> None:
        name = name or "up"
        prefix = f"{name.ljust(self._width)} |"
        colour = self._colours.get(name)
        try:
            typer.echo((f"\x1b[{colour}m{prefix}\x1b[0m" if colour else prefix) + f" {line}\n", nl=False)
        except BrokenPipeError:
            # Nobody reads any more (`micro up | head`): end as for a signal.
            self._stopped.set()
