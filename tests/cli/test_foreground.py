"""Processes in the foreground keep to the signals, also when the reader of their output is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from micro_core.cli import foreground
from micro_core.cli.foreground import print_line, report_line, until_stopped
from micro_core.cli.output import discard_output


@pytest.fixture(autouse=True)
async def default_handlers() -> AsyncIterator[None]:
    yield
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)


@contextlib.contextmanager
def closed_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the body with a pipe as standard output whose reader has closed it."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as output, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", output)
        yield
        discard_output()


async def test_report_to_a_closed_pipe_stops_the_process_gracefully(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "reduce_garbage_collection", lambda: None)
    may_stop = asyncio.Event()
    stopped: list[bool] = []

    async def start() -> None: ...

    async def stop() -> None:
        # Further reports are discarded. They do not count as a second signal.
        report_line("waiting for the tunnel")
        await may_stop.wait()
        stopped.append(True)

    def introduce() -> None:
        report_line("linked")
        asyncio.get_running_loop().call_later(0.05, may_stop.set)

    with closed_output(monkeypatch):
        async with asyncio.timeout(5):
            await until_stopped(start, stop, introduce)
    assert stopped == [True]


async def test_introduction_on_a_closed_pipe_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    async def start() -> None: ...

    async def stop() -> None:
        stopped.append(True)

    with closed_output(monkeypatch):
        async with asyncio.timeout(5):
            with pytest.raises(BrokenPipeError):
                await until_stopped(start, stop, lambda: print_line("ready"))
    assert stopped == [True]
