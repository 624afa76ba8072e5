"""The clock of the operating system. Only the lab uses another one."""

from __future__ import annotations

import functools
import time


class SystemClock:
    """`now` is `time.monotonic`, which is also asyncio's `loop.time`; `wall` is `time.time`.

    `elapsed` also counts the time for which the system was suspended, where the system offers such a clock
    (`CLOCK_BOOTTIME` of Linux). On other systems it is `now`, which counts that time on macOS and Windows only.
    """

    __slots__ = ()

    now = staticmethod(time.monotonic)
    elapsed = (
        functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        if hasattr(time, "CLOCK_BOOTTIME")
        else staticmethod(time.monotonic)
    )

    def wall(self) -> float:
        """Return the seconds since 1970 (UTC)."""
        return time.time()
