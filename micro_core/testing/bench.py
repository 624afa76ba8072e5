"""Where a test has its drivers made, and what is left behind when they are gone."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from micro_core.spec import CountersInMemory, DriverContext
from micro_core.testing.subject import Subject
from micro_core.testing.waiting import within

_NODE_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


class Startable(Protocol):
    """What every role has."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


T = TypeVar("T", bound=Startable)


class SystemTime:
    """Implements `Clock` by the machine's own."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass
class Bench(Generic[T]):
    """Makes the drivers of one test, started, and closes them at its end.

    Each has a context of its own, with another node id and its own counters, as in another process. All share a
    network that no other test has, a site and a state directory, unless the test asks for others.
    """

    subject: Subject[T]
    state_dir: str
    patience_s: float
    network: str = field(default_factory=lambda: f"kit.{secrets.token_hex(6)}")
    _open: dict[int, tuple[T, DriverContext]] = field(default_factory=dict)

    def context(self, *, network: str = "", site: str = "") -> DriverContext:
        """A fresh context, as another process of the site would have."""
        return DriverContext(
            node_id="".join(secrets.choice(_NODE_ID_LETTERS) for _ in range(32)),
            network=network or self.network,
            site=site or "eu",
            state_dir=self.state_dir,
            clock=SystemTime(),
            random=random.Random(secrets.randbits(64)),  # noqa: S311 - draws, not secrets
            logger=logging.getLogger(f"micro.kit.{self.subject.driver.name}"),
            counters=CountersInMemory(),
            registry=self.subject.registry,
            transport=self.subject.transport,
        )

    def create(self, context: DriverContext | None = None) -> T:
        """A driver that is not started; closed at the end of the test."""
        driver = self.subject.driver
        context = context or self.context()
        options = driver.options() if self.subject.options is None else self.subject.options
        made: T = driver.create(options, context)
        self._open[id(made)] = made, context
        return made

    async def open(self, *, network: str = "", site: str = "") -> T:
        """A driver, started."""
        made = self.create(self.context(network=network, site=site))
        await within(self.patience_s, made.start(), "start returns when the back end is there")
        return made

    async def close(self, driver: T) -> None:
        """Close a driver now."""
        self._open.pop(id(driver), None)
        await within(self.patience_s, driver.close(), "close returns")

    async def close_all(self) -> None:
        """Close, newest first, what the test has not closed."""
        while self._open:
            await self.close(next(reversed(self._open.values()))[0])

    def context_of(self, driver: T) -> DriverContext:
        """The context with which a driver was made."""
        return self._open[id(driver)][1]

    def counted(self, driver: T) -> dict[str, int]:
        """What a driver has counted so far."""
        counters = self.context_of(driver).counters
        assert isinstance(counters, CountersInMemory)
        return dict(counters.values)


def running_tasks() -> set[asyncio.Task[object]]:
    """The tasks of this loop that are not done."""
    return {task for task in asyncio.all_tasks() if not task.done()}
