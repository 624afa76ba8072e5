"""The objects that the author of a driver supplies to a kit: the driver under test, and a handle to inject faults into its back end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from micro_core.contract import Driver, DriverContext, Registry, Transport

T = TypeVar("T")


class Faults:
    """A handle to inject faults into the back end. Override the methods that your back end supports.

    Checks that need other methods are skipped, and the report contains the reason. Each method returns when the fault is in effect. The
    methods run in the event loop of the test and must not block it. A check may call a method more than once (`garbage`
    twice in a row), so each must support that. Give the tests a back end of their own: checks leave it running, but they
    change its data.
    """

    async def kill(self) -> None:
        """Stop the back end immediately, like SIGKILL. For a tunnel or transport: break the connection between the ends."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Start the back end again after `kill`, at the same address and with its data."""
        raise NotImplementedError

    async def wipe(self) -> None:
        """Start the back end again after `kill`, at the same address and without data."""
        raise NotImplementedError

    async def pause(self) -> None:
        """Stop the back end from answering while its connections stay open, like SIGSTOP."""
        raise NotImplementedError

    async def resume(self) -> None:
        """Let the back end continue after `pause`, like SIGCONT."""
        raise NotImplementedError

    async def garbage(self, context: DriverContext) -> None:
        """Write invalid data where a driver with this context reads it: wrong types, half a record, random bytes.

        For a broker, publish it to the topic `orders.created`, to which the kit subscribes.
        """
        raise NotImplementedError

    def supports(self, fault: str) -> bool:
        """Return whether the method with this name is overridden."""
        return getattr(type(self), fault) is not getattr(Faults, fault)


@dataclass(frozen=True, kw_only=True)
class DriverUnderTest(Generic[T]):
    """The driver that a kit tests: the value of the fixture `driver_under_test`."""

    driver: Driver[T]
    """The description that the hook of the plugin returns."""
    options: Any = None
    """An instance of `driver.options`; None for the defaults."""
    faults: Faults | None = None
    """The handle to inject faults. If None, checks that need faults are skipped."""
    capabilities: frozenset[str] | None = None
    """The capabilities that the driver has with these options; None for those that it declares."""
    registry: Registry | None = None
    """A started registry, passed to the driver in its context."""
    transport: Transport | None = None
    """A started transport, passed to the driver in its context."""

    @property
    def required_capabilities(self) -> frozenset[str]:
        """The capabilities that the kit checks."""
        return self.driver.capabilities if self.capabilities is None else self.capabilities
