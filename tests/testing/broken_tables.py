"""Tables that each violate one clause of the contract, derived from a correct one."""

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


class Correct(MemoryTable):
    """Fulfils the contract."""


class CachesLookups(Correct):
    """Never updates the answer of a lookup."""

    def lookup(self, service: str) -> tuple[Route, ...]:
        answers: dict[str, tuple[Route, ...]] = self.__dict__.setdefault("answers", {})
        answer = answers.get(service) or super().lookup(service)
        answers[service] = answer
        return answer


class IgnoresDelete(Correct):
    def delete(self, key: RouteKey) -> bool:
        return any(route.key == key for route in self.list())


class ReversesLookups(Correct):
    def lookup(self, service: str) -> tuple[Route, ...]:
        return tuple(reversed(super().lookup(service)))


class ListsInOrderOfMetric(Correct):
    def list(self, query: RouteQuery | None = None) -> builtins.list[Route]:
        return sorted(super().list(query), key=lambda route: route.metric)


class DoesNotReportUpdates(Correct):
    def watch(self, callback: Callable[[RouteEvent], None]) -> Callable[[], None]:
        return super().watch(lambda event: None if event.kind is RouteEventKind.UPDATE else callback(event))


class NotifiesBeforeTheChange(Correct):
    def put(self, route: Route) -> None:
        kind = RouteEventKind.UPDATE if route.key in {known.key for known in self.list()} else RouteEventKind.CREATE
        self._notify(kind, route)
        watchers, self._watchers = self._watchers, {}
        super().put(route)
        self._watchers = watchers


class DropsExpiry(Correct):
    def put(self, route: Route) -> None:
        super().put(replace(route, expires_at=None))


class IgnoresRouterInKey(Correct):
    """Treats two routes that differ only in the router as the same route."""

    def put(self, route: Route) -> None:
        for known in self.lookup(route.service):
            if known.key._replace(router="") == route.key._replace(router="") and known.key != route.key:
                super().delete(known.key)
        super().put(route)


class Kit(TableConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    capabilities: frozenset[str] = frozenset()

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Table]:
        def create(_options: NoOptions, context: DriverContext) -> Table:
            return self.driver_class(logger=context.logger, counters=context.counters)

        driver: Driver[Table] = Driver(
            name="broken", summary="A driver that violates the contract.", options=NoOptions, create=create
        )
        return DriverUnderTest(driver=driver, capabilities=self.capabilities)


class TestCorrect(Kit):
    driver_class = Correct


class TestCachesLookups(Kit):
    driver_class = CachesLookups


class TestIgnoresDelete(Kit):
    driver_class = IgnoresDelete


class TestReversesLookups(Kit):
    driver_class = ReversesLookups


class TestListsInOrderOfMetric(Kit):
    driver_class = ListsInOrderOfMetric


class TestDoesNotReportUpdates(Kit):
    driver_class = DoesNotReportUpdates


class TestNotifiesBeforeTheChange(Kit):
    driver_class = NotifiesBeforeTheChange


class TestDropsExpiry(Kit):
    driver_class = DropsExpiry


class TestIgnoresRouterInKey(Kit):
    driver_class = IgnoresRouterInKey


class TestOnlyDeclaresPersistent(Kit):
    driver_class = Correct
    capabilities = frozenset({"persistent"})
