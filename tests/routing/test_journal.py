"""The journal of the table: tables of the past, and changes since then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract.driver import CountersInMemory
from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Offer, OriginRoute, Route, RouteKey
from micro_core.routing.journal import Journal

VIA_G = OriginRoute(origin="r", gateway="g", metric=10, network="n")


class RecordedTable:
    """A table whose changes are recorded in a journal. The clock advances by one second per change."""

    def __init__(self, *, max_changes: int = 10_000) -> None:
        self.table = MemoryTable(logger=logging.getLogger("test"), counters=CountersInMemory())
        self.journal = Journal(self.table, max_changes=max_changes)
        self.now = 0.0
        self.table.watch(lambda event: self.journal.record(event, self.now))

    def after(self, change: Callable[..., object], *arguments: object, **options: object) -> None:
        self.now += 1.0
        change(*arguments, **options)


def local(service: str = "a", metric: int = 10) -> Route:
    return Route(service=service, address="x", gateway="", network="n", router="m", link=LOCAL_LINK, metric=metric)


def remote(service: str = "a", metric: int = 10, gateway: str = "g") -> Route:
    """Return a route to an origin. The load of "b" is 5 µs."""
    return Route(
        service=service,
        address="",
        gateway=gateway,
        network="n",
        router="r",
        link=NETWORK_LINK,
        metric=metric,
        load_us=5 if service == "b" else 0,
    )


def recorded() -> RecordedTable:
    one = RecordedTable()
    one.after(one.table.put, local("a"))
    one.after(one.table.put, local("b"))
    one.after(one.table.put, local("a", 20))
    one.after(one.table.delete, local("b").key)
    return one


def test_table_of_any_time_is_reconstructed() -> None:
    journal = recorded().journal
    tables = {at: {(one.service, one.metric) for one in journal.table_at(at)} for at in (0.5, 1.0, 2.5, 3.5, 9.0)}
    assert tables == {
        0.5: set(),
        1.0: {("a", 10)},
        2.5: {("a", 10), ("b", 10)},
        3.5: {("a", 20), ("b", 10)},
        9.0: {("a", 20)},
    }
    assert journal.table_at(2.5, "b") == [local("b")]


def test_difference_is_the_net_change() -> None:
    one = recorded()
    assert one.journal.difference(0.0) == ([local("a", 20)], [], [])
    assert one.journal.difference(2.5) == ([], [local("b")], [(local("a"), local("a", 20))])
    assert one.journal.difference(2.5, "b") == ([], [local("b")], [])
    one.after(one.table.put, local("b"))
    assert one.journal.difference(2.5)[:2] == ([], []), "the route was removed and added again"


def test_changes_are_numbered_and_bounded() -> None:
    one = RecordedTable(max_changes=3)
    for number in range(5):
        one.after(one.table.put, local(metric=number))
    assert [change.number for change in one.journal.last(9)] == [3, 4, 5]
    assert [change.number for change in one.journal.since(3, 9)] == [4, 5]
    assert [change.number for change in one.journal.since(0, 1)] == [3]
    assert one.journal.last(0) == []
    assert one.journal.reaches_back_to == 2.0
    (first, *_) = one.journal.last(9)
    assert first.before == replace(local(), metric=1)


def test_change_of_an_origin_route_is_one_record_and_expands_to_its_services() -> None:
    one = RecordedTable()
    one.after(one.table.change_offers, "r", [Offer("a"), Offer("b", load_us=5)])
    one.after(one.table.put_origin_route, VIA_G)
    one.after(one.table.put_origin_route, replace(VIA_G, metric=30))
    one.after(one.table.change_offers, "r", [Offer("c")], ["a"])
    one.after(one.table.change_offers, "r", [Offer("b", ("2",), 1, 5)])
    one.after(one.table.delete_origin_route, VIA_G.key)
    changed = replace(remote("b", 35), version="2")
    expected = [
        (1, 2.0, None, remote("a")),
        (2, 2.0, None, remote("b", 15)),
        (3, 3.0, remote("a"), remote("a", 30)),
        (4, 3.0, remote("b", 15), remote("b", 35)),
        (5, 4.0, remote("a", 30), None),
        (6, 4.0, None, remote("c", 30)),
        (7, 5.0, remote("b", 35), changed),
        (8, 6.0, changed, None),
        (9, 6.0, remote("c", 30), None),
    ]
    assert one.journal.last(100) == expected
    assert len(one.journal._records) == 6
    assert one.journal.last(3) == expected[-3:]
    for number in range(10):
        assert one.journal.since(number, 3) == expected[number : number + 3]
    assert one.journal.difference(3.5)[1] == [remote("a", 30), remote("b", 35)]


def test_routes_to_some_services_expand_to_these() -> None:
    one = RecordedTable()
    one.after(one.table.change_offers, "r", [Offer("a"), Offer("b"), Offer("c")])
    one.after(one.table.put_origin_route, replace(VIA_G, services=frozenset("b")))
    one.after(one.table.put_origin_route, replace(VIA_G, services=frozenset("bc")))
    one.after(one.table.put, local())
    found = [(change.number, change.route.service) for change in one.journal.last(10)]
    assert found == [(1, "b"), (4, "c"), (7, "a")], "numbers increase, with gaps for the other services"
    assert [change.number for change in one.journal.since(1, 10)] == [4, 7]


def test_list_of_offers_beyond_the_limit_is_discarded_with_the_next_change() -> None:
    one = RecordedTable(max_changes=10)
    one.after(one.table.put_origin_route, VIA_G)
    one.after(one.table.change_offers, "r", [Offer(f"s{number}") for number in range(50)])
    assert len(one.journal.last(100)) == 50
    one.after(one.table.put_origin_route, replace(VIA_G, metric=1))
    assert one.journal.reaches_back_to == 2.0
    assert {(change.before or remote()).metric for change in one.journal.last(100)} == {10}


NAMES = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("local"), NAMES, st.integers(0, 2)),
        st.tuples(st.just("route"), NAMES, st.integers(0, 2), st.sampled_from([None, frozenset("ab")])),
        st.tuples(st.just("no route"), NAMES),
        st.tuples(st.just("offer"), NAMES, NAMES, st.integers(0, 2)),
        st.tuples(st.just("no offer"), NAMES, NAMES),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_every_past_table_and_change_is_reconstructed(steps: list[tuple[Any, ...]]) -> None:
    one = RecordedTable()
    tables: list[dict[RouteKey, Route]] = [{}]
    for step in steps:
        match step:
            case "local", str() as service, int() as metric:
                one.after(one.table.put, local(service, metric))
            case "route", str() as name, int() as metric, services:
                changed = replace(VIA_G, origin=name, gateway="g", metric=metric, services=services)
                one.after(one.table.put_origin_route, changed)
            case "no route", str() as name:
                one.after(one.table.delete_origin_route, replace(VIA_G, origin=name).key)
            case "offer", str() as name, str() as service, int() as load_us:
                one.after(one.table.change_offers, name, [Offer(service, load_us=load_us)])
            case "no offer", str() as name, str() as service:
                one.after(one.table.change_offers, name, removed=[service])
        tables.append({route.key: route for route in one.table.list()})
    for at, table in enumerate(tables):
        assert {route.key: route for route in one.journal.table_at(float(at))} == table
    replayed: dict[RouteKey, Route] = {}
    number = 0
    while changes := one.journal.since(number, 3):
        for change in changes:
            assert replayed.get(change.route.key) == change.before
            replayed.pop(change.route.key, None)
            if change.after is not None:
                replayed[change.route.key] = change.after
        assert changes[0].number > number
        number = changes[-1].number
    assert replayed == tables[-1]
