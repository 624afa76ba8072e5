"""Tables that break one promise each, made from one that keeps them all."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace

import pytest

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract import (
    Driver,
    DriverContext,
    NoOptions,
    Route,
    RouteEvent,
    RouteEventKind,
    RouteKey,
    RouteQuery,
    Table,
)
from micro_core.testing import DriverUnderTest, TableConformance


class Sound(MemoryTable):
    """Keeps every promise."""


class AnswersStale(Sound):
    """Remembers each answer for ever."""

    def lookup(self, service: str) -> tuple[Route, ...]:
        answers: dict[str, tuple[Route, ...]] = self.__dict__.setdefault("answers", {})
        answer = answers.get(service) or super().lookup(service)
        answers[service] = answer
        return answer


class KeepsWhatWasDeleted(Sound):
    def delete(self, key: RouteKey) -> bool:
        return any(route.key == key for route in self.list())


class Unordered(Sound):
    def lookup(self, service: str) -> tuple[Route, ...]:
        return tuple(reversed(super().lookup(service)))


class ListsUnordered(Sound):
    def list(self, query: RouteQuery | None = None) -> builtins.list[Route]:
        return sorted(super().list(query), key=lambda route: route.metric)


class TellsNoMetric(Sound):
    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        return super().watch(lambda event: None if event.kind is RouteEventKind.UPDATE else callback(event))


class TellsTooEarly(Sound):
    def put(self, route: Route) -> None:
        kind = RouteEventKind.UPDATE if route.key in {known.key for known in self.list()} else RouteEventKind.CREATE
        self._tell(kind, route)
        watchers, self._watchers = self._watchers, {}
        super().put(route)
        self._watchers = watchers


class ForgetsTheLease(Sound):
    def put(self, route: Route) -> None:
        super().put(replace(route, expires_at=None))


class LosesAHop(Sound):
    """Takes two routes that differ by router for one."""

    def put(self, route: Route) -> None:
        for known in self.lookup(route.service):
            if known.key._replace(router="") == route.key._replace(router="") and known.key != route.key:
                super().delete(known.key)
        super().put(route)


class Kit(TableConformance):
    """The kit of one of them."""

    made: type[Sound]
    capabilities: frozenset[str] = frozenset()

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Table]:
        def create(_options: NoOptions, context: DriverContext) -> Table:
            return self.made(logger=context.logger, counters=context.counters)

        driver: Driver[Table] = Driver(name="broken", summary="Breaks.", options=NoOptions, create=create)
        return DriverUnderTest(driver=driver, capabilities=self.capabilities)


class TestSound(Kit):
    made = Sound


class TestAnswersStale(Kit):
    made = AnswersStale


class TestKeepsWhatWasDeleted(Kit):
    made = KeepsWhatWasDeleted


class TestUnordered(Kit):
    made = Unordered


class TestListsUnordered(Kit):
    made = ListsUnordered


class TestTellsNoMetric(Kit):
    made = TellsNoMetric


class TestTellsTooEarly(Kit):
    made = TellsTooEarly


class TestForgetsTheLease(Kit):
    made = ForgetsTheLease


class TestLosesAHop(Kit):
    made = LosesAHop


class TestOnlySaysPersistent(Kit):
    made = Sound
    capabilities = frozenset({"persistent"})
