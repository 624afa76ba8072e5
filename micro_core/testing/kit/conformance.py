"""What all kits share: the fixture `harness`, what a part needs before it runs, and the parts every driver must pass."""

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
from micro_core.testing.kit.faults import Pulse
from micro_core.testing.kit.harness import Harness, Startable, running_tasks
from micro_core.testing.kit.waiting import fail, until

T = TypeVar("T", bound=Startable)
Part = TypeVar("Part", bound=Callable[..., Awaitable[None]])

LONGEST_BLOCK_S = 0.25
"""How long a driver may hold up the loop. Generous: a machine with other work to do must not fail a good driver."""

ROUNDS = 4
"""A driver that blocks does so in every round, a busy machine does not."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a part needs before it can run."""

    capability: str = ""
    faults: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Where the report counts the part: the capability that demands it, else faults or required."""
        return self.capability or ("faults" if self.faults else "required")


def needs(*, capability: str = "", faults: tuple[str, ...] = ()) -> Callable[[Part], Part]:
    """Mark a part that runs only with a capability, or with verbs of the fault handle."""

    def mark(part: Part) -> Part:
        part.micro_needs = Needs(capability, faults)  # type: ignore[attr-defined]
        return part

    return mark


def needs_of(part: object) -> Needs:
    """What a part needs; nothing when it says nothing."""
    found = getattr(part, "micro_needs", None)
    return found if isinstance(found, Needs) else Needs()


class Conformance(Generic[T]):
    """The kit of every role. Supply the fixture `driver_under_test`, a `DriverUnderTest`."""

    pytestmark = pytest.mark.asyncio

    role: ClassVar[Role]

    patience_s: ClassVar[float] = 10.0
    """How long whatever must happen may take on this back end before a part fails."""

    exceptions: ClassVar[Mapping[str, str]] = {}
    """Parts that this driver cannot keep, each with the reason, which reports show."""

    @pytest.fixture(autouse=True)
    def _gate(self, request: pytest.FixtureRequest, driver_under_test: DriverUnderTest[T]) -> None:
        """Skip, with its reason, a part that does not apply."""
        unknown = sorted(name for name in self.exceptions if not hasattr(self, name))
        assert not unknown, f"`exceptions` names parts that the kit has not: {', '.join(unknown)}"
        part = request.function
        reason = self.exceptions.get(part.__name__)
        if reason is not None:
            assert reason.strip(), "an exception needs a reason"
            pytest.skip(reason)
        wanted = needs_of(part)
        if wanted.capability and wanted.capability not in driver_under_test.promises:
            promise = CAPABILITIES[self.role].get(wanted.capability, "")
            pytest.skip(f"the driver does not declare {wanted.capability!r} ({promise})")
        if wanted.faults and driver_under_test.faults is None:
            pytest.skip(f"no fault handle was given (needed: {', '.join(wanted.faults)})")
        missing = [
            verb
            for verb in wanted.faults
            if driver_under_test.faults is not None and not driver_under_test.faults.can(verb)
        ]
        if missing:
            pytest.skip(f"the fault handle has no {', '.join(missing)}")

    @pytest_asyncio.fixture
    async def harness(self, driver_under_test: DriverUnderTest[T]) -> AsyncIterator[Harness[T]]:
        """Makes the drivers of the test."""
        # A short path: a Unix socket's must fit 103 bytes.
        with tempfile.TemporaryDirectory(prefix="micro-kit-") as state_dir:
            made = Harness(driver_under_test, state_dir, self.patience_s)
            try:
                yield made
            finally:
                await made.close_all()

    async def exercise(self, harness: Harness[T]) -> None:
        """Use two drivers for what the role is there for; each role says how."""
        raise NotImplementedError

    def faults(self, harness: Harness[T]) -> Faults:
        """The author's fault handle; parts that need one are skipped where there is none."""
        assert harness.driver_under_test.faults is not None
        return harness.driver_under_test.faults

    # ------------------------------------------------------------------ parts

    async def test_the_driver_is_described(self, driver_under_test: DriverUnderTest[T]) -> None:
        driver: Driver[T] = driver_under_test.driver
        assert driver.name, "a driver has a name"
        assert driver.name == driver.name.lower().strip(), "the name is the word people type: lower case"
        assert driver.summary.strip(), "a driver has a summary of one sentence"
        assert "\n" not in driver.summary, "a driver has a summary of one sentence"
        least, below = driver.contract
        assert least <= CONTRACT_VERSION < below, f"the driver is not made for contract {CONTRACT_VERSION}"
        driver.options()
        for field in dataclasses.fields(driver.options):
            assert str(field.metadata.get("help", "")).strip(), (
                f"option {field.name} has no help: make it with option()"
            )

    async def test_declared_capabilities_are_known_words(self, driver_under_test: DriverUnderTest[T]) -> None:
        known = CAPABILITIES[self.role]
        for word in sorted(driver_under_test.promises):
            if word in known or word.startswith("x-"):
                continue
            near = difflib.get_close_matches(word, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            fail(f"{self.role.value} has no capability {word!r}: {advice} A word of your own begins with x-")

    async def test_making_a_driver_touches_nothing_outside(self, harness: Harness[T]) -> None:
        tasks, files = running_tasks(), open_files()
        harness.create()
        assert running_tasks() == tasks, "create starts no task: that is start's part"
        assert open_files() == files, "create opens no file and no socket: that is start's part"

    async def test_closing_leaves_nothing_behind(self, harness: Harness[T]) -> None:
        # Once before, so that what is made once a process (a thread, a cache) is there already.
        await self.exercise(harness)
        await harness.close_all()
        tasks, files = running_tasks(), open_files()
        await self.exercise(harness)
        await harness.close_all()

        def left() -> list[str]:
            return sorted(task.get_name() + " " + repr(task.get_coro()) for task in running_tasks() - tasks)

        try:
            await until(lambda: not left(), 2.0, "close leaves no task running")
        except pytest.fail.Exception:
            fail(f"close leaves no task running: these still do: {'; '.join(left())}")
        await until(lambda: len(open_files()) <= len(files), 2.0, "close leaves no file and no socket open")

    async def test_the_loop_is_never_blocked(self, harness: Harness[T]) -> None:
        longest = []
        for _ in range(ROUNDS):
            async with Pulse() as pulse:
                await self.exercise(harness)
                await harness.close_all()
            longest.append(pulse.longest_s)
            if pulse.longest_s < LONGEST_BLOCK_S:
                return
        fail(f"the event loop is never blocked: it stood still for {min(longest):.2f} s in each of {ROUNDS} rounds")


def open_files() -> frozenset[str]:
    """The process's open descriptors by number and target; empty where the system does not show them."""
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            # The descriptor of the listing itself, closed by now.
            continue
        if not target.startswith(("pipe:", "anon_inode:", "/proc/")):
            found.add(f"{path.name} {target}")
    return frozenset(found)
