"""The kit of the table role: storage, join, order, filters and watchers of local routes, origin routes and offers."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract import (
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    Role,
    Route,
    RouteQuery,
    Table,
    TableEvent,
)
from micro_core.testing.kit.conformance import Conformance, requires
from micro_core.testing.kit.harness import Harness

LOCAL = Route(
    service="go.micro.srv.greeter",
    address="tcp://127.0.0.1:4001",
    gateway="",
    network="go.micro",
    router="a" * 32,
    link="local",
    metric=300,
    site="us",
    version="1.2",
)

VIA_B = OriginRoute(
    origin="c" * 32, gateway="b" * 32, metric=500, network="go.micro", site="eu", hops=2, expires_at=1_000.5
)

OFFER = Offer("go.micro.srv.greeter", ("1.2", "1.3"), 2, 40)

REMOTE = Route(
    service="go.micro.srv.greeter",
    address="",
    gateway="b" * 32,
    network="go.micro",
    router="c" * 32,
    link="network",
    metric=540,
    site="eu",
    version="1.2,1.3",
    hops=2,
    load_us=40,
    expires_at=1_000.5,
)
"""The join of VIA_B and OFFER."""


class TableConformance(Conformance[Table]):
    """The kit of the table role. Inherit it and supply the fixture `driver_under_test`."""

    role = Role.TABLE

    async def exercise(self, harness: Harness[Table]) -> None:
        """Add, list and delete 200 local routes and 200 routes to 20 origins."""
        table = await harness.open()
        for number in range(200):
            table.put(replace(LOCAL, service=f"service-{number % 20}", address=f"tcp://{number}", metric=number))
        for number in range(20):
            origin = f"{number:032}"
            table.put_origin_route(replace(VIA_B, origin=origin))
            table.change_offers(origin, [Offer(f"service-{service}") for service in range(10)])
        assert len(table.list()) == 400
        for number in range(20):
            origin = f"{number:032}"
            table.delete_origin_route(replace(VIA_B, origin=origin).key)
            table.change_offers(origin, is_complete=True)
        for route in table.list():
            table.delete(route.key)
        assert table.list() == []

    # ------------------------------------------------------------------ lookup

    async def test_route_is_returned_unchanged(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(LOCAL)
        assert table.lookup(LOCAL.service) == (LOCAL,), "lookup returns a local route unchanged"
        assert table.list() == [LOCAL], "list returns a local route unchanged"

    async def test_route_joins_origin_route_and_offer(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put_origin_route(VIA_B)
        assert table.lookup(OFFER.service) == (), "an origin route without an offer is not a route to a service"
        table.change_offers(VIA_B.origin, [OFFER])
        assert table.lookup(OFFER.service) == (REMOTE,), (
            "a route has the fields of the origin route and the offer, with the load added to the metric"
        )
        other = await harness.open(network=f"{harness.network}.other")
        other.change_offers(VIA_B.origin, [OFFER])
        assert other.lookup(OFFER.service) == (), "an offer without an origin route is not a route"
        other.put_origin_route(replace(VIA_B, expires_at=None))
        assert other.lookup(OFFER.service) == (replace(REMOTE, expires_at=None),), (
            "a route exists as soon as both the origin route and the offer do, in any order"
        )

    async def test_routes_are_ordered_by_metric_then_key(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.change_offers(VIA_B.origin, [OFFER])
        for metric, gateway in ((900, "a"), (100, "z"), (100, "y")):
            table.put_origin_route(replace(VIA_B, gateway=gateway, metric=metric))
        table.put(LOCAL)
        assert [(route.metric, route.gateway) for route in table.lookup(OFFER.service)] == [
            (140, "y"),
            (140, "z"),
            (300, ""),
            (940, "a"),
        ], "lookup returns the best metric first, and equal metrics ordered by key"

    async def test_lookup_matches_the_exact_service_name(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put_origin_route(VIA_B)
        for service in ("greeter", "greeter.two", "Greeter", "*", "greeter%"):
            table.put(replace(LOCAL, service=service))
            table.change_offers(VIA_B.origin, [Offer(service)])
        assert [route.service for route in table.lookup("greeter")] == ["greeter", "greeter"], (
            "lookup matches the exact name of the service"
        )
        assert table.lookup("unknown") == (), "lookup returns an empty tuple if there are no routes"

    async def test_route_to_some_services_is_used_for_those_only(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.change_offers(VIA_B.origin, [OFFER, Offer("other")])
        table.put_origin_route(VIA_B)
        table.put_origin_route(replace(VIA_B, gateway="p" * 32, services=frozenset({"other"})))
        found = {service: [route.gateway[0] for route in table.lookup(service)] for service in (OFFER.service, "other")}
        assert found == {OFFER.service: ["b"], "other": ["b", "p"]}, (
            "an origin route with `services` is a route to these services only"
        )

    # ----------------------------------------------------------------- changes

    async def test_route_with_the_same_key_is_replaced(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(LOCAL)
        assert table.lookup(LOCAL.service) == (LOCAL,)
        newer = replace(LOCAL, metric=1, version="2")
        table.put(newer)
        assert table.lookup(LOCAL.service) == (newer,), "lookup returns the current route, never an outdated one"
        assert table.list() == [newer], "list returns the current route, never an outdated one"
        better = replace(newer, address="tcp://127.0.0.1:4002", metric=0)
        table.put(better)
        assert table.lookup(LOCAL.service) == (better, newer), (
            "lookup returns routes that were put after the previous lookup"
        )

    async def test_changed_origin_route_changes_the_routes_of_all_its_services(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        services = [f"service-{number}" for number in range(20)]
        table.change_offers(VIA_B.origin, [Offer(service) for service in services])
        table.change_offers("d" * 32, [Offer(service) for service in services])
        table.put_origin_route(replace(VIA_B, origin="d" * 32, metric=600))
        for metric in (500, 700, 400):
            table.put_origin_route(replace(VIA_B, metric=metric))
            expected = sorted([(600, "d"), (metric, "c")])
            for service in services:
                found = [(route.metric, route.router[0]) for route in table.lookup(service)]
                assert found == expected, "lookup returns the current metric of the origin route, never an outdated one"
            listed = [(route.metric, route.router[0]) for route in table.list(RouteQuery(service=services[0]))]
            assert listed == expected, "list returns the current metric of the origin route, never an outdated one"

    async def test_deleted_route_is_removed(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        other = replace(LOCAL, address="tcp://other")
        table.put(LOCAL)
        table.put(other)
        assert len(table.lookup(LOCAL.service)) == 2
        assert table.delete(LOCAL.key) is True, "delete returns True if the route existed"
        assert table.lookup(LOCAL.service) == (other,), "lookup returns the current route, never an outdated one"
        assert table.list() == [other], "list returns the current route, never an outdated one"
        assert table.delete(LOCAL.key) is False, "delete returns False if the route did not exist"
        assert table.delete(other.key) is True
        assert table.lookup(LOCAL.service) == (), "lookup returns an empty tuple if there are no routes"

    async def test_deleted_origin_route_is_removed_and_its_offers_are_kept(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.change_offers(VIA_B.origin, [OFFER])
        table.put_origin_route(VIA_B)
        assert table.lookup(OFFER.service) == (REMOTE,)
        assert table.delete_origin_route(VIA_B.key) is True, "delete_origin_route returns True if the route existed"
        assert table.lookup(OFFER.service) == (), "lookup returns no route whose origin route was deleted"
        assert table.list() == [], "list returns no route whose origin route was deleted"
        assert table.delete_origin_route(VIA_B.key) is False, (
            "delete_origin_route returns False if the route did not exist"
        )
        assert table.offers(VIA_B.origin) == [OFFER], "the offers of an origin are kept without a route to it"
        table.put_origin_route(VIA_B)
        assert table.lookup(OFFER.service) == (REMOTE,), "a new origin route leads to the known offers"

    async def test_offers_are_added_replaced_and_removed(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        origin = VIA_B.origin
        table.put_origin_route(VIA_B)
        table.change_offers(origin, [OFFER, Offer("a"), Offer("b")])
        assert table.lookup(OFFER.service) == (REMOTE,)
        assert len(table.lookup("a")) == len(table.lookup("b")) == 1
        busy = replace(OFFER, load_us=90, versions=())
        table.change_offers(origin, [busy], ["a", "unknown"])
        assert table.lookup(OFFER.service) == (replace(REMOTE, metric=590, load_us=90, version=""),), (
            "lookup returns the current offer, never an outdated one"
        )
        assert table.lookup("a") == (), "a removed offer is not a route any more"
        assert table.offers(origin) == [Offer("b"), busy], "offers that are not mentioned are kept"
        table.change_offers(origin, [Offer("c")], is_complete=True)
        assert table.offers(origin) == [Offer("c")], "a complete list replaces all offers"
        assert [route.service for route in table.list()] == ["c"], "list returns the current offers only"
        assert table.lookup(OFFER.service) == () == table.lookup("b"), "lookup returns the current offers only"
        table.change_offers(origin, is_complete=True)
        assert table.offers(origin) == [], "an empty complete list removes all offers"

    async def test_each_key_field_distinguishes_routes(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [LOCAL] + [replace(LOCAL, **{name: "other"}) for name in LOCAL.key._fields]  # type: ignore[arg-type]
        for route in routes:
            table.put(route)
        assert {route.key for route in table.list()} == {route.key for route in routes}, (
            "routes with different keys are different routes"
        )
        origin_routes = [VIA_B] + [replace(VIA_B, **{name: "other"}) for name in VIA_B.key._fields]  # type: ignore[arg-type]
        for origin_route in origin_routes:
            table.put_origin_route(origin_route)
        assert {route.key for route in table.origin_routes()} == {route.key for route in origin_routes}, (
            "origin routes with different keys are different routes"
        )

    # ----------------------------------------------------------------- queries

    async def test_list_is_filtered_and_ordered(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        for origin, gateway, metric in (("r1", "x", 5), ("r1", "y", 7), ("r2", "x", 7), ("r2", "y", 1), ("r3", "z", 2)):
            table.put_origin_route(replace(VIA_B, origin=origin, gateway=gateway, metric=metric))
        for origin, offers in (("r1", "ba"), ("r2", "ab"), ("r3", "a")):
            table.change_offers(origin, [Offer(service, ("1",), 1, 3) for service in offers])
        local = replace(LOCAL, service="a", metric=6)
        table.put(local)
        remote = [
            replace(REMOTE, service=service, gateway=gateway, router=router, metric=metric, load_us=3, version="1")
            for service, gateway, router, metric in (
                ("a", "y", "r2", 4),
                ("a", "z", "r3", 5),
                ("a", "x", "r1", 8),
                ("a", "x", "r2", 10),
                ("a", "y", "r1", 10),
                ("b", "y", "r2", 4),
                ("b", "x", "r1", 8),
                ("b", "x", "r2", 10),
                ("b", "y", "r1", 10),
            )
        ]
        ordered = sorted([*remote, local], key=lambda route: (route.service, route.metric, route.key))
        assert table.list() == ordered, "list is ordered by service, then metric, then key"
        for query in (
            RouteQuery(),
            RouteQuery(service="a"),
            RouteQuery(gateway="x"),
            RouteQuery(service="b", router="r2"),
            RouteQuery(network="nowhere"),
            RouteQuery(link="network", router="r1"),
            RouteQuery(link="local"),
            RouteQuery(address="tcp://x"),
        ):
            expected = [route for route in ordered if query.matches(route)]
            assert table.list(query) == expected, (
                f"list returns the matching routes (an empty field matches all): {query}"
            )

    async def test_origin_routes_and_offers_are_ordered(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        routes = [
            replace(VIA_B, origin=origin, gateway=gateway, metric=metric)
            for origin, gateway, metric in (("d", "x", 1), ("c", "z", 2), ("c", "y", 2), ("c", "x", 3))
        ]
        for route in routes:
            table.put_origin_route(route)
        assert [(route.origin, route.metric, route.gateway) for route in table.origin_routes()] == [
            ("c", 2, "y"),
            ("c", 2, "z"),
            ("c", 3, "x"),
            ("d", 1, "x"),
        ], "origin_routes is ordered by origin, then metric, then gateway"
        table.change_offers("c", [Offer("b"), Offer("a"), Offer("~t")])
        assert table.offers("c") == [Offer("a"), Offer("b"), Offer("~t")], "offers is ordered by service"
        table.change_offers("d", [Offer("~t"), Offer("~s")])
        table.put(replace(LOCAL, service="~local"))
        assert table.interests() == ["~local", "~s", "~t"], "interests returns each interest in a topic once, in order"
        table.change_offers("d", is_complete=True)
        table.delete(replace(LOCAL, service="~local").key)
        assert table.interests() == ["~t"], "interests returns the current interests only"
        assert table.offers("unknown") == [], "an unknown origin has no offers"
        table.change_offers("a", [Offer("b")])
        assert table.origins_of("b") == ("a", "c"), "origins_of returns the origins with the offer, in order"
        table.change_offers("a", removed=["b"])
        assert table.origins_of("b") == ("c",), "origins_of returns the current origins only"
        assert table.origins_of("unknown") == (), "no origin offers an unknown service"
        table.change_offers("a", [Offer("x")])
        assert table.origins() == ["a", "c", "d"], "origins returns all origins with a route or offers, in order"
        table.change_offers("a", removed=["x"])
        table.delete_origin_route(routes[0].key)
        assert table.origins() == ["c"], "origins returns no origin without a route and offers"

    async def test_returned_lists_do_not_expose_the_table(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(LOCAL)
        table.put_origin_route(VIA_B)
        table.change_offers(VIA_B.origin, [OFFER])
        table.list().clear()
        table.origin_routes().clear()
        table.offers(VIA_B.origin).clear()
        assert table.list() == [LOCAL, REMOTE], "changing the list that list() returned does not change the table"
        assert table.origin_routes() == [VIA_B], "changing the list of origin routes does not change the table"
        assert table.offers(VIA_B.origin) == [OFFER], "changing the list of offers does not change the table"
        assert isinstance(table.lookup(LOCAL.service), tuple), "lookup returns a tuple"

    # ---------------------------------------------------------------- watchers

    async def test_watchers_receive_each_change_after_it_is_applied(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        received: list[tuple[TableEvent, int]] = []
        stop = table.watch(lambda event: received.append((event, len(table.list()))))
        dearer, farther = replace(LOCAL, metric=501), replace(VIA_B, metric=600)
        busy = replace(OFFER, load_us=80)
        table.put(LOCAL)
        table.put(dearer)
        table.put_origin_route(VIA_B)
        table.put_origin_route(farther)
        table.change_offers(VIA_B.origin, [OFFER])
        table.change_offers(VIA_B.origin, [busy, Offer("a")])
        table.change_offers(VIA_B.origin, removed=[OFFER.service])
        table.delete_origin_route(VIA_B.key)
        table.delete(LOCAL.key)
        expected: list[tuple[TableEvent, int]] = [
            (LocalRouteChanged(None, LOCAL), 1),
            (LocalRouteChanged(LOCAL, dearer), 1),
            (OriginRouteChanged(None, VIA_B), 1),
            (OriginRouteChanged(VIA_B, farther), 1),
            (OffersChanged(VIA_B.origin, ((None, OFFER),)), 2),
            (OffersChanged(VIA_B.origin, ((OFFER, busy), (None, Offer("a")))), 3),
            (OffersChanged(VIA_B.origin, ((busy, None),)), 2),
            (OriginRouteChanged(farther, None), 1),
            (LocalRouteChanged(dearer, None), 0),
        ]
        assert [event for event, _ in received] == [event for event, _ in expected], (
            "watchers receive every change, also of the metric, with the state before and after it"
        )
        assert received == expected, "watchers receive a change after it was applied"
        stop()
        table.put(LOCAL)
        assert received == expected, "the function that watch returns ends the watch"

    async def test_equal_change_is_not_reported(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        table.put(LOCAL)
        table.put_origin_route(VIA_B)
        table.change_offers(VIA_B.origin, [OFFER])
        received: list[TableEvent] = []
        table.watch(received.append)
        table.put(replace(LOCAL))
        table.put_origin_route(replace(VIA_B))
        table.change_offers(VIA_B.origin, [replace(OFFER)], ["unknown"])
        table.change_offers(VIA_B.origin, [replace(OFFER)], is_complete=True)
        table.change_offers("unknown", is_complete=True)
        table.delete(replace(LOCAL, address="unknown").key)
        table.delete_origin_route(replace(VIA_B, gateway="unknown").key)
        assert received == [], "what is equal to the current content is not a change"

    async def test_failing_watcher_does_not_affect_the_change_or_others(self, harness: Harness[Table]) -> None:
        table = await harness.open()
        received: list[TableEvent] = []

        def fails(_event: TableEvent) -> None:
            raise RuntimeError("intentional failure")

        table.watch(fails)
        table.watch(received.append)
        table.put(LOCAL)
        assert table.lookup(LOCAL.service) == (LOCAL,), "a change is applied even if a watcher fails"
        assert received == [LocalRouteChanged(None, LOCAL)], "a failing watcher does not affect other watchers"

    async def test_tables_of_networks_are_isolated(self, harness: Harness[Table]) -> None:
        one, other = await harness.open(), await harness.open(network=f"{harness.network}.other")
        one.put(LOCAL)
        one.put_origin_route(VIA_B)
        one.change_offers(VIA_B.origin, [OFFER])
        assert other.list() == [] == other.origin_routes(), "tables of different networks share no routes"

    # ------------------------------------------------------------- persistence

    @requires(capability="persistent")
    async def test_routes_survive_a_restart(self, harness: Harness[Table]) -> None:
        context = harness.context()
        table = harness.create(context)
        await table.start()
        # Like routes that neighbours advertised: origins and gateways are node ids.
        advertised = replace(VIA_B, expires_at=None)
        kept = [replace(advertised, gateway=letter * 32, metric=number) for number, letter in enumerate("defgh")]
        kept[2] = replace(kept[2], services=frozenset({"go.micro.srv.a", "go.micro.srv.b"}))
        for route in kept:
            table.put_origin_route(route)
        deleted = replace(advertised, origin="e" * 32)
        table.put_origin_route(deleted)
        table.delete_origin_route(deleted.key)
        table.change_offers(advertised.origin, [OFFER, Offer("go.micro.srv.a"), Offer("go.micro.srv.removed")])
        table.change_offers(advertised.origin, removed=["go.micro.srv.removed"])
        await harness.close(table)
        again = harness.create(context)
        await again.start()
        restored = [replace(route, expires_at=None) for route in again.origin_routes()]
        assert restored == kept, (
            "a persistent table restores exactly the origin routes that existed, possibly with an expiry time"
        )
        assert again.offers(advertised.origin) == [Offer("go.micro.srv.a"), OFFER], (
            "a persistent table restores exactly the offers that existed"
        )
