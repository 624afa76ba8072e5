"""Shutdown on signals: the first one is graceful, the second one immediate."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from micro_core.lifecycle import shutdown
from micro_core.lifecycle.shutdown import ShutdownSignals, run_until_signal

TIMEOUT_S = 5.0


@pytest.fixture(autouse=True)
async def default_handlers() -> AsyncIterator[None]:
    yield
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)


class Process:
    """Something that starts and stops, and notes the order of events."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.has_started = asyncio.Event()
        self.may_start = asyncio.Event()
        self.is_stopping = asyncio.Event()
        self.may_stop = asyncio.Event()

    async def start(self) -> None:
        await self.may_start.wait()
        self.events.append("start")

    def started(self) -> None:
        self.events.append("started")
        self.has_started.set()

    async def stop(self) -> None:
        self.is_stopping.set()
        self.events.append("stop")
        await self.may_stop.wait()
        self.events.append("end")

    async def run(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await run_until_signal(
                self.start, self.stop, started=self.started, stopping=lambda: self.events.append("stopping")
            )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_stops_gracefully(number: signal.Signals) -> None:
    process = Process()
    process.may_start.set()
    process.may_stop.set()
    running = asyncio.get_running_loop().create_task(process.run())
    await process.has_started.wait()
    os.kill(os.getpid(), number)
    await running
    assert process.events == ["start", "started", "stopping", "stop", "end"]


async def test_second_signal_cancels_the_shutdown() -> None:
    process = Process()
    process.may_start.set()
    running = asyncio.get_running_loop().create_task(process.run())
    await process.has_started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await process.is_stopping.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await running
    assert process.events == ["start", "started", "stopping", "stop"]


async def test_second_signal_cancels_each_remaining_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "CLOSE_STEP_S", 0.01)
    process = Process()
    process.may_start.set()
    steps: list[int] = []

    async def stop() -> None:
        process.is_stopping.set()
        for step in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                steps.append(step)

    process.stop = stop  # type: ignore[method-assign]
    running = asyncio.get_running_loop().create_task(process.run())
    await process.has_started.wait()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await process.is_stopping.wait()
    await running
    assert steps == [0, 1, 2]


async def test_signal_during_start_cancels_it_and_stops() -> None:
    process = Process()
    process.may_stop.set()
    running = asyncio.get_running_loop().create_task(process.run())
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert process.events == ["stop", "end"]


async def test_second_signal_cancels_the_cleanup_of_a_cancelled_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "CLOSE_STEP_S", 0.01)
    process = Process()
    process.may_stop.set()
    is_cleaning_up = asyncio.Event()

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_cleaning_up.set()
            await asyncio.Event().wait()

    process.start = start  # type: ignore[method-assign]
    running = asyncio.get_running_loop().create_task(process.run())
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await is_cleaning_up.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert process.events == ["stop", "end"]


async def test_error_of_a_cancelled_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    process.may_stop.set()

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("broken")

    process.start = start  # type: ignore[method-assign]
    running = asyncio.get_running_loop().create_task(process.run())
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert [record.message for record in caplog.records] == ["start failed while it was cancelled"]
    assert process.events == ["stop", "end"]


async def test_process_is_stopped_although_its_output_is_closed() -> None:
    process = Process()
    process.may_start.set()
    process.may_stop.set()

    def fail() -> None:
        raise BrokenPipeError

    process.started = fail  # type: ignore[method-assign]
    with pytest.raises(BrokenPipeError):
        await process.run()
    assert process.events == ["start", "stop", "end"]


async def test_process_is_stopped_although_its_output_is_closed_at_the_signal() -> None:
    process = Process()
    process.may_start.set()
    process.may_stop.set()

    def fail() -> None:
        raise BrokenPipeError

    running = asyncio.get_running_loop().create_task(
        run_until_signal(process.start, process.stop, started=process.started, stopping=fail)
    )
    await process.has_started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(BrokenPipeError):
        await running
    assert process.events == ["start", "started", "stop", "end"]


async def test_cancelled_run_cancels_the_start_and_stops() -> None:
    process = Process()
    process.may_stop.set()
    running = asyncio.get_running_loop().create_task(process.run())
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert process.events == ["stop", "end"]


async def test_failed_start_is_stopped_and_raised() -> None:
    process = Process()
    process.may_stop.set()

    async def fail() -> None:
        raise ValueError("broken")

    process.start = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="broken"):
        await process.run()
    assert process.events == ["stop", "end"]


async def test_error_of_the_shutdown_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    process.may_start.set()

    async def fail() -> None:
        raise ValueError("broken")

    process.stop = fail  # type: ignore[method-assign]
    running = asyncio.get_running_loop().create_task(process.run())
    await process.has_started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert [record.message for record in caplog.records] == ["shutdown failed"]


async def test_signals_are_counted_and_the_second_one_is_reported() -> None:
    reported: list[bool] = []
    signals = ShutdownSignals(on_immediate=lambda: reported.append(True))
    signals.receive()
    assert (signals.requested.is_set(), signals.immediate.is_set(), reported) == (True, False, [])
    signals.receive()
    assert (signals.immediate.is_set(), reported) == (True, [True])
