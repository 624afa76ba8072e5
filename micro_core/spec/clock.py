"""The two sources of nondeterminism, always handed in, so that a whole network can run on virtual time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time for measuring and for waiting, in seconds."""

    def now(self) -> float:
        """Monotonic seconds; the zero has no meaning. In asyncio shells this is `loop.time`."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people and for incarnations only: clocks of two hosts are never compared."""
        ...


class Random(Protocol):
    """What the house uses of `random.Random`."""

    def random(self) -> float: ...

    def uniform(self, a: float, b: float) -> float: ...

    def randrange(self, start: int, stop: int) -> int: ...

    def getrandbits(self, k: int) -> int: ...
