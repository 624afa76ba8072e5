"""Creation of the drivers of a test, each in an environment like that of a separate process."""

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

_NODE_ID_CHARS = "abcdefghijklmnopqrstuvwxyz234567"


class Startable(Protocol):
    """The methods that the drivers of all roles have."""

    async def start(self) -> None:
        """Start the driver."""
        ...

    async def close(self) -> None:
        """Close the driver."""
        ...


T = TypeVar("T", bound=Startable)


_CLOCK_OFFSET_S = 100_000.0
_clock_numbers = itertools.count(1)


class ProcessClock:
    """A `Clock` whose `now` has a different zero in each instance, as in different processes; `wall` is the same in all.

    A driver that shares values of `now()` with other processes is therefore wrong by at least a day, as between machines.
    """

    def __init__(self) -> None:
        self._offset_s = next(_clock_numbers) * _CLOCK_OFFSET_S

    def now(self) -> float:
        """Return the monotonic time in seconds, with the offset of this clock."""
        return self._offset_s + time.monotonic()

    def wall(self) -> float:
        """Return the wall-clock time in seconds since 1970."""
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
    """Return a context with which a test can create a driver.

    Example: `create(AcmeOptions(), context(state_dir=str(tmp_path)))`. Each context is like that of a separate process: it
    has a node id of its own and, unless the test supplies them, counters and a clock of its own.

    Args:
        network: Name of the network.
        site: Name of the site.
        state_dir: Directory for files of the driver, e.g. the fixture `tmp_path` of pytest.
        clock: The clock; default: a clock whose `now` has a different zero in each context.
        counters: The counters; default: new counters in memory.
        logger: Name of the logger.
        registry: A started registry, for drivers of the roles broker and resolver.
        transport: A started transport, for drivers of the roles registry, broker and resolver.
    """
    return DriverContext(
        node_id="".join(secrets.choice(_NODE_ID_CHARS) for _ in range(32)),
        network=network,
        site=site,
        state_dir=state_dir,
        clock=ProcessClock() if clock is None else clock,
        random=random.Random(secrets.randbits(64)),  # noqa: S311 - not used for secrets
        logger=logging.getLogger(logger),
        counters=CountersInMemory() if counters is None else counters,
        registry=registry,
        transport=transport,
    )


@dataclass
class Harness(Generic[T]):
    """Creates the drivers of one test and closes them at its end.

    Each driver has a context of its own with a different node id, clock and counters, as in a separate process. All drivers
    of a test share a network, a site and a state directory, unless the test asks for others. No two tests share a network.
    """

    driver_under_test: DriverUnderTest[T]
    """The driver, its options and its fault handle."""
    state_dir: str
    """The state directory of all drivers of the test."""
    timeout_s: float
    """Time in seconds that `start` and `close` of a driver may take."""
    network: str = field(default_factory=lambda: f"kit.{secrets.token_hex(6)}")
    """The network of all drivers of the test, which no other test uses."""
    _open: dict[int, tuple[T, DriverContext]] = field(default_factory=dict)

    def context(self, *, network: str = "", site: str = "") -> DriverContext:
        """Return a new context, as another process on the site has it."""
        return context(
            network=network or self.network,
            site=site or "eu",
            state_dir=self.state_dir,
            logger=f"micro.kit.{self.driver_under_test.driver.name}",
            registry=self.driver_under_test.registry,
            transport=self.driver_under_test.transport,
        )

    def create(self, context: DriverContext | None = None) -> T:
        """Create a driver without starting it. It is closed at the end of the test."""
        driver = self.driver_under_test.driver
        context = context or self.context()
        options = driver.options() if self.driver_under_test.options is None else self.driver_under_test.options
        created: T = driver.create(options, context)
        self._open[id(created)] = created, context
        return created

    async def open(self, *, network: str = "", site: str = "") -> T:
        """Create and start a driver."""
        created = self.create(self.context(network=network, site=site))
        await within(self.timeout_s, created.start(), "start returns if the back end is available")
        return created

    async def close(self, driver: T) -> None:
        """Close a driver before the end of the test."""
        self._open.pop(id(driver), None)
        await within(self.timeout_s, driver.close(), "close returns")

    async def close_all(self) -> None:
        """Close all drivers that are still open, the newest first."""
        while self._open:
            await self.close(next(reversed(self._open.values()))[0])

    def context_of(self, driver: T) -> DriverContext:
        """Return the context with which a driver was created."""
        return self._open[id(driver)][1]

    def counters_of(self, driver: T) -> dict[str, int]:
        """Return the current values of the counters of a driver."""
        counters = self.context_of(driver).counters
        assert isinstance(counters, CountersInMemory)
        return dict(counters.values)


def running_tasks() -> set[asyncio.Task[object]]:
    """Return the tasks of the running event loop that are not done."""
    return {task for task in asyncio.all_tasks() if not task.done()}
