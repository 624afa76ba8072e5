"""The journal of the table: tables of the past, and changes since then."""

from __future__ import annotations

from dataclasses import replace

from micro_core.contract.table import NETWORK_LINK, Route, RouteEvent, RouteEventKind
from micro_core.routing.journal import Journal


def route(service: str = "a", metric: int = 10) -> Route:
    return Route(service=service, address="", gateway="g", network="n", router="r", link=NETWORK_LINK, metric=metric)


def create(one: Route) -> RouteEvent:
    return RouteEvent(kind=RouteEventKind.CREATE, route=one)


def update(one: Route) -> RouteEvent:
    return RouteEvent(kind=RouteEventKind.UPDATE, route=one)


def delete(one: Route) -> RouteEvent:
    return RouteEvent(kind=RouteEventKind.DELETE, route=one)


def recorded_journal() -> Journal:
    journal = Journal()
    journal.record(create(route("a")), 1.0)
    journal.record(create(route("b")), 2.0)
    journal.record(update(route("a", 20)), 3.0)
    journal.record(delete(route("b")), 4.0)
    return journal


def test_table_of_any_time_is_reconstructed() -> None:
    journal = recorded_journal()
    tables = {at: {(one.service, one.metric) for one in journal.table_at(at)} for at in (0.5, 1.0, 2.5, 3.5, 9.0)}
    assert tables == {
        0.5: set(),
        1.0: {("a", 10)},
        2.5: {("a", 10), ("b", 10)},
        3.5: {("a", 20), ("b", 10)},
        9.0: {("a", 20)},
    }


def test_difference_is_the_net_change() -> None:
    journal = recorded_journal()
    assert journal.difference(0.0) == ([route("a", 20)], [], [])
    assert journal.difference(2.5) == ([], [route("b")], [(route("a"), route("a", 20))])
    journal.record(create(route("b")), 5.0)
    assert journal.difference(2.5)[:2] == ([], []), "the route was removed and added again"


def test_changes_are_numbered_and_bounded() -> None:
    journal = Journal(max_changes=3)
    for number in range(5):
        journal.record(update(route(metric=number)), float(number))
    assert [change.number for change in journal.last(9)] == [3, 4, 5]
    assert [change.number for change in journal.since(3, 9)] == [4, 5]
    assert [change.number for change in journal.since(0, 1)] == [3]
    assert journal.last(0) == []
    assert journal.reaches_back_to == 1.0
    (first, *_) = journal.last(9)
    assert first.before == replace(route(), metric=1)
