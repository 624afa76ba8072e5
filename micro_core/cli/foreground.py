"""A process in the foreground: up, until SIGINT or SIGTERM; a second signal does not wait for what is in flight."""

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
    """Start, introduce, wait for a signal, stop. A signal while it starts ends that, too. Raises what `start` does,
    a place that cannot be listened on as ConfigError.
    """
    stopped, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurry if stopped.is_set() else stopped).set())
    starting = loop.create_task(_started(start))
    waiting = loop.create_task(stopped.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        try:
            starting.result()
        except BaseException as error:
            waiting.cancel()
            await stop()
            if isinstance(error, (BadRequest, Conflict)):
                # Nobody was asked anything: what is wrong is an address, a port or a name among the settings.
                raise ConfigError(error.detail, at=error.at, hint=error.hint) from error
            raise
        introduce()
        calm_the_collector()
        await waiting
        say("draining; again to hurry")
    else:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    stopping, hurrying = loop.create_task(_started(stop)), loop.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
    hurrying.cancel()
    await asyncio.gather(stopping, hurrying, return_exceptions=True)
    say("stopped")


async def _started(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def calm_the_collector() -> None:
    """What stands now stands for good, and calls leave no cycles behind: looking for some seldom is enough."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def say(sentence: str) -> None:
    """A line on stdout, in one write: lines of several processes on one terminal stay whole."""
    typer.echo(sentence + "\n", nl=False)
