"""Resolvers that each violate one clause of the contract, derived from a correct one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from micro_core.contract import Candidate, Driver, DriverContext, NoOptions, Resolver, Unreachable
from micro_core.testing import DriverUnderTest, Faults, Harness, ResolverConformance


class Source(Faults):
    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.is_available = True
        self.sends_garbage = False

    async def kill(self) -> None:
        self.is_available = False

    async def restart(self) -> None:
        self.is_available = True

    async def garbage(self, context: DriverContext) -> None:
        self.sends_garbage = True


class Correct:
    """Fulfils the contract."""

    def __init__(self, source: Source) -> None:
        self.source = source

    async def start(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def resolve(self, network: str) -> list[Candidate]:
        if not self.source.is_available or self.source.sends_garbage:
            raise Unreachable("the source is not available or sends garbage")
        return sorted(self.source.candidates, key=lambda candidate: candidate.priority)


class Hangs(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        await asyncio.Event().wait()
        return []


class IgnoresPriorities(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        return list(reversed(await super().resolve(network)))


class DropsPriorities(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        return [replace(candidate, priority=0) for candidate in self.source.candidates]


class MergesWithThePreviousAnswer(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        merged: list[Candidate] = self.source.__dict__.setdefault("merged", [])
        merged.extend(candidate for candidate in await super().resolve(network) if candidate not in merged)
        return sorted(merged, key=lambda candidate: candidate.priority)


class ReturnsItsInternalList(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        return self.source.candidates


class ReturnsNothingDuringOutage(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        return await super().resolve(network) if self.source.is_available else []


class RaisesKeyErrorOnGarbage(Correct):
    async def resolve(self, network: str) -> list[Candidate]:
        if self.source.sends_garbage:
            raise KeyError("address")
        return await super().resolve(network)


class IgnoresWeights(Correct):
    """Does not choose randomly among equal priorities."""


class Kit(ResolverConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    timeout_s = 1.0  # short, because broken drivers never do what is awaited
    capabilities: frozenset[str] = frozenset({"priorities"})

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Resolver]:
        self.source = Source()

        def create(_options: NoOptions, context: DriverContext) -> Resolver:
            return self.driver_class(self.source)

        driver: Driver[Resolver] = Driver(
            name="broken", summary="A driver that violates the contract.", options=NoOptions, create=create
        )
        return DriverUnderTest(driver=driver, capabilities=self.capabilities, faults=self.source)

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        self.source.candidates = list(candidates)


class TestCorrect(Kit):
    driver_class = Correct
    timeout_s = 10.0


class TestHangs(Kit):
    driver_class = Hangs


class TestIgnoresPriorities(Kit):
    driver_class = IgnoresPriorities


class TestDropsPriorities(Kit):
    driver_class = DropsPriorities


class TestMergesWithThePreviousAnswer(Kit):
    driver_class = MergesWithThePreviousAnswer


class TestReturnsItsInternalList(Kit):
    driver_class = ReturnsItsInternalList


class TestReturnsNothingDuringOutage(Kit):
    driver_class = ReturnsNothingDuringOutage


class TestRaisesKeyErrorOnGarbage(Kit):
    driver_class = RaisesKeyErrorOnGarbage


class TestIgnoresWeights(Kit):
    driver_class = IgnoresWeights
    capabilities = frozenset({"weights"})
