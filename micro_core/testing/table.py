"""The kit of the table role: routes by service, ordered, watched."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract import Role, Route, RouteEvent, RouteEventKind, RouteQuery, Table
from micro_core.testing.kit.conformance import Conformance, needs
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
    """Inherit it, supply `driver_under_test`."""

    role = Role.TABLE

    async def exercise(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        for number in range(200):
            table.put(replace(ROUTE, service=f"service-{number % 20}", gateway=f"{number:032}", metric=number))
        assert len(table.list()) == 200
        for route in table.list():
            table.delete(route.key)

    async def test_a_route_comes_back_whole(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        local = replace(ROUTE, address="tcp://127.0.0.1:4001", gateway="", link="local", metric=0, expires_at=None)
        table.put(ROUTE)
        table.put(replace(local, service="local"))
        assert table.lookup(ROUTE.service) == (ROUTE,), "lookup returns the routes as they were put"
        assert table.lookup("local") == (replace(local, service="local"),), "a local route has no lease"

    async def test_the_best_metric_comes_first_and_keys_decide_among_equals(self, harness: Harness[Table]) -> None:
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
        ], "lookup gives the best metric first"

    async def test_a_lookup_finds_exactly_its_service(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        for service in ("greeter", "greeter.two", "Greeter", "*", "greeter%"):
            table.put(replace(ROUTE, service=service))
        assert [route.service for route in table.lookup("greeter")] == ["greeter"], "lookup finds exactly this service"
        assert table.lookup("nobody") == (), "lookup is empty when there are none"

    async def test_a_route_replaces_the_one_with_its_key(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(ROUTE)
        assert table.lookup(ROUTE.service) == (ROUTE,)
        newer = replace(ROUTE, metric=1, hops=5, expires_at=2_000.0)
        table.put(newer)
        assert table.lookup(ROUTE.service) == (newer,), "lookup shows the route that stands now, never a stale one"
        assert table.list() == [newer], "list shows the route that stands now, never a stale one"
        better = replace(newer, gateway="a", metric=0)
        table.put(better)
        assert table.lookup(ROUTE.service) == (better, newer), "lookup shows what was put since"

    async def test_a_route_that_is_deleted_is_gone(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        other = replace(ROUTE, gateway="a")
        table.put(ROUTE)
        table.put(other)
        assert len(table.lookup(ROUTE.service)) == 2
        assert table.delete(ROUTE.key) is True, "delete says that there was one"
        assert table.lookup(ROUTE.service) == (other,), "lookup shows the route that stands now, never a stale one"
        assert table.list() == [other], "list shows the route that stands now, never a stale one"
        assert table.delete(ROUTE.key) is False, "delete says that there was none"
        assert table.delete(other.key) is True
        assert table.lookup(ROUTE.service) == (), "lookup is empty when there are none"

    async def test_every_part_of_the_key_keeps_routes_apart(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [ROUTE] + [replace(ROUTE, **{name: "other"}) for name in ROUTE.key._fields]  # type: ignore[arg-type]
        for route in routes:
            table.put(route)
        assert {route.key for route in table.list()} == {route.key for route in routes}, (
            "each key is a route of its own"
        )

    async def test_list_filters_and_has_a_stable_order(self, harness: Harness[Table]) -> None:
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
            assert table.list(query) == expected, f"list filters, an empty field matches all: {query}"

    async def test_watchers_hear_of_every_change_after_it_stands_and_of_nothing_else(
        self, harness: Harness[Table]
    ) -> None:
        table = await harness.open()
        heard: list[tuple[RouteEventKind, int, int]] = []
        end = table.watch(
            lambda event: heard.append((event.kind, event.route.metric, len(table.lookup(event.route.service))))
        )
        table.put(ROUTE)
        table.put(replace(ROUTE, metric=501))
        table.delete(ROUTE.key)
        table.delete(ROUTE.key)
        expected = [(CREATE, 500, 1), (UPDATE, 501, 1), (DELETE, 501, 0)]
        assert heard == expected, "watchers hear of every change, of the metric too, after it stands"
        end()
        table.put(ROUTE)
        assert heard == expected, "the function that watch returns ends it"

    async def test_a_watcher_that_fails_disturbs_neither_the_change_nor_another(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        heard: list[RouteEvent] = []

        def fails(_event: RouteEvent) -> None:
            raise RuntimeError("a watcher that fails, on purpose")

        table.watch(fails)
        table.watch(heard.append)
        table.put(ROUTE)
        assert table.lookup(ROUTE.service) == (ROUTE,), "the change stands whatever a watcher thinks of it"
        assert [event.route for event in heard] == [ROUTE], "a watcher that fails disturbs no other"

    async def test_a_caller_cannot_change_what_stands(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(ROUTE)
        table.list().clear()
        assert table.list() == [ROUTE], "what list returned is the caller's own"
        assert isinstance(table.lookup(ROUTE.service), tuple), "lookup returns a tuple"

    async def test_tables_of_different_networks_are_different(self, harness: Harness[Table]) -> None:
        one, other = await harness.open(), await harness.open(network=f"{harness.network}.other")
        one.put(ROUTE)
        assert other.list() == [], "a table belongs to its node"

    @needs(capability="persistent")
    async def test_routes_are_back_after_a_restart(self, harness: Harness[Table]) -> None:
        context = harness.context()
        table = harness.create(context)
        await table.start()
        # As neighbours tell them: gateways are node ids.
        told = replace(ROUTE, expires_at=None)
        kept = [replace(told, gateway=letter * 32, metric=number) for number, letter in enumerate("defgh")]
        for route in kept:
            table.put(route)
        gone = replace(told, service="gone")
        table.put(gone)
        table.delete(gone.key)
        await harness.close(table)
        again = harness.create(context)
        await again.start()
        back = [replace(route, expires_at=None) for route in again.list()]
        assert back == kept, "a persistent table has the routes that stood, and no other; each may have got a lease"
