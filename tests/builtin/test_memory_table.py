"""The route table in memory: comparison with a simple model, events and cost."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.builtin.table.memory import MemoryTable, micro_table
from micro_core.contract import CountersInMemory, DriverContext, Route, RouteEvent, RouteEventKind, RouteKey, RouteQuery

CREATE, UPDATE, DELETE = RouteEventKind.CREATE, RouteEventKind.UPDATE, RouteEventKind.DELETE
ROUTE = Route(service="greeter", address="", gateway="b", network="go.micro", router="c", link="network", metric=500)


def new_table(counters: CountersInMemory | None = None) -> MemoryTable:
    return MemoryTable(logger=logging.getLogger("test"), counters=counters or CountersInMemory())


def test_lookup_returns_the_same_tuple_until_the_service_changes() -> None:
    table = new_table()
    table.put(ROUTE)
    answer = table.lookup("greeter")
    table.put(replace(ROUTE, service="other"))
    table.put(ROUTE)
    assert table.lookup("greeter") is answer
    table.put(replace(ROUTE, metric=1))
    assert table.lookup("greeter") == (replace(ROUTE, metric=1),)


def test_changes_made_by_a_watcher_reach_all_watchers_in_order() -> None:
    table = new_table()
    events: list[RouteEventKind] = []

    def remove_immediately(event: RouteEvent) -> None:
        if event.kind is CREATE:
            table.delete(event.route.key)

    table.watch(remove_immediately)
    table.watch(lambda event: events.append(event.kind))
    table.put(ROUTE)
    assert events == [CREATE, DELETE]
    assert table.list() == []


def test_failing_watcher_is_counted_and_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    counters = CountersInMemory()
    table = new_table(counters)
    received: list[Route] = []

    def fail(_: RouteEvent) -> None:
        raise ValueError("no")

    table.watch(fail)
    table.watch(lambda event: received.append(event.route))
    table.put(ROUTE)
    assert received == [ROUTE]
    assert table.lookup("greeter") == (ROUTE,)
    assert counters.values == {"table_watcher_failed": 1}
    assert "table watcher failed" in caplog.text


def test_watcher_ended_by_another_watcher_receives_nothing_more() -> None:
    table = new_table()
    received: list[Route] = []
    ends: list[Callable[[], None]] = []
    table.watch(lambda _: ends[0]())
    ends.append(table.watch(lambda event: received.append(event.route)))
    table.put(ROUTE)
    assert received == []


async def test_closed_table_keeps_its_routes_and_has_no_watchers(
    make_context: Callable[..., DriverContext],
) -> None:
    driver = micro_table()
    table = driver.create(driver.options(), make_context())
    await table.start()
    received: list[Route] = []
    table.watch(lambda event: received.append(event.route))
    await table.close()
    table.put(ROUTE)
    assert table.lookup("greeter") == (ROUTE,)
    assert received == []


class NaiveTable:
    """A simple model of the table: a list of routes."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.events: list[tuple[RouteEventKind, Route]] = []

    def put(self, route: Route) -> None:
        before = [other for other in self.routes if other.key == route.key]
        if before == [route]:
            return
        self.routes = [other for other in self.routes if other.key != route.key] + [route]
        self.events.append((UPDATE if before else CREATE, route))

    def delete(self, key: RouteKey) -> bool:
        removed = [other for other in self.routes if other.key == key]
        self.routes = [other for other in self.routes if other.key != key]
        self.events.extend((DELETE, route) for route in removed)
        return bool(removed)

    def list(self, query: RouteQuery) -> list[Route]:
        found = [route for route in self.routes if query.matches(route)]
        return sorted(found, key=lambda route: (route.service, route.metric, route.key))


NAMES = st.sampled_from(["a", "b"])
ROUTES = st.builds(
    Route,
    service=st.sampled_from(["x", "y", "z"]),
    address=NAMES,
    gateway=NAMES,
    network=st.just("n"),
    router=NAMES,
    link=st.sampled_from(["local", "network"]),
    metric=st.integers(0, 3),
)
OPTIONAL = st.sampled_from(["", "a", "b"])
QUERIES = st.builds(
    RouteQuery,
    service=st.sampled_from(["", "x", "y"]),
    address=OPTIONAL,
    gateway=OPTIONAL,
    router=OPTIONAL,
    link=st.sampled_from(["", "local"]),
)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "delete", "list", "lookup"]), ROUTES, QUERIES), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_table_behaves_like_the_model(steps: list[tuple[str, Route, RouteQuery]]) -> None:
    table, model = new_table(), NaiveTable()
    events: list[tuple[RouteEventKind, Route]] = []
    table.watch(lambda event: events.append((event.kind, event.route)))
    for verb, route, query in steps:
        if verb == "put":
            table.put(route)
            model.put(route)
        elif verb == "delete":
            assert table.delete(route.key) == model.delete(route.key)
        elif verb == "list":
            assert table.list(query) == model.list(query)
        assert table.lookup(route.service) == tuple(model.list(RouteQuery(service=route.service)))
    assert table.list() == model.list(RouteQuery())
    assert events == model.events


def best_of(rounds: int, action: Callable[[], object]) -> float:
    """Return the shortest duration of several rounds in seconds, which other load of the machine affects least."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def test_cost_is_independent_of_the_routes_of_other_services() -> None:
    small, large = new_table(), new_table()
    routes = [replace(ROUTE, service=f"service-{number % 5_000}", router=str(number)) for number in range(50_000)]
    for route in routes:
        large.put(route)
    for table in (small, large):
        table.put(ROUTE)
    plain = {"greeter": (ROUTE,)}

    def look_up(table: MemoryTable) -> None:
        for _ in range(2_000):
            table.lookup("greeter")

    def get() -> None:
        for _ in range(2_000):
            plain.get("greeter")

    def put(table: MemoryTable) -> None:
        for metric in range(1_000):
            table.put(replace(ROUTE, metric=metric))

    assert best_of(5, lambda: look_up(large)) < 25 * best_of(5, get)
    assert best_of(5, lambda: put(large)) < 4 * best_of(5, lambda: put(small))
