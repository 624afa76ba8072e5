"""The kit of the table role: storage, order, filters and watchers of routes."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract import Role, Route, RouteEvent, RouteEventKind, RouteQuery, Table
from micro_core.testing.kit.conformance import Conformance, requires
from micro_core.testing.kit.harness import Harness

CREATE, UPDATE, DELETE = RouteEventKind.CREATE, RouteEventKind.UPDATE, RouteEventKind.DELETE

ROUTE = Route(
    service="go.micro.srv.greeter",
    address="",
    gateway="b" * 32,
    network="go.micro",
    router="c" * 32,
    link="network",
    metric=500,
    site="eu",
    version="1.2",
    hops=2,
    expires_at=1_000.5,
)


class TableConformance(Conformance[Table]):
    """The kit of the table role. Inherit it and supply the fixture `driver_under_test`."""

    role = Role.TABLE

    async def exercise(self, harness: Harness[Table]) -> None:
        """Put, list and delete 200 routes."""
        table = await harness.open()
        for number in range(200):
            table.put(replace(ROUTE, service=f"service-{number % 20}", gateway=f"{number:032}", metric=number))
        assert len(table.list()) == 200
        for route in table.list():
            table.delete(route.key)

    async def test_route_is_returned_unchanged(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        local = replace(ROUTE, address="tcp://127.0.0.1:4001", gateway="", link="local", metric=0, expires_at=None)
        table.put(ROUTE)
        table.put(replace(local, service="local"))
        assert table.lookup(ROUTE.service) == (ROUTE,), "lookup returns routes unchanged"
        assert table.lookup("local") == (replace(local, service="local"),), (
            "lookup returns a local route unchanged, without expires_at"
        )

    async def test_routes_are_ordered_by_metric_then_key(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [
            replace(ROUTE, gateway=gateway, metric=metric) for metric, gateway in ((900, "a"), (100, "z"), (100, "y"))
        ]
        for route in routes:
            table.put(route)
        assert [(route.metric, route.gateway) for route in table.lookup(ROUTE.service)] == [
            (100, "y"),
            (100, "z"),
            (900, "a"),
        ], "lookup returns the best metric first, and equal metrics ordered by key"

    async def test_lookup_matches_the_exact_service_name(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        for service in ("greeter", "greeter.two", "Greeter", "*", "greeter%"):
            table.put(replace(ROUTE, service=service))
        assert [route.service for route in table.lookup("greeter")] == ["greeter"], (
            "lookup matches the exact name of the service"
        )
        assert table.lookup("unknown") == (), "lookup returns an empty tuple if there are no routes"

    async def test_route_with_the_same_key_is_replaced(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(ROUTE)
        assert table.lookup(ROUTE.service) == (ROUTE,)
        newer = replace(ROUTE, metric=1, hops=5, expires_at=2_000.0)
        table.put(newer)
        assert table.lookup(ROUTE.service) == (newer,), "lookup returns the current route, never an outdated one"
        assert table.list() == [newer], "list returns the current route, never an outdated one"
        better = replace(newer, gateway="a", metric=0)
        table.put(better)
        assert table.lookup(ROUTE.service) == (better, newer), (
            "lookup returns routes that were put after the previous lookup"
        )

    async def test_deleted_route_is_removed(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        other = replace(ROUTE, gateway="a")
        table.put(ROUTE)
        table.put(other)
        assert len(table.lookup(ROUTE.service)) == 2
        assert table.delete(ROUTE.key) is True, "delete returns True if the route existed"
        assert table.lookup(ROUTE.service) == (other,), "lookup returns the current route, never an outdated one"
        assert table.list() == [other], "list returns the current route, never an outdated one"
        assert table.delete(ROUTE.key) is False, "delete returns False if the route did not exist"
        assert table.delete(other.key) is True
        assert table.lookup(ROUTE.service) == (), "lookup returns an empty tuple if there are no routes"

    async def test_each_key_field_distinguishes_routes(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [ROUTE] + [replace(ROUTE, **{name: "other"}) for name in ROUTE.key._fields]  # type: ignore[arg-type]
        for route in routes:
            table.put(route)
        assert {route.key for route in table.list()} == {route.key for route in routes}, (
            "routes with different keys are different routes"
        )

    async def test_list_is_filtered_and_ordered(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [
            replace(ROUTE, service=service, gateway=gateway, router=router, metric=metric)
            for service, gateway, router, metric in (
                ("b", "x", "r1", 5),
                ("a", "y", "r1", 7),
                ("a", "x", "r2", 7),
                ("b", "y", "r2", 1),
                ("a", "z", "r3", 2),
            )
        ]
        for route in routes:
            table.put(route)
        ordered = sorted(routes, key=lambda route: (route.service, route.metric, route.key))
        assert table.list() == ordered, "list is ordered by service, then metric, then key"
        for query in (
            RouteQuery(),
            RouteQuery(service="a"),
            RouteQuery(gateway="x"),
            RouteQuery(service="b", router="r2"),
            RouteQuery(network="nowhere"),
            RouteQuery(link="network", router="r1"),
            RouteQuery(address="tcp://x"),
        ):
            expected = [route for route in ordered if query.matches(route)]
            assert table.list(query) == expected, (
                f"list returns the matching routes (an empty field matches all): {query}"
            )

    async def test_watchers_receive_each_change_after_it_is_applied(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        received: list[tuple[RouteEventKind, int, int]] = []
        stop = table.watch(
            lambda event: received.append((event.kind, event.route.metric, len(table.lookup(event.route.service))))
        )
        table.put(ROUTE)
        table.put(replace(ROUTE, metric=501))
        table.delete(ROUTE.key)
        table.delete(ROUTE.key)
        expected = [(CREATE, 500, 1), (UPDATE, 501, 1), (DELETE, 501, 0)]
        assert received == expected, "watchers receive every change, also of the metric, after it was applied"
        stop()
        table.put(ROUTE)
        assert received == expected, "the function that watch returns ends the watch"

    async def test_failing_watcher_does_not_affect_the_change_or_others(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        received: list[RouteEvent] = []

        def fails(_event: RouteEvent) -> None:
            raise RuntimeError("intentional failure")

        table.watch(fails)
        table.watch(received.append)
        table.put(ROUTE)
        assert table.lookup(ROUTE.service) == (ROUTE,), "a change is applied even if a watcher fails"
        assert [event.route for event in received] == [ROUTE], "a failing watcher does not affect other watchers"

    async def test_returned_lists_do_not_expose_the_table(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(ROUTE)
        table.list().clear()
        assert table.list() == [ROUTE], "changing the list that list() returned does not change the table"
        assert isinstance(table.lookup(ROUTE.service), tuple), "lookup returns a tuple"

    async def test_tables_of_networks_are_isolated(self, harness: Harness[Table]) -> None:
        one, other = await harness.open(), await harness.open(network=f"{harness.network}.other")
        one.put(ROUTE)
        assert other.list() == [], "tables of different networks share no routes"

    @requires(capability="persistent")
    async def test_routes_survive_a_restart(self, harness: Harness[Table]) -> None:
        context = harness.context()
        table = harness.create(context)
        await table.start()
        # Like routes that neighbours advertised: the gateways are node ids.
        advertised = replace(ROUTE, expires_at=None)
        kept = [replace(advertised, gateway=letter * 32, metric=number) for number, letter in enumerate("defgh")]
        for route in kept:
            table.put(route)
        deleted = replace(advertised, service="deleted")
        table.put(deleted)
        table.delete(deleted.key)
        await harness.close(table)
        again = harness.create(context)
        await again.start()
        restored = [replace(route, expires_at=None) for route in again.list()]
        assert restored == kept, (
            "a persistent table restores exactly the routes that existed, possibly with an expiry time"
        )
