"""The clock of the operating system. Only the lab uses another one."""

from __future__ import annotations

import time


class SystemClock:
    """`now` is `time.monotonic`, which is also asyncio's `loop.time`; `wall` is `time.time`."""

    __slots__ = ()

    now = staticmethod(time.monotonic)

    def wall(self) -> float:
        """Return the seconds since 1970 (UTC)."""
        return time.time()
