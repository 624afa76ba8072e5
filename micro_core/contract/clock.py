"""Time and random numbers as parameters, so that tests and the lab can run a network on virtual time from a seed."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time in seconds: `now` for values that stay in this process, `wall` for values that leave it."""

    def now(self) -> float:
        """Return the monotonic time in seconds, for pauses, ages and timeouts within one process.

        The origin of the scale is different in each process, so the value means nothing to another process, or to this
        one after a restart. Do not store or send it. In an asyncio program this is `loop.time()`. The conformance kits
        use a different origin for each driver.
        """
        ...

    def wall(self) -> float:
        """Return the seconds since 1970, for values that other processes read or that outlive this process.

        Examples are the expiry of a lease in a shared file or database, the time of an event, and an incarnation number.
        Processes on one machine share this clock. Clocks of two machines can differ, and leases that are compared across
        machines are then wrong by the difference; prefer the clock of the back end, e.g. the time to live of a key on a
        server. The clock can be set at any time, so do not measure durations within a process with it.
        """
        ...


class Random(Protocol):
    """The methods of `random.Random` that micro uses for jitter and selection. Use `secrets` for secrets."""

    def random(self) -> float:
        """Return a number x with 0 <= x < 1."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Return a number between `a` and `b`."""
        ...

    def randrange(self, start: int, stop: int) -> int:
        """Return an integer n with start <= n < stop."""
        ...

    def getrandbits(self, k: int) -> int:
        """Return a random integer n with 0 <= n < 2**k."""
        ...
