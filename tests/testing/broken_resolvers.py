"""Resolvers that break one promise each, made from one that keeps them all."""

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
        self.is_away = False
        self.talks_nonsense = False

    async def kill(self) -> None:
        self.is_away = True

    async def restart(self) -> None:
        self.is_away = False

    async def garbage(self, context: DriverContext) -> None:
        self.talks_nonsense = True


class Sound:
    """Keeps every promise."""

    def __init__(self, source: Source) -> None:
        self.source = source

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to leave."""

    async def resolve(self, network: str) -> list[Candidate]:
        if self.source.is_away or self.source.talks_nonsense:
            raise Unreachable("the source is away, or raves")
        return sorted(self.source.candidates, key=lambda candidate: candidate.priority)


class Hangs(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        await asyncio.Event().wait()
        return []


class IgnoresPriority(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        return list(reversed(await super().resolve(network)))


class DropsPriority(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        return [replace(candidate, priority=0) for candidate in self.source.candidates]


class AddsToTheEarlierAnswer(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        earlier: list[Candidate] = self.source.__dict__.setdefault("earlier", [])
        earlier.extend(candidate for candidate in await super().resolve(network) if candidate not in earlier)
        return sorted(earlier, key=lambda candidate: candidate.priority)


class LendsItsList(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        return self.source.candidates


class AnswersNoneWhenAway(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        return [] if self.source.is_away else await super().resolve(network)


class Crashes(Sound):
    async def resolve(self, network: str) -> list[Candidate]:
        if self.source.talks_nonsense:
            raise KeyError("address")
        return await super().resolve(network)


class AlwaysTheFirst(Sound):
    """Does not draw among equals."""


class Kit(ResolverConformance):
    """The kit of one of them."""

    made: type[Sound]
    patience_s = 1.0  # what never comes is not waited for any longer
    capabilities: frozenset[str] = frozenset({"priorities"})

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Resolver]:
        self.source = Source()

        def create(_options: NoOptions, context: DriverContext) -> Resolver:
            return self.made(self.source)

        driver: Driver[Resolver] = Driver(name="broken", summary="Breaks.", options=NoOptions, create=create)
        return DriverUnderTest(driver=driver, capabilities=self.capabilities, faults=self.source)

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        self.source.candidates = list(candidates)


class TestSound(Kit):
    made = Sound
    patience_s = 10.0


class TestHangs(Kit):
    made = Hangs


class TestIgnoresPriority(Kit):
    made = IgnoresPriority


class TestDropsPriority(Kit):
    made = DropsPriority


class TestAddsToTheEarlierAnswer(Kit):
    made = AddsToTheEarlierAnswer


class TestLendsItsList(Kit):
    made = LendsItsList


class TestAnswersNoneWhenAway(Kit):
    made = AnswersNoneWhenAway


class TestCrashes(Kit):
    made = Crashes


class TestAlwaysTheFirst(Kit):
    made = AlwaysTheFirst
    capabilities = frozenset({"weights"})
