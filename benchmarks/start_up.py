"""Compare the start-up time of `micro --help` with an empty typer app that has the same help. Prints medians.

    python benchmarks/start_up.py [--runs 21]

Compare CPU times, which other work on the machine does not affect. The runs are interleaved. All modules are compiled
beforehand, as an installer does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = "from micro_core.cli.main import main; main()"
# An app with the same help texts and no code of its own: the time that typer itself takes.
EMPTY = """
import typer

app = typer.Typer(name="micro", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help={help!r}, epilog={epilog!r})

@app.callback()
def options(peer: bool = typer.Option(False, "--peer", help="Join."), debug: bool = typer.Option(False, "--debug")):
    pass

def command():
    pass

for name, text in {commands!r}:
    app.command(name, help=text)(command)
for name, text in {groups!r}:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=text)
    group.command("one")(command)
    app.add_typer(group, name=name)
app(prog_name="micro")
"""


def empty_app() -> str:
    """Return a program with the same help as `micro`."""
    from micro_core.cli.main import app

    commands = [
        (command.name or str(getattr(command.callback, "__name__", "")), (command.callback.__doc__ or "").strip())
        for command in app.registered_commands
        if command.callback is not None
    ]
    groups = [
        (str(group.name), str(group.typer_instance.info.help))
        for group in app.registered_groups
        if group.typer_instance
    ]
    return EMPTY.format(help=app.info.help, epilog=app.info.epilog, commands=commands, groups=groups)


def compiled(directory: str) -> dict[str, str]:
    """Compile all imported modules into `directory`. Returns environment variables that use it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = directory
    for program in (OURS, empty_app()):
        subprocess.run(
            [sys.executable, "-c", program, "--help"], check=True, stdout=subprocess.DEVNULL, env=environment
        )
    return environment


def cost_ms(program: str, environment: dict[str, str]) -> tuple[float, float]:
    """Return (wall-clock time, CPU time) of one run in milliseconds."""
    started_at = time.perf_counter()
    with Path(os.devnull).open("wb") as devnull:
        child = subprocess.Popen([sys.executable, "-c", program, "--help"], stdout=devnull, env=environment)
        _, status, used = os.wait4(child.pid, 0)  # returns the resource usage of this child only
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, program
    return (time.perf_counter() - started_at) * 1000, (used.ru_utime + used.ru_stime) * 1000


def measure(runs: int, environment: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Measure each program `runs` times, in turn. A first run fills the caches and is ignored."""
    programs = {"micro --help": OURS, "empty app": empty_app(), "python": "pass"}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for run in range(runs + 1):
        for name, program in programs.items():
            cost = cost_ms(program, environment)
            if run:
                costs[name].append(cost)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=21, help="number of runs of each program")
    with tempfile.TemporaryDirectory(prefix="micro-bench-") as directory:
        costs = measure(parser.parse_args().runs, compiled(directory))
    medians = {
        name: [statistics.median(figures) for figures in zip(*found, strict=True)] for name, found in costs.items()
    }
    print(f"{'':14} {'wall':>10} {'CPU':>10}   medians, ms")
    for name, (wall, cpu) in medians.items():
        print(f"{name:14} {wall:10.1f} {cpu:10.1f}")
    difference = [ours - empty for ours, empty in zip(medians["micro --help"], medians["empty app"], strict=True)]
    print(f"{'difference':14} {difference[0]:10.1f} {difference[1]:10.1f}   limit: 20")


if __name__ == "__main__":
    main()
