"""What the author supplies: the driver that is tested, and a handle to hurt its back end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from micro_core.contract import Driver, DriverContext, Registry, Transport

T = TypeVar("T")


class Faults:
    """A handle on the back end. Write the methods that it allows; a part that needs another is skipped, and says so.

    Each returns when the fault is in force. They are called in the test's event loop and should not hold it up for
    longer than a moment. One part may call a method more than once (`garbage` twice, the second time on top of the
    first), and each must allow it. The back end should be the test's own: parts leave it running, but not as it was.
    """

    async def kill(self) -> None:
        """End the back end at once, as SIGKILL does. For a tunnel or transport: break the path between the ends."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Start it again at the same place, after `kill`, with the data it had."""
        raise NotImplementedError

    async def wipe(self) -> None:
        """Start it again at the same place, after `kill`, with no data."""
        raise NotImplementedError

    async def pause(self) -> None:
        """Stop it from answering while connections stay open, as SIGSTOP does."""
        raise NotImplementedError

    async def resume(self) -> None:
        """Let it go on after `pause`, as SIGCONT does."""
        raise NotImplementedError

    async def garbage(self, context: DriverContext) -> None:
        """Write, where a driver with this context reads, what no driver wrote: wrong types, half of a record, bytes.

        A broker's goes to the topic `orders.created`, which the kit subscribes.
        """
        raise NotImplementedError

    def can(self, verb: str) -> bool:
        """Whether the author wrote the method of this name."""
        return getattr(type(self), verb) is not getattr(Faults, verb)


@dataclass(frozen=True, kw_only=True)
class DriverUnderTest(Generic[T]):
    """What is tested: the value of the fixture `driver_under_test`."""

    driver: Driver[T]
    """As the plugin's hook returns it."""
    options: Any = None
    """An instance of `driver.options`; None for the defaults."""
    faults: Faults | None = None
    """None: the parts that need faults are skipped."""
    capabilities: frozenset[str] | None = None
    """What holds with these options; None for what the driver declares."""
    registry: Registry | None = None
    """Lent to the driver in its context, started, for those that need one."""
    transport: Transport | None = None
    """Lent to the driver in its context, started, for those that need one."""

    @property
    def promises(self) -> frozenset[str]:
        """The capabilities that are demanded."""
        return self.driver.capabilities if self.capabilities is None else self.capabilities
