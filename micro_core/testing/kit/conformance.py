"""The base class of all kits: the fixture `harness`, the requirements of checks, and the checks that apply to every driver."""

from __future__ import annotations

import dataclasses
import difflib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import pytest
import pytest_asyncio

from micro_core.contract import CONTRACT_VERSION, Driver, Role
from micro_core.testing.kit.capabilities import CAPABILITIES
from micro_core.testing.kit.driver_under_test import DriverUnderTest, Faults
from micro_core.testing.kit.faults import LoopMonitor
from micro_core.testing.kit.harness import Harness, Startable, running_tasks
from micro_core.testing.kit.waiting import fail, until

T = TypeVar("T", bound=Startable)
Check = TypeVar("Check", bound=Callable[..., Awaitable[None]])

MAX_BLOCK_S = 0.25
"""Maximum time for which a driver may block the event loop. Long, so that a good driver passes on a busy machine."""

ROUNDS = 4
"""Repetitions of the measurement. A driver that blocks the loop does so in every round; a busy machine does not."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The requirements of a check: a declared capability, or methods of the fault handle."""

    capability: str = ""
    faults: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The group of the check in reports: its capability, otherwise `faults` or `required`."""
        return self.capability or ("faults" if self.faults else "required")


def requires(*, capability: str = "", faults: tuple[str, ...] = ()) -> Callable[[Check], Check]:
    """Mark a check that is skipped unless the driver declares `capability` and its fault handle has all `faults`."""

    def mark(check: Check) -> Check:
        check.micro_requirements = Requirements(capability, faults)  # type: ignore[attr-defined]
        return check

    return mark


def requirements_of(check: object) -> Requirements:
    """Return the requirements of a check; empty if it is not marked with `requires`."""
    found = getattr(check, "micro_requirements", None)
    return found if isinstance(found, Requirements) else Requirements()


class Conformance(Generic[T]):
    """The kit that the kits of all roles extend. Supply the fixture `driver_under_test`, a `DriverUnderTest`."""

    pytestmark = pytest.mark.asyncio

    role: ClassVar[Role]

    timeout_s: ClassVar[float] = 10.0
    """Seconds that an operation or an expected change may take on this back end before a check fails."""

    exceptions: ClassVar[Mapping[str, str]] = {}
    """Checks that this driver cannot pass, each with the reason, which reports show."""

    @pytest.fixture(autouse=True)
    def _skip_if_not_applicable(self, request: pytest.FixtureRequest, driver_under_test: DriverUnderTest[T]) -> None:
        unknown = sorted(name for name in self.exceptions if not hasattr(self, name))
        assert not unknown, f"`exceptions` contains only checks of the kit, but these are unknown: {', '.join(unknown)}"
        check = request.function
        reason = self.exceptions.get(check.__name__)
        if reason is not None:
            assert reason.strip(), "each entry of `exceptions` has a reason"
            pytest.skip(reason)
        required = requirements_of(check)
        if required.capability and required.capability not in driver_under_test.required_capabilities:
            meaning = CAPABILITIES[self.role].get(required.capability, "")
            pytest.skip(f"the driver does not declare {required.capability!r} ({meaning})")
        if required.faults and driver_under_test.faults is None:
            pytest.skip(f"no fault handle was supplied (required: {', '.join(required.faults)})")
        missing = [
            fault
            for fault in required.faults
            if driver_under_test.faults is not None and not driver_under_test.faults.supports(fault)
        ]
        if missing:
            pytest.skip(f"the fault handle does not implement {', '.join(missing)}")

    @pytest_asyncio.fixture
    async def harness(self, driver_under_test: DriverUnderTest[T]) -> AsyncIterator[Harness[T]]:
        """Return an object that creates the drivers of one test and closes them at its end."""
        # A short path, because the path of a Unix socket is limited to 103 bytes.
        with tempfile.TemporaryDirectory(prefix="micro-kit-") as state_dir:
            harness = Harness(driver_under_test, state_dir, self.timeout_s)
            try:
                yield harness
            finally:
                await harness.close_all()

    async def exercise(self, harness: Harness[T]) -> None:
        """Use two drivers for the typical operations of the role. Each role implements this."""
        raise NotImplementedError

    def faults(self, harness: Harness[T]) -> Faults:
        """Return the fault handle of the author. Checks that need one are skipped if it is missing."""
        assert harness.driver_under_test.faults is not None
        return harness.driver_under_test.faults

    # ----------------------------------------------------------------- checks

    async def test_driver_description_is_complete(self, driver_under_test: DriverUnderTest[T]) -> None:
        driver: Driver[T] = driver_under_test.driver
        assert driver.name, "a driver has a name"
        assert driver.name == driver.name.lower().strip(), (
            "the name of a driver is in lower case, without spaces around it"
        )
        assert driver.summary.strip(), "a driver has a summary of one sentence"
        assert "\n" not in driver.summary, "the summary of a driver is one line"
        minimum, below = driver.contract
        assert minimum <= CONTRACT_VERSION < below, f"the driver supports contract version {CONTRACT_VERSION}"
        driver.options()
        for field in dataclasses.fields(driver.options):
            assert str(field.metadata.get("help", "")).strip(), (
                f"every option has a help text: create {field.name} with option()"
            )

    async def test_declared_capabilities_are_known(self, driver_under_test: DriverUnderTest[T]) -> None:
        known = CAPABILITIES[self.role]
        for name in sorted(driver_under_test.required_capabilities):
            if name in known or name.startswith("x-"):
                continue
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(known) or '-'}"
            fail(f"unknown {self.role.value} capability {name!r} ({hint}); names of your own begin with x-")

    async def test_create_has_no_side_effects(self, harness: Harness[T]) -> None:
        tasks, files = running_tasks(), open_files()
        harness.create()
        assert running_tasks() == tasks, "create starts no task (start does)"
        assert open_files() == files, "create opens no file and no socket (start does)"

    async def test_close_releases_tasks_and_files(self, harness: Harness[T]) -> None:
        # Run once before measuring, so that resources that a process creates once (a thread, a cache) exist already.
        await self.exercise(harness)
        await harness.close_all()
        tasks, files = running_tasks(), open_files()
        await self.exercise(harness)
        await harness.close_all()

        def remaining() -> list[str]:
            return sorted(task.get_name() + " " + repr(task.get_coro()) for task in running_tasks() - tasks)

        try:
            await until(lambda: not remaining(), 2.0, "close ends all tasks")
        except pytest.fail.Exception:
            fail(f"close ends all tasks: still running: {'; '.join(remaining())}")
        await until(lambda: len(open_files()) <= len(files), 2.0, "close closes all files and sockets")

    async def test_event_loop_is_never_blocked(self, harness: Harness[T]) -> None:
        longest = []
        for _ in range(ROUNDS):
            async with LoopMonitor() as monitor:
                await self.exercise(harness)
                await harness.close_all()
            longest.append(monitor.longest_s)
            if monitor.longest_s < MAX_BLOCK_S:
                return
        fail(
            f"the event loop is never blocked: it was blocked for at least {min(longest):.2f} s in each of {ROUNDS} rounds"
        )


def open_files() -> frozenset[str]:
    """Return the open descriptors of this process as `number target`; empty on systems without /proc."""
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            # The descriptor that was open while the directory was listed.
            continue
        if not target.startswith(("pipe:", "anon_inode:", "/proc/")):
            found.add(f"{path.name} {target}")
    return frozenset(found)
