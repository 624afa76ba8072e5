"""The two sources of nondeterminism, always handed in, so that a whole network can run on virtual time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time for measuring and for waiting, in seconds: `now` for what stays in this process, `wall` for what leaves it."""

    def now(self) -> float:
        """Monotonic seconds, for everything that is measured within one process: pauses, ages, timeouts.

        The zero is this process's own, so the number means nothing to another process, another machine, or this one
        started again: never store it or send it. In asyncio shells this is `loop.time`; a kit gives each of its drivers
        another zero.
        """
        ...

    def wall(self) -> float:
        """Seconds since 1970, for what other processes read and what outlives this one: the end of a lease in a file or
        a database that several share, the time of an event, an incarnation; and for people.

        Processes of one machine share it. Those of two machines agree as far as their clocks are kept right, so lease
        times there are as wrong as the clocks are: a back end with a clock of its own (a key's time to live on a
        server) is the better judge. People may set it: nothing within one process is measured by it.
        """
        ...


class Random(Protocol):
    """What the house uses of `random.Random`, for spreading and drawing: never for secrets, which are of `secrets`."""

    def random(self) -> float:
        """From 0, included, to 1, excluded."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Between `a` and `b`."""
        ...

    def randrange(self, start: int, stop: int) -> int:
        """From `start`, included, to `stop`, excluded."""
        ...

    def getrandbits(self, k: int) -> int:
        """A whole number of `k` bits."""
        ...
