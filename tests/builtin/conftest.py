"""The driver context for tests of the built-in drivers."""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from micro_core.contract import CountersInMemory, DriverContext, Registry


class RealClock:
    """The clocks of the system."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


MakeContext = Callable[..., DriverContext]


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    def make(
        *, network: str = "go.micro", site: str = "eu", registry: Registry | None = None, node_id: str = "a" * 32
    ) -> DriverContext:
        return DriverContext(
            node_id=node_id,
            network=network,
            site=site,
            state_dir=str(tmp_path / "state"),
            clock=RealClock(),
            random=random.Random(7),
            logger=logging.getLogger("test"),
            counters=CountersInMemory(),
            registry=registry,
        )

    return make
