"""Where a test has its drivers made, and what is left behind when they are gone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from micro_core.contract import Clock, Counters, CountersInMemory, DriverContext, Registry, Transport
from micro_core.testing.kit.driver_under_test import DriverUnderTest
from micro_core.testing.kit.waiting import within

_NODE_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


class Startable(Protocol):
    """What every role has."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


T = TypeVar("T", bound=Startable)


_BETWEEN_ZEROS_S = 100_000.0
_zeros = itertools.count(1)


class ProcessClock:
    """Implements `Clock` as one process of several has it: `wall` is everybody's, `now` has a zero of its own.

    So a `now()` that a driver wrote where others read it is wrong by a day at least, as between two machines.
    """

    def __init__(self) -> None:
        self._zero = next(_zeros) * _BETWEEN_ZEROS_S

    def now(self) -> float:
        return self._zero + time.monotonic()

    def wall(self) -> float:
        return time.time()


def context(
    *,
    network: str = "go.micro",
    site: str = "eu",
    state_dir: str = "",
    clock: Clock | None = None,
    counters: Counters | None = None,
    logger: str = "micro.test",
    registry: Registry | None = None,
    transport: Transport | None = None,
) -> DriverContext:
    """What core would lend a driver, for a test that makes one: `create(AcmeOptions(), context(state_dir=str(tmp_path)))`.

    As in a process of its own: another node id, and, where the test gives none, counters and a clock whose monotonic
    zero is another each time. Without `state_dir` there is none: a driver that keeps files wants pytest's `tmp_path`.
    """
    return DriverContext(
        node_id="".join(secrets.choice(_NODE_ID_LETTERS) for _ in range(32)),
        network=network,
        site=site,
        state_dir=state_dir,
        clock=ProcessClock() if clock is None else clock,
        random=random.Random(secrets.randbits(64)),  # noqa: S311 - draws, not secrets
        logger=logging.getLogger(logger),
        counters=CountersInMemory() if counters is None else counters,
        registry=registry,
        transport=transport,
    )


@dataclass
class Harness(Generic[T]):
    """Makes the drivers of one test, started, and closes them at its end.

    Each has a context of its own, with another node id, its own counters and its own zero of monotonic time, as in
    another process. All share a network that no other test has, a site and a state directory, unless the test asks for
    others.
    """

    driver_under_test: DriverUnderTest[T]
    state_dir: str
    patience_s: float
    network: str = field(default_factory=lambda: f"kit.{secrets.token_hex(6)}")
    _open: dict[int, tuple[T, DriverContext]] = field(default_factory=dict)

    def context(self, *, network: str = "", site: str = "") -> DriverContext:
        """A fresh context, as another process of the site would have."""
        return context(
            network=network or self.network,
            site=site or "eu",
            state_dir=self.state_dir,
            logger=f"micro.kit.{self.driver_under_test.driver.name}",
            registry=self.driver_under_test.registry,
            transport=self.driver_under_test.transport,
        )

    def create(self, context: DriverContext | None = None) -> T:
        """A driver that is not started; closed at the end of the test."""
        driver = self.driver_under_test.driver
        context = context or self.context()
        options = driver.options() if self.driver_under_test.options is None else self.driver_under_test.options
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
