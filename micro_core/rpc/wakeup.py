"""A bell that any number of tasks wait for: they look again at what they wait on, then wait again."""

from __future__ import annotations

import asyncio


class Wakeup:
    """`wait` returns after the next `wake`; a task that is cancelled disturbs no other."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            waiter = self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
