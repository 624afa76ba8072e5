"""The table and its file: restored routes and file faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import sqlite3
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_sqlite_table import micro_table
from micro_sqlite_table.options import SqliteOptions
from micro_sqlite_table.route_file import APPLICATION_ID, SCHEMA_VERSION
from micro_sqlite_table.rows import Clocks, offer_to_row, route_to_row, row_to_offer, row_to_route
from micro_sqlite_table.table import SqliteTable

from micro_core.contract import Conflict, CountersInMemory, DriverContext, Offer, OptionError, OriginRoute, Route

NODE_ID = "m" * 32
ROUTE = OriginRoute(origin="c" * 32, gateway="b" * 32, metric=500, network="go.micro", site="eu", hops=2)
OFFER = Offer("go.micro.srv.greeter", ("1.2", "1.3"), 2, 40)
TIMEOUT_S = 15.0


class ManualClock:
    """A clock that the test advances. The zero of the monotonic clock can be changed, as in another process."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self.seconds, self.zero = wall, 0.0

    def now(self) -> float:
        return self.seconds - self.zero

    def wall(self) -> float:
        return self.seconds


def context_of(directory: Path, clock: ManualClock | None = None, *, node_id: str = NODE_ID) -> DriverContext:
    return DriverContext(
        node_id=node_id,
        network="go.micro",
        site="eu",
        state_dir=str(directory),
        clock=clock or ManualClock(),
        random=random.Random(1),
        logger=logging.getLogger("test.sqlite"),
        counters=CountersInMemory(),
    )


@asynccontextmanager
async def opened(
    directory: Path, clock: ManualClock | None = None, *, node_id: str = NODE_ID, **options: object
) -> AsyncIterator[SqliteTable]:
    table = micro_table().create(SqliteOptions(**options), context_of(directory, clock, node_id=node_id))  # type: ignore[arg-type]
    assert isinstance(table, SqliteTable)
    await table.start()
    try:
        yield table
    finally:
        await table.close()


def file_of(directory: Path) -> Path:
    return directory / "tables" / f"{NODE_ID}-go.micro.sqlite"


def count(table: SqliteTable, name: str) -> int:
    counters = table._counters
    assert isinstance(counters, CountersInMemory)
    return counters.values.get(name, 0)


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {TIMEOUT_S} s: {what}") from None


def origin_id(number: int) -> str:
    """Return the node id of an origin."""
    return f"{number:032}".translate(str.maketrans("0123456789", "abcdefghij"))


def names_in(path: Path, column: str = "origin", table: str = "origin_routes") -> list[str]:
    """Return the values of a column of the file, as read by another program."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda data: data.decode(errors="replace")
        return [name for (name,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY {column}")]


# --------------------------------------------------------------------------- restored routes


async def test_learned_routes_are_restored_with_a_lease_and_local_routes_are_not(tmp_path: Path) -> None:
    clock = ManualClock()
    local = Route(service="greeter", address="tcp://1", gateway="", network="n", router=NODE_ID, link="local", metric=0)
    partial = replace(ROUTE, gateway="d" * 32, metric=600, services=frozenset({"a", "~orders"}))
    async with opened(tmp_path, clock) as table:
        table.put(local)
        for route in (ROUTE, partial, replace(ROUTE, origin="d" * 32)):
            table.put_origin_route(route)
        table.delete_origin_route(replace(ROUTE, origin="d" * 32).key)
        table.change_offers(ROUTE.origin, [OFFER, Offer("*"), Offer("~orders"), Offer("removed")])
        table.change_offers(ROUTE.origin, removed=["removed"])
    clock.seconds += 30.0
    clock.zero = clock.seconds - 5.0
    async with opened(tmp_path, clock) as table:
        expires_at = clock.now() + 60.0
        assert table.origin_routes() == [replace(route, expires_at=expires_at) for route in (ROUTE, partial)]
        assert table.offers(ROUTE.origin) == [Offer("*"), OFFER, Offer("~orders")]
        assert [(route.service, route.gateway[0], route.is_stale) for route in table.list()] == [
            ("*", "b", True),
            (OFFER.service, "b", True),
            ("~orders", "b", True),
            ("~orders", "d", True),
        ]


async def test_offers_of_an_origin_without_a_route_are_not_restored(tmp_path: Path) -> None:
    async with opened(tmp_path) as table:
        table.put_origin_route(ROUTE)
        for origin in (ROUTE.origin, "d" * 32):
            table.change_offers(origin, [OFFER])
    async with opened(tmp_path) as table:
        assert table.offers("d" * 32) == []
        assert table.offers(ROUTE.origin) == [OFFER]
    assert names_in(file_of(tmp_path), "origin", "offers") == [ROUTE.origin]


async def test_offer_with_hundreds_of_instances_is_restored(tmp_path: Path) -> None:
    many = replace(OFFER, capacity=500)
    async with opened(tmp_path) as table:
        table.put_origin_route(ROUTE)
        table.change_offers(ROUTE.origin, [many])
    async with opened(tmp_path) as table:
        assert table.offers(ROUTE.origin) == [many]


async def test_rewritten_file_contains_offers_of_an_origin_whose_route_is_learned_later(tmp_path: Path) -> None:
    async with opened(tmp_path, flush_s=0.01) as table:
        table._must_rewrite = True
        table.change_offers(ROUTE.origin, [OFFER])
        table._due.set()
        await until(lambda: not table._must_rewrite and not table._unwritten, "the file is rewritten")
        table.put_origin_route(ROUTE)
    async with opened(tmp_path) as table:
        assert table.offers(ROUTE.origin) == [OFFER]


async def test_routes_of_a_node_that_ended_long_ago_are_not_restored(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as table:
        table.put_origin_route(ROUTE)
        table.change_offers(ROUTE.origin, [OFFER])
    clock.seconds += 90.0
    async with opened(tmp_path, clock) as table:
        assert table.origin_routes() == []
        assert table.offers(ROUTE.origin) == []
        assert count(table, "sqlite_routes_too_old") == 1
    assert names_in(file_of(tmp_path)) == []
    assert names_in(file_of(tmp_path), "service", "offers") == []


async def test_repeated_restarts_do_not_restore_a_route_for_ever(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as table:
        table.put_origin_route(ROUTE)
    for run in (1, 2):
        clock.seconds += 40.0
        async with opened(tmp_path, clock) as table:
            assert ROUTE.origin in {route.origin for route in table.origin_routes()}
            # This write also updates the time at which the node was last alive.
            table.put_origin_route(replace(ROUTE, origin="e" * 32, metric=run))
    clock.seconds += 40.0
    async with opened(tmp_path, clock) as table:
        assert [route.origin for route in table.origin_routes()] == ["e" * 32]


async def test_wall_clock_that_jumps_back_does_not_extend_a_lease(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as table:
        table.put_origin_route(ROUTE)
    clock.seconds -= 100_000.0
    async with opened(tmp_path, clock) as table:
        (route,) = table.origin_routes()
        assert route.expires_at == pytest.approx(clock.now() + 90.0)


async def test_changes_are_merged_and_written_soon(tmp_path: Path) -> None:
    async with opened(tmp_path, flush_s=0.05) as table:
        for metric in range(1_000):
            table.put_origin_route(replace(ROUTE, metric=metric))
            table.change_offers(ROUTE.origin, [replace(OFFER, load_us=metric)])
        assert len(table._unwritten) == 2
        await until(lambda: names_in(file_of(tmp_path)) == [ROUTE.origin], "the route was written")
        await until(
            lambda: names_in(file_of(tmp_path), "service", "offers") == [OFFER.service], "the offer was written"
        )
        table.delete_origin_route(ROUTE.key)
        table.change_offers(ROUTE.origin, removed=[OFFER.service])
        await until(lambda: names_in(file_of(tmp_path)) == [], "the route was deleted from the file")
        await until(
            lambda: names_in(file_of(tmp_path), "service", "offers") == [], "the offer was deleted from the file"
        )


async def test_file_records_that_the_node_is_alive_without_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_sqlite_table.table.HEARTBEAT_S", 0.05)
    clock = ManualClock()
    async with opened(tmp_path, clock, flush_s=0.01) as table:
        table.put_origin_route(ROUTE)
        clock.seconds += 1_000.0

        def alive_at() -> float:
            with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as connection:
                row = connection.execute("SELECT value FROM facts WHERE name = 'alive_at'").fetchone()
                return float(row[0]) if row is not None else 0.0

        await until(lambda: alive_at() == clock.seconds, "alive_at was updated")


async def test_routes_over_the_limit_stay_in_memory_and_are_counted(tmp_path: Path) -> None:
    routes = [replace(ROUTE, origin=origin_id(number), metric=number) for number in range(5)]
    async with opened(tmp_path, max_rows=3) as table:
        for route in routes:
            table.put_origin_route(route)
        assert table.origin_routes() == routes
        assert count(table, "sqlite_routes_over_limit") == 2
        table.delete_origin_route(routes[0].key)
        table.delete_origin_route(routes[4].key)
        table.put_origin_route(routes[4])
        table.put_origin_route(replace(routes[3], metric=0))
    assert names_in(file_of(tmp_path)) == [origin_id(number) for number in (1, 2, 4)]
    async with opened(tmp_path, max_rows=2) as table:
        assert len(table.origin_routes()) == 2
        assert count(table, "sqlite_rows_refused") == 1
        await until(lambda: len(names_in(file_of(tmp_path))) == 2, "the file was rewritten within its limit")


async def test_offers_over_the_limit_stay_in_memory_and_are_counted(tmp_path: Path) -> None:
    offers = [Offer(f"service-{number}") for number in range(5)]
    async with opened(tmp_path, max_rows=3) as table:
        table.put_origin_route(ROUTE)
        table.change_offers(ROUTE.origin, offers)
        assert table.offers(ROUTE.origin) == offers
        assert count(table, "sqlite_routes_over_limit") == 2
    async with opened(tmp_path, max_rows=3) as table:
        assert table.offers(ROUTE.origin) == offers[:3]
        assert count(table, "sqlite_rows_refused") == 0


@pytest.mark.parametrize(
    "options", [{"flush_s": 0.0}, {"keep_s": -1.0}, {"keep_s": float("nan")}, {"max_rows": 0}], ids=str
)
def test_invalid_option_is_rejected_by_name(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        micro_table().create(SqliteOptions(**options), context_of(tmp_path))  # type: ignore[arg-type]


def test_network_name_cannot_escape_the_directory(tmp_path: Path) -> None:
    context = replace(context_of(tmp_path), network="a/../../b" + "x" * 200)
    table = micro_table().create(SqliteOptions(), context)
    assert isinstance(table, SqliteTable)
    assert table._file.path.parent == tmp_path / "tables"
    assert len(table._file.path.name) < 120


# -------------------------------------------------------------------------------- hostile rows


@pytest.mark.parametrize(
    "change",
    [
        "origin = '../../etc'",
        "origin = x'00ff'",
        "origin = CAST(x'ff41' AS TEXT)",
        "gateway = 'not a node'",
        "gateway = 7",
        "network = ''",
        "metric = -1",
        "metric = 'cheap'",
        "metric = 9223372036854775807",
        "site = 'a' || char(27) || '[2J'",
        "hops = 1000",
        "hops = 1.5",
        "services = x'00ff'",
        "services = char(10)",
        "services = 'a' || char(10) || 'not a service'",
        "expires_at = 'soon'",
        "expires_at = 9e999",
    ],
)
async def test_invalid_route_is_rejected_counted_and_removed(tmp_path: Path, change: str) -> None:
    valid = replace(ROUTE, origin="v" * 32)
    async with opened(tmp_path) as table:
        table.put_origin_route(ROUTE)
        table.put_origin_route(valid)
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as connection, connection:
        connection.execute(f"UPDATE origin_routes SET {change} WHERE origin = ?", (ROUTE.origin,))
    async with opened(tmp_path) as table:
        if change.startswith("expires_at"):
            # An invalid expiry can only shorten the lease.
            assert {route.expires_at for route in table.origin_routes()} == {table._clock.now() + 90.0}
            return
        assert [route.origin for route in table.origin_routes()] == [valid.origin]
        assert count(table, "sqlite_rows_refused") == 1
        await until(lambda: names_in(file_of(tmp_path)) == [valid.origin], "the file was rewritten")


@pytest.mark.parametrize(
    "change",
    [
        "origin = 'no node'",
        "service = '../../etc'",
        "service = x'00ff'",
        "service = CAST(x'ff41' AS TEXT)",
        "versions = NULL",
        "versions = printf('%.5000c', 'v')",
        "versions = printf('%.100000c', 'v')",
        "versions = 'a' || char(10) || char(10) || 'b'",
        "versions = 'a' || char(27) || '[2J'",
        "capacity = -1",
        "capacity = 'large'",
        "load_us = 9223372036854775807",
        "load_us = 1.5",
    ],
)
async def test_invalid_offer_is_rejected_counted_and_removed(tmp_path: Path, change: str) -> None:
    async with opened(tmp_path) as table:
        table.put_origin_route(ROUTE)
        table.change_offers(ROUTE.origin, [OFFER, Offer("valid")])
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as connection, connection:
        connection.execute(f"UPDATE offers SET {change} WHERE service = ?", (OFFER.service,))
    async with opened(tmp_path) as table:
        if "100000" in change:
            # A row above the limit of SQLite makes the file unreadable.
            assert count(table, "sqlite_file_failures") + count(table, "sqlite_files_set_aside") >= 1
            return
        assert table.offers(ROUTE.origin) == [Offer("valid")]
        if change.startswith("origin"):
            # Without a route to its origin, the row was removed before it was read.
            return
        assert count(table, "sqlite_rows_refused") == 1
        await until(lambda: names_in(file_of(tmp_path), "service", "offers") == ["valid"], "the file was rewritten")


TEXTS = st.text(max_size=300)
VALUES = st.one_of(st.none(), st.integers(), st.floats(), TEXTS, st.binary(max_size=20))
SERVICES = st.one_of(st.just("go.micro.srv.greeter"), st.just("*"), st.just("~orders.created"), TEXTS)
ROUTES = st.builds(
    OriginRoute,
    origin=st.one_of(st.just("c" * 32), TEXTS),
    gateway=st.one_of(st.just("b" * 32), TEXTS),
    network=st.one_of(st.just("go.micro"), TEXTS),
    metric=st.integers(-10, 2**70),
    site=TEXTS,
    hops=st.integers(-1, 300),
    services=st.one_of(st.none(), st.frozensets(SERVICES, max_size=3)),
    expires_at=st.one_of(st.none(), st.floats()),
)
OFFERS = st.builds(
    Offer, SERVICES, st.lists(TEXTS, max_size=3).map(tuple), st.integers(-1, 2**70), st.integers(-1, 2**70)
)


@given(st.tuples(*[VALUES] * 8))
@settings(max_examples=300, deadline=None)
def test_arbitrary_row_does_not_raise(row: tuple[object, ...]) -> None:
    row_to_route(row, 100.0, Clocks(0.0, 0.0))
    row_to_offer(row[:5])


@given(ROUTES)
@settings(max_examples=300, deadline=None)
def test_written_route_is_read_unchanged(route: OriginRoute) -> None:
    clocks = Clocks(10.0, 1_000.0)
    row = route_to_row(route, clocks)
    if row is None:
        return
    restored = row_to_route(row, 1e300, clocks)
    assert restored is not None
    assert replace(restored, expires_at=None) == replace(route, expires_at=None)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT " + ", ".join("?" * 8), row).fetchone() == row


@given(OFFERS)
@settings(max_examples=300, deadline=None)
def test_written_offer_is_read_unchanged(offer: Offer) -> None:
    row = offer_to_row("c" * 32, offer)
    if row is None:
        return
    assert row_to_offer(row) == ("c" * 32, offer)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT " + ", ".join("?" * 5), row).fetchone() == row


# -------------------------------------------------------------------------------- corrupt files


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is not a database, but it is long enough to look like one to SQLite" * 20,
        lambda data: data[:5_000],
        lambda data: data[:4_096] + random.Random(1).randbytes(len(data) - 4_096),
    ],
    ids=["not a database", "truncated", "overwritten"],
)
async def test_corrupt_file_is_set_aside_and_a_new_one_created(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as table:
        for number in range(300):
            table.put_origin_route(replace(ROUTE, origin=origin_id(number)))
    path = file_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        async with opened(tmp_path) as table:
            assert table.origin_routes() == []
            table.put_origin_route(ROUTE)
            assert count(table, "sqlite_files_set_aside") == 1
            assert count(table, "sqlite_file_failures") == 0
    assert [record.message for record in caplog.records] == ["corrupt route file set aside, new file created"]
    assert path.with_name(path.name + ".corrupt").exists()
    async with opened(tmp_path) as table:
        assert [route.origin for route in table.origin_routes()] == [ROUTE.origin]


async def test_file_damaged_at_run_time_is_rewritten(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    async with opened(tmp_path, flush_s=0.02) as table:
        for number in range(2_000):
            table.put_origin_route(replace(ROUTE, origin=origin_id(number)))
        await until(lambda: not table._unwritten and len(names_in(path)) == 2_000, "all routes were written")
        await table._in_thread(lambda: table._file._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)"))  # type: ignore[union-attr]
        with path.open("r+b") as damaged:
            damaged.seek(4_096)
            damaged.write(random.Random(1).randbytes(path.stat().st_size - 4_096))
        # Drop the page cache, since SQLite would otherwise write back intact pages.
        await table._in_thread(lambda: table._file._connection.execute("PRAGMA shrink_memory"))  # type: ignore[union-attr]
        for number in range(2_000):
            table.put_origin_route(replace(ROUTE, origin=origin_id(number), metric=7))
        await until(lambda: count(table, "sqlite_files_set_aside") == 1, "the damage was detected")
        await until(lambda: not table._must_rewrite and len(names_in(path)) == 2_000, "the new file is complete")
        assert len(table.origin_routes()) == 2_000
    async with opened(tmp_path) as table:
        assert {route.metric for route in table.origin_routes()} == {7}
        assert len(table.origin_routes()) == 2_000


async def test_file_with_another_version_or_schema_is_set_aside(tmp_path: Path) -> None:
    for statement in (
        f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
        "CREATE TRIGGER t AFTER DELETE ON offers BEGIN INSERT INTO facts VALUES ('x', 1); END",
        "DROP TABLE facts",
        "DELETE FROM facts",
    ):
        async with opened(tmp_path) as table:
            table.put_origin_route(ROUTE)
        with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as connection, connection:
            connection.execute(statement)
        async with opened(tmp_path) as table:
            assert table.origin_routes() == [], statement
            assert count(table, "sqlite_files_set_aside") == 1, statement


async def test_file_of_an_earlier_version_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tmp_path)
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE routes (service TEXT)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    with caplog.at_level(logging.INFO):
        async with opened(tmp_path) as table:
            assert table.origin_routes() == []
            table.put_origin_route(ROUTE)
            assert count(table, "sqlite_files_replaced") == 1
            assert count(table, "sqlite_files_set_aside") == 0
    assert [record.message for record in caplog.records] == ["route file of an earlier version replaced"]
    assert names_in(path) == [ROUTE.origin]


async def test_file_of_another_program_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(OptionError, match=r"accounts\.db belongs to another program"):
        async with opened(tmp_path, path=str(path)):
            pass
    assert path.read_bytes() == before
    assert APPLICATION_ID != 0


# ---------------------------------------------------------------------------------- two owners


async def test_two_nodes_cannot_share_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "shared.sqlite")
    async with opened(tmp_path, path=path) as table:
        table.put_origin_route(ROUTE)
        with pytest.raises(Conflict, match=r"another node is using .*shared\.sqlite") as caught:
            async with opened(tmp_path, path=path, node_id="n" * 32):
                pass
        assert "its own path" in caught.value.hint
    with pytest.raises(Conflict, match="routes of another node, 'mmmm"):
        async with opened(tmp_path, path=path, node_id="n" * 32):
            pass
    async with opened(tmp_path, path=path) as table:
        assert len(table.origin_routes()) == 1


async def test_two_processes_cannot_share_a_file_and_a_dead_process_releases_it(tmp_path: Path) -> None:
    with writing(tmp_path) as child:
        with pytest.raises(Conflict, match="another node is using"):
            async with opened(tmp_path):
                pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        async with opened(tmp_path, ManualClock(time.time())) as table:
            assert table.origin_routes()


# ------------------------------------------------------------------------- file faults


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Make a directory read-only; root temporarily becomes an unprivileged user."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    directory.chmod(0o555)  # other users may enter it
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(mode)


async def test_node_continues_in_memory_in_a_read_only_directory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The unprivileged user cannot enter tmp_path.
    with tempfile.TemporaryDirectory(prefix="micro-sqlite-") as name:
        directory = Path(name)
        with unwritable(directory), caplog.at_level(logging.INFO):
            async with opened(directory, flush_s=0.01) as table:
                table.put_origin_route(ROUTE)
                assert table.origin_routes() == [ROUTE]
                await until(lambda: count(table, "sqlite_file_failures") >= 2, "the file is retried")
        assert [record.message.partition(":")[0] for record in caplog.records] == ["route file failed"]


async def test_full_disk_does_not_stop_the_node_and_routes_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(tmp_path)
    with caplog.at_level(logging.INFO):
        async with opened(tmp_path, flush_s=0.02) as table:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            # Limit the size of files, which looks like a full disk to SQLite.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                for number in range(3_000):
                    table.put_origin_route(replace(ROUTE, origin=origin_id(number)))
                await until(lambda: count(table, "sqlite_file_failures") >= 1, "a write failed")
                assert len(table.origin_routes()) == 3_000
                assert not table._unwritten, "no changes are collected for a failed file"
                table.delete_origin_route(replace(ROUTE, origin=origin_id(1)).key)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await until(lambda: not table._is_failing, "the file works again")
            assert len(names_in(path)) == 2_999
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "route file failed",
        "route file recovered",
    ]


async def test_file_locked_by_another_program_does_not_block_the_loop(tmp_path: Path) -> None:
    async with opened(tmp_path, flush_s=0.01) as table:
        with contextlib.closing(sqlite3.connect(file_of(tmp_path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            table.put_origin_route(ROUTE)
            iterations, started_at = 0, time.monotonic()
            while count(table, "sqlite_file_failures") == 0:
                assert time.monotonic() - started_at < TIMEOUT_S
                await asyncio.sleep(0.005)
                iterations += 1
            # SQLite waits one second for the lock; a blocked loop would run only one iteration.
            assert iterations > 10
            other.execute("ROLLBACK")
        await until(lambda: names_in(file_of(tmp_path)) == [ROUTE.origin], "the route was written")


# ------------------------------------------------------------------------------------- kill -9

WRITER = """
import asyncio, sys
from dataclasses import replace
from micro_core.contract import Offer, OriginRoute
from micro_core.testing import context
from micro_sqlite_table import micro_table
from micro_sqlite_table.options import SqliteOptions

ROUTE = OriginRoute(origin="c" * 32, gateway="b" * 32, network="go.micro", metric=0)

async def main():
    driver_context = replace(context(state_dir=sys.argv[1]), node_id="m" * 32)
    table = micro_table().create(SqliteOptions(flush_s=0.001), driver_context)
    await table.start()
    round = 0
    while True:
        round += 1
        for first in "abcde":
            for second in "abcde":
                table.put_origin_route(replace(ROUTE, origin=first + second * 31, metric=round))
        for number in range(round % 7, 500, 7):
            table.change_offers("a" * 32, [Offer(f"s{number}", load_us=round)], [f"s{number + 1}"])
        await asyncio.sleep(0)
        print(round, flush=True)

asyncio.run(main())
"""


def has_stored_routes(path: Path) -> bool:
    """Return whether the file contains routes. The driver creates the file before the table."""
    if not path.exists():
        return False
    try:
        return bool(names_in(path))
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return False


@contextmanager
def writing(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that changes its table as fast as it can and prints the number of each round of changes."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not has_stored_routes(file_of(directory)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("rounds", [3, 12, 40, 110])
async def test_process_killed_during_a_write_leaves_an_intact_file(tmp_path: Path, rounds: int) -> None:
    with writing(tmp_path) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < rounds:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    async with opened(tmp_path, ManualClock(time.time())) as table:
        routes = table.origin_routes()
        assert routes
        assert count(table, "sqlite_files_set_aside") == count(table, "sqlite_rows_refused") == 0
        assert all(route.expires_at is not None for route in routes)


# --------------------------------------------------------------------------------------- scale


async def test_hundred_thousand_offers_load_at_start_and_lookup_costs_as_much_as_a_dict(tmp_path: Path) -> None:
    count = 100_000
    async with opened(tmp_path) as table:
        for gateway in "bd":
            table.put_origin_route(replace(ROUTE, gateway=gateway * 32))
        table.change_offers(ROUTE.origin, [Offer(f"go.micro.srv.s{number}") for number in range(count)])
    # Measure CPU time, since other processes may be using the machine.
    started_at = time.process_time()
    async with opened(tmp_path) as table:
        load_s = time.process_time() - started_at
        assert len(table.offers(ROUTE.origin)) == count
        names = [f"go.micro.srv.s{number * 37 % count}" for number in range(2_000)]
        plain = {name: table.lookup(name) for name in names}

        def look_up(find: Callable[[str], object]) -> float:
            started_at = time.perf_counter()
            for name in names:
                find(name)
            return (time.perf_counter() - started_at) / len(names)

        pairs = [(look_up(table.lookup), look_up(lambda name: plain.get(name))) for _ in range(31)]
        lookup_s, dict_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    # Shown with --log-cli-level=INFO.
    figures = (load_s, lookup_s * 1e9, dict_s * 1e9)
    logging.getLogger("test.sqlite").info("loaded in %.2f s of CPU time; lookup %.0f ns, plain dict %.0f ns", *figures)
    assert load_s < 20.0
    assert lookup_s < 8 * dict_s
