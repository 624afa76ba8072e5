"""Runs a process in the foreground until SIGINT or SIGTERM. A second signal stops it without waiting for calls."""

from __future__ import annotations

import gc
import signal
from collections.abc import Awaitable, Callable

import typer

from micro_core.cli.output import discard_output
from micro_core.contract.errors import BadRequest, ConfigError, Conflict
from micro_core.lifecycle.shutdown import run_until_signal


async def until_stopped(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], introduce: Callable[[], None]
) -> None:
    """Run `start`, call `introduce`, wait for a signal, and run `stop`. A signal during `start` cancels it.

    Raises the error of `start`. BadRequest and Conflict become ConfigError, because they come from the settings.
    """

    def started() -> None:
        introduce()
        reduce_garbage_collection()

    try:
        await run_until_signal(
            start,
            stop,
            started=started,
            stopping=lambda: print_line("draining; press Ctrl-C again to stop immediately"),
        )
    except (BadRequest, Conflict) as error:
        # The process has made no calls yet, so an address, a port or a name in the settings is wrong.
        raise ConfigError(error.detail, at=error.at, hint=error.hint) from error
    print_line("stopped")


def reduce_garbage_collection() -> None:
    """Exclude all existing objects from garbage collection and collect rarely: calls create no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def report_line(line: str) -> None:
    """Print a line while the process runs. If the reader has closed the pipe, stop the process as SIGTERM does.

    Raises nothing: the caller is a component, which must not fail because its output is closed.
    """
    try:
        print_line(line)
    except BrokenPipeError:
        discard_output()
        signal.raise_signal(signal.SIGTERM)


def print_line(line: str) -> None:
    """Print a line in one write, so that lines of several processes on one terminal are not mixed."""
    typer.echo(line + "\n", nl=False)
