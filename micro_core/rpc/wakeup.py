"""A notification that any number of tasks can wait for. After each one they check their condition and wait again."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Wakes all tasks that wait. The cancellation of one waiting task does not affect the others."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            waiter = self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def wake(self) -> None:
        """Wake all tasks that wait now."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
