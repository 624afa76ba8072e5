"""The lab's loop: time jumps, in an order that is always the same, and never stands still unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from micro_core.lab import loop


def test_hours_pass_in_a_moment_and_only_when_nothing_is_left_to_do() -> None:
    async def main() -> list[float]:
        running = asyncio.get_running_loop()
        times = [running.time()]
        for _ in range(3):
            await asyncio.sleep(0)
            times.append(running.time())
        await asyncio.sleep(3_600.0)
        return [*times, running.time()]

    assert loop.run(main()) == [0.0, 0.0, 0.0, 0.0, 3_600.0]


def test_timers_of_one_moment_go_off_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        running, heard = asyncio.get_running_loop(), list[int]()
        for number in range(50):
            running.call_at(1.0, heard.append, number)
        running.call_at(0.5, heard.append, -1)
        await asyncio.sleep(2.0)
        return heard

    assert loop.run(main()) == [-1, *range(50)]


def test_cancelled_timers_never_go_off_and_do_not_pile_up() -> None:
    async def main() -> tuple[list[int], int]:
        running, heard = asyncio.get_running_loop(), list[int]()
        for number in range(10 * loop.FORGET_FROM):
            running.call_later(60.0, heard.append, number).cancel()
        waiting = len(running._timers)  # type: ignore[attr-defined]
        await asyncio.sleep(120.0)
        return heard, waiting

    heard, waiting = loop.run(main())
    assert heard == []
    assert waiting <= 2 * loop.FORGET_FROM


def test_waiting_for_what_never_comes_is_told() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(loop.Stuck, match="everybody waits"):
        loop.run(main())


def test_who_is_busy_for_ever_at_one_moment_is_told_too() -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()

        def again() -> None:
            running.call_later(0.0, again)

        again()
        await asyncio.sleep(1.0)

    with pytest.raises(loop.Stuck, match=r"time stands still at 0\.0"):
        loop.run(main())
