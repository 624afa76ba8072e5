"""The body of `micro up`: runs the nodes and services of one file in the foreground."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import typer

from micro_core.cli.output import SERVICE_ERROR, UsageError, note, run_guarded, show_error, show_json, show_table
from micro_core.cli.up_file import read_plan
from micro_core.cli.up_processes import PrintLine, Processes
from micro_core.cli.up_tables import ProcessPlan
from micro_core.contract.errors import ConfigError, MicroError
from micro_core.lifecycle.shutdown import ShutdownSignals

COLOURS = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")


def bring_up(file: str, *, check: bool, as_json: bool) -> None:
    """Run the processes of `file` until a signal. With `check`, only read the file and print the processes.

    Raises typer.Exit when the file is invalid or a process failed.
    """

    def body() -> None:
        if as_json and not check:
            raise UsageError("--json requires --check: `micro up` prints the output of its processes")
        path = Path(file).expanduser()
        if not path.exists():
            raise ConfigError(
                f"file {file} does not exist", hint="select a file with -f FILE; docs/up.md describes its tables"
            )
        plans = read_plan(path)
        if check:
            _show(plans, as_json=as_json)
            return
        code = asyncio.run(_run(plans))
        if code:
            raise typer.Exit(code)

    run_guarded(body, as_json=as_json)


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
    cells = [[plan.name, plan.site, _short_command(plan.command)] for plan in plans]
    show_table(["process", "site", "command"], cells, "nothing to start")


def _short_command(command: Sequence[str]) -> str:
    """Return a command line in which `python -m micro_core` is written as `micro`."""
    is_micro = tuple(command[1:3]) == ("-m", "micro_core")
    return " ".join(["micro", *command[3:]] if is_micro else command)


async def _run(plans: Sequence[ProcessPlan]) -> int:
    """Run the processes until a signal arrives or all of them have exited. Returns the exit code."""
    signals = ShutdownSignals(on_immediate=lambda: processes.stop_immediately())
    stopped = signals.requested
    print_line = _Printer([plan.name for plan in plans], stopped).print_line
    processes = Processes(plans, print_line)
    signals.install()
    loop = asyncio.get_running_loop()
    stopping = loop.create_task(stopped.wait())
    up = loop.create_task(_up(processes, print_line))
    await asyncio.wait({stopping, up}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    failure: MicroError | None = None
    if up.done() and isinstance(error := up.exception(), MicroError):
        failure = error
        show_error(error)
    elif up.done():
        up.result()
    # From now on, a signal kills the processes immediately, even if it is the first one.
    stopped.set()
    up.cancel()
    print_line("", "draining; press Ctrl-C again to stop immediately")
    await processes.stop()
    await asyncio.gather(up, stopping, return_exceptions=True)
    print_line("", "stopped")
    failed = processes.failures
    if failed:
        note(f"exited unexpectedly with an error: {', '.join(failed)}")
    return SERVICE_ERROR if failed or failure is not None else 0


async def _up(processes: Processes, print_line: PrintLine) -> None:
    await processes.start()
    print_line("", "all ready; press Ctrl-C to stop")
    await processes.wait()


class _Printer:
    """Prints each line after the name of its process, in one write. Names are coloured on a terminal."""

    def __init__(self, names: Sequence[str], stopped: asyncio.Event) -> None:
        self._width = max(map(len, ("up", *names)))
        self._stopped = stopped
        is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        colours = dict(zip(names, cycle(COLOURS), strict=False)) if is_coloured else {}
        self._colours = {**colours, "up": "1"} if is_coloured else {}

    def print_line(self, name: str, line: str) -> None:
        name = name or "up"
        prefix = f"{name.ljust(self._width)} |"
        colour = self._colours.get(name)
        try:
            typer.echo((f"\x1b[{colour}m{prefix}\x1b[0m" if colour else prefix) + f" {line}\n", nl=False)
        except BrokenPipeError:
            # The reader has closed the pipe (`micro up | head`). Stop as for a signal.
            self._stopped.set()
