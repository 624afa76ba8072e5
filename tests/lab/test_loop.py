"""The event loop of the lab: virtual time, deterministic order, and detection of stuck programs."""

from __future__ import annotations

import asyncio

import pytest

from micro_core.lab import loop


def test_time_jumps_only_when_no_callback_is_ready() -> None:
    async def main() -> list[float]:
        running = asyncio.get_running_loop()
        times = [running.time()]
        for _ in range(3):
            await asyncio.sleep(0)
            times.append(running.time())
        await asyncio.sleep(3_600.0)
        return [*times, running.time()]

    assert loop.run(main()) == [0.0, 0.0, 0.0, 0.0, 3_600.0]


def test_timers_of_the_same_time_run_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        running, called = asyncio.get_running_loop(), list[int]()
        for number in range(50):
            running.call_at(1.0, called.append, number)
        running.call_at(0.5, called.append, -1)
        await asyncio.sleep(2.0)
        return called

    assert loop.run(main()) == [-1, *range(50)]


def test_cancelled_timers_never_run_and_are_removed() -> None:
    async def main() -> tuple[list[int], int]:
        running, called = asyncio.get_running_loop(), list[int]()
        for number in range(10 * loop.MAX_CANCELLED_TIMERS):
            running.call_later(60.0, called.append, number).cancel()
        waiting = len(running._timers)  # type: ignore[attr-defined]
        await asyncio.sleep(120.0)
        return called, waiting

    called, waiting = loop.run(main())
    assert called == []
    assert waiting <= 2 * loop.MAX_CANCELLED_TIMERS


def test_deadlock_is_detected() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(loop.LoopStalled, match="deadlock"):
        loop.run(main())


def test_endless_loop_without_progress_of_time_is_detected() -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()

        def again() -> None:
            running.call_later(0.0, again)

        again()
        await asyncio.sleep(1.0)

    with pytest.raises(loop.LoopStalled, match=r"virtual time does not advance beyond 0\.0"):
        loop.run(main())
