"""Tables that each violate one clause of the contract, derived from a correct one."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract import (
    Driver,
    DriverContext,
    LocalRouteChanged,
    NoOptions,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteKey,
    Route,
    RouteKey,
    RouteQuery,
    Table,
    TableEvent,
)
from micro_core.contract.table_watchers import TableWatchers
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


class KeepsAnswersWhenALinkChanges(Correct):
    """Discards cached answers when offers or local routes change, but not when origin routes do."""

    def _origin_changed(self, origin: str) -> None:
        return


class IgnoresDelete(Correct):
    def delete(self, key: RouteKey) -> bool:
        return any(route.key == key for route in self.list())


class DropsOffersWithTheRoute(Correct):
    def delete_origin_route(self, key: OriginRouteKey) -> bool:
        self.change_offers(key.origin, is_complete=True)
        return super().delete_origin_route(key)


class IgnoresLoad(Correct):
    def change_offers(
        self,
        origin: str,
        changed: Sequence[Offer] = (),
        removed: Sequence[str] = (),
        *,
        is_complete: bool = False,
    ) -> None:
        idle = [replace(offer, load_us=0) for offer in changed]
        super().change_offers(origin, idle, removed, is_complete=is_complete)


class TreatsEachListAsChanges(Correct):
    """Ignores `is_complete`."""

    def change_offers(
        self,
        origin: str,
        changed: Sequence[Offer] = (),
        removed: Sequence[str] = (),
        *,
        is_complete: bool = False,
    ) -> None:
        super().change_offers(origin, changed, removed)


class IgnoresPartialRoutes(Correct):
    """Uses an origin route for all services of the origin."""

    def put_origin_route(self, route: OriginRoute) -> None:
        super().put_origin_route(replace(route, services=None))


class ReversesLookups(Correct):
    def lookup(self, service: str) -> tuple[Route, ...]:
        return tuple(reversed(super().lookup(service)))


class ListsInOrderOfMetric(Correct):
    def list(self, query: RouteQuery | None = None) -> builtins.list[Route]:
        return sorted(super().list(query), key=lambda route: route.metric)


class ListsOriginRoutesByGateway(Correct):
    def origin_routes(self) -> builtins.list[OriginRoute]:
        return sorted(super().origin_routes(), key=lambda route: (route.origin, route.gateway))


class ForgetsOriginsWithoutRoute(Correct):
    def origins(self) -> builtins.list[str]:
        return sorted({route.origin for route in self.origin_routes()})


class ForgetsLocalInterests(Correct):
    def interests(self) -> builtins.list[str]:
        return sorted(set(super().interests()) - {route.service for route in self.list(RouteQuery(link="local"))})


class ForgetsOffersWithoutRoute(Correct):
    def origins_of(self, service: str) -> tuple[str, ...]:
        reachable = {route.origin for route in self.origin_routes()}
        return tuple(origin for origin in super().origins_of(service) if origin in reachable)


class DoesNotReportUpdates(Correct):
    def watch(self, callback: Callable[[TableEvent], None]) -> Callable[[], None]:
        def report(event: TableEvent) -> None:
            if isinstance(event, OffersChanged) or event.before is None or event.after is None:
                callback(event)

        return super().watch(report)


class ReportsEqualChanges(Correct):
    def put_origin_route(self, route: OriginRoute) -> None:
        super().delete_origin_route(route.key)
        super().put_origin_route(route)


class NotifiesBeforeTheChange(Correct):
    def put(self, route: Route) -> None:
        before = next((known for known in self.list() if known.key == route.key), None)
        self._watchers.notify(LocalRouteChanged(before, route))
        watchers, self._watchers = self._watchers, TableWatchers(logger=self._logger, counters=self._counters)
        super().put(route)
        self._watchers = watchers


class DropsExpiry(Correct):
    def put_origin_route(self, route: OriginRoute) -> None:
        super().put_origin_route(replace(route, expires_at=None))


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


class TestKeepsAnswersWhenALinkChanges(Kit):
    driver_class = KeepsAnswersWhenALinkChanges


class TestIgnoresDelete(Kit):
    driver_class = IgnoresDelete


class TestDropsOffersWithTheRoute(Kit):
    driver_class = DropsOffersWithTheRoute


class TestIgnoresLoad(Kit):
    driver_class = IgnoresLoad


class TestTreatsEachListAsChanges(Kit):
    driver_class = TreatsEachListAsChanges


class TestIgnoresPartialRoutes(Kit):
    driver_class = IgnoresPartialRoutes


class TestReversesLookups(Kit):
    driver_class = ReversesLookups


class TestListsInOrderOfMetric(Kit):
    driver_class = ListsInOrderOfMetric


class TestListsOriginRoutesByGateway(Kit):
    driver_class = ListsOriginRoutesByGateway


class TestForgetsOriginsWithoutRoute(Kit):
    driver_class = ForgetsOriginsWithoutRoute


class TestForgetsLocalInterests(Kit):
    driver_class = ForgetsLocalInterests


class TestForgetsOffersWithoutRoute(Kit):
    driver_class = ForgetsOffersWithoutRoute


class TestDoesNotReportUpdates(Kit):
    driver_class = DoesNotReportUpdates


class TestReportsEqualChanges(Kit):
    driver_class = ReportsEqualChanges


class TestNotifiesBeforeTheChange(Kit):
    driver_class = NotifiesBeforeTheChange


class TestDropsExpiry(Kit):
    driver_class = DropsExpiry


class TestIgnoresRouterInKey(Kit):
    driver_class = IgnoresRouterInKey


class TestOnlyDeclaresPersistent(Kit):
    driver_class = Correct
    capabilities = frozenset({"persistent"})
