"""Runs a process in the foreground until SIGINT or SIGTERM. A second signal stops it without waiting for calls."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable

import typer

from micro_core.contract.errors import BadRequest, ConfigError, Conflict


async def until_stopped(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], introduce: Callable[[], None]
) -> None:
    """Run `start`, call `introduce`, wait for a signal, and run `stop`. A signal during `start` cancels it.

    Raises the error of `start`. BadRequest and Conflict become ConfigError, because they come from the settings.
    """
    stopped, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurry if stopped.is_set() else stopped).set())
    starting = loop.create_task(_awaited(start))
    waiting = loop.create_task(stopped.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        try:
            starting.result()
        except BaseException as error:
            waiting.cancel()
            await stop()
            if isinstance(error, (BadRequest, Conflict)):
                # The process has made no calls yet, so an address, a port or a name in the settings is wrong.
                raise ConfigError(error.detail, at=error.at, hint=error.hint) from error
            raise
        introduce()
        reduce_garbage_collection()
        await waiting
        print_line("draining; press Ctrl-C again to stop immediately")
    else:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    stopping, hurrying = loop.create_task(_awaited(stop)), loop.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
    hurrying.cancel()
    await asyncio.gather(stopping, hurrying, return_exceptions=True)
    print_line("stopped")


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def reduce_garbage_collection() -> None:
    """Exclude all existing objects from garbage collection and collect rarely: calls create no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def print_line(line: str) -> None:
    """Print a line in one write, so that lines of several processes on one terminal are not mixed."""
    typer.echo(line + "\n", nl=False)
