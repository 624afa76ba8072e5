"""The SQLite file with the origin routes and offers that one node has learned. Its methods block, so they run in a worker thread.

The file uses a write-ahead log and synchronous NORMAL: commits survive a crash of the process at any moment. A crash of the
machine may lose the last commits but does not corrupt the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from micro_core.contract import Conflict, Offer, OptionError, OriginRoute, OriginRouteKey
from micro_sqlite_table.rows import (
    OFFER_COLUMNS,
    ROUTE_COLUMNS,
    Clocks,
    OfferKey,
    Row,
    offer_to_row,
    route_to_row,
    row_to_offer,
    row_to_route,
)

SCHEMA_VERSION = 2
"""PRAGMA user_version. A file with an earlier version is replaced instead of migrated, since routes are soon learned again."""

APPLICATION_ID = 0x6D726F75
"""PRAGMA application_id (`mrou`). The file of another program is never changed."""

_ROUTES = (
    "CREATE TABLE origin_routes (origin TEXT, gateway TEXT, network TEXT, metric INTEGER, site TEXT, hops INTEGER, "
    "services TEXT, expires_at REAL, PRIMARY KEY (origin, gateway)) WITHOUT ROWID"
)
_OFFERS = (
    "CREATE TABLE offers (origin TEXT, service TEXT, versions TEXT, capacity INTEGER, load_us INTEGER, "
    "PRIMARY KEY (origin, service)) WITHOUT ROWID"
)
_FACTS = "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID"
SCHEMA = {("table", "origin_routes", _ROUTES), ("table", "offers", _OFFERS), ("table", "facts", _FACTS)}

_PUT_ROUTE = f"INSERT OR REPLACE INTO origin_routes VALUES ({', '.join('?' * len(ROUTE_COLUMNS))})"  # noqa: S608
_PUT_OFFER = f"INSERT OR REPLACE INTO offers VALUES ({', '.join('?' * len(OFFER_COLUMNS))})"  # noqa: S608
_DELETE_ROUTE = "DELETE FROM origin_routes WHERE origin = ? AND gateway = ?"
_DELETE_OFFER = "DELETE FROM offers WHERE origin = ? AND service = ?"
_READ_ROUTES = f"SELECT {', '.join(ROUTE_COLUMNS)} FROM origin_routes LIMIT ?"  # noqa: S608
_READ_OFFERS = f"SELECT {', '.join(OFFER_COLUMNS)} FROM offers LIMIT ?"  # noqa: S608

BUSY_TIMEOUT_S = 1.0
"""Seconds for which an operation waits for a lock held by another program."""

MAX_ROW_BYTES = 64 * 1024
"""Maximum size of a row that SQLite reads; the longest row written has a quarter of it."""

K = TypeVar("K", OriginRouteKey, OfferKey)

_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG)


class CorruptFileError(Exception):
    """The file is damaged, or this driver has not written its content."""


class OutdatedFileError(Exception):
    """An earlier version of this driver has written the file."""


@dataclass(slots=True)
class Changes:
    """Changes to write, one per key; None deletes a row."""

    routes: dict[OriginRouteKey, OriginRoute | None] = field(default_factory=dict)
    offers: dict[OfferKey, Offer | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.routes) + len(self.offers)

    def clear(self) -> None:
        """Remove all changes."""
        self.routes.clear()
        self.offers.clear()

    def pop_batch(self, count: int) -> Changes:
        """Remove and return the first `count` changes, routes first."""
        routes = {key: self.routes.pop(key) for key in [*islice(self.routes, count)]}
        offers = {key: self.offers.pop(key) for key in [*islice(self.offers, count - len(routes))]}
        return Changes(routes, offers)


@dataclass(frozen=True, slots=True)
class LoadedRoutes:
    """The content of an opened file."""

    routes: tuple[OriginRoute, ...] = ()
    offers: tuple[tuple[str, tuple[Offer, ...]], ...] = ()
    """The offers of each origin with a route."""
    refused: int = 0
    """Number of invalid rows, and of rows beyond the limit."""
    too_old: int = 0
    """Number of routes whose lease has expired."""


class RouteFile:
    """The route file at `path`, for one node and network. Call `open` first; all methods raise sqlite3.Error and OSError."""

    def __init__(self, path: Path, *, node_id: str, network: str) -> None:
        self.path = path
        self.set_aside_as: Path | None = None
        """New path of the last corrupt file that was set aside, or None."""
        self.was_replaced = False
        """Whether a file of an earlier version of this driver was replaced by an empty one."""
        self._owner_facts = {"node": node_id, "network": network}
        self._owner: sqlite3.Connection | None = None
        self._connection: sqlite3.Connection | None = None

    # ------------------------------------------------------------------- lifecycle

    def open(self) -> None:
        """Open the file or create it; set a corrupt file aside, and replace one of an earlier version of this driver.

        Raises Conflict if the file belongs to another node or is in use, OptionError if another program has created it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file()
        try:
            self._connect()
        except OutdatedFileError:
            self._disconnect()
            for suffix in ("-wal", "-shm", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.was_replaced = True
            self._connect()
        except (sqlite3.Error, CorruptFileError) as error:
            self._disconnect()
            if not is_corrupt(error):
                raise
            self._set_aside()
            self._connect()

    def close(self) -> None:
        """Close the file and release the lock. Safe to call twice."""
        self._disconnect()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.close()

    def reopen(self) -> None:
        """Close and open the file after a failure: it may be missing, moved or damaged. Raises the errors of `open`."""
        self._disconnect()
        self.open()

    # --------------------------------------------------------------------- reading

    def read(self, *, keep_s: float, max_rows: int, clocks: Clocks) -> LoadedRoutes:
        """Return the routes of the previous run, whose leases end at most `keep_s` seconds after that run, and their offers.

        At most `max_rows` routes and `max_rows` offers are returned.
        """
        with self._transaction() as connection:
            lease_end = _lease_end(connection, keep_s, clocks)
            # Store the end of the lease: if this run ends early, the next one must not extend it.
            connection.execute(
                "UPDATE origin_routes SET expires_at = min(coalesce(expires_at, :end), :end)", {"end": lease_end}
            )
            too_old = connection.execute("DELETE FROM origin_routes WHERE expires_at <= ?", (clocks.wall,)).rowcount
            connection.execute("DELETE FROM offers WHERE origin NOT IN (SELECT origin FROM origin_routes)")
            routes: list[OriginRoute] = []
            offers: dict[str, list[Offer]] = {}
            refused = 0
            for row in connection.execute(_READ_ROUTES, (max_rows + 1,)):
                route = row_to_route(row, lease_end, clocks)
                if route is None or len(routes) >= max_rows:
                    refused += 1
                else:
                    routes.append(route)
            origins = {route.origin for route in routes}
            for number, row in enumerate(connection.execute(_READ_OFFERS, (max_rows + 1,))):
                found = row_to_offer(row)
                if found is None or found[0] not in origins or number >= max_rows:
                    refused += 1
                else:
                    offers.setdefault(found[0], []).append(found[1])
        complete = tuple((origin, tuple(found)) for origin, found in offers.items())
        return LoadedRoutes(tuple(routes), complete, refused, too_old)

    # --------------------------------------------------------------------- writing

    def write(self, changes: Changes, clocks: Clocks, *, clear: bool) -> int:
        """Apply `changes` in one transaction and record that the node is alive.

        `clear` deletes all rows first. Returns the number of invalid routes and offers, which are not written.
        """
        routes = {
            key: route_to_row(route, clocks) if route is not None else None for key, route in changes.routes.items()
        }
        offers = {
            key: offer_to_row(key[0], offer) if offer is not None else None for key, offer in changes.offers.items()
        }
        with self._transaction() as connection:
            if clear:
                connection.execute("DELETE FROM origin_routes")
                connection.execute("DELETE FROM offers")
            connection.executemany(_DELETE_ROUTE, _keys_without_row(routes))
            connection.executemany(_DELETE_OFFER, _keys_without_row(offers))
            connection.executemany(_PUT_ROUTE, [row for row in routes.values() if row is not None])
            connection.executemany(_PUT_OFFER, [row for row in offers.values() if row is not None])
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('alive_at', ?)", (clocks.wall,))
        refused = sum(row is None and changes.routes[key] is not None for key, row in routes.items())
        return refused + sum(row is None and changes.offers[key] is not None for key, row in offers.items())

    # -------------------------------------------------------------------- internal

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        if connection is None:
            raise sqlite3.OperationalError("the route file is not open")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # If the disk is full, SQLite may already have rolled back.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _lock_file(self) -> None:
        """Take the owner lock, which the system releases when the process ends. Raises Conflict if it is taken."""
        if self._owner is not None:
            return
        lock = self.path.with_name(self.path.name + ".owner")
        owner = sqlite3.connect(lock, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            # The lock file is never written. Its lock is SQLite's own, which works on every platform.
            owner.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            owner.close()
            if _code(error) == sqlite3.SQLITE_BUSY:
                raise Conflict(
                    f"sqlite: another node is using {self.path}",
                    hint="give each node its own path, e.g. MICRO_SQLITE__PATH=...; nodes with the same name share a path",
                ) from error
            raise
        self._owner = owner

    def _connect(self) -> None:
        # Create the file with mode 0600, because SQLite would only apply the umask.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        # The file is untrusted: its schema must not run code, values have a maximum length, and texts may be invalid UTF-8.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
        connection.text_factory = _text
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        self._check_kind(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise CorruptFileError(f"{self.path}: {result!r:.200}")
        self._check_owner(connection)

    def _check_kind(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and objects == 0:
            with self._transaction():
                for _, _, statement in sorted(SCHEMA):
                    connection.execute(statement)
                connection.executemany("INSERT INTO facts VALUES (?, ?)", self._owner_facts.items())
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise OptionError(
                f"sqlite.path: {self.path} belongs to another program", hint="use a path that does not exist yet"
            )
        elif 0 < version < SCHEMA_VERSION:
            raise OutdatedFileError(f"{self.path}: schema version {version} instead of {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise CorruptFileError(f"{self.path}: schema version {version} instead of {SCHEMA_VERSION}")
        elif objects != len(SCHEMA) or set(connection.execute("SELECT type, name, sql FROM sqlite_master")) != SCHEMA:
            raise CorruptFileError(f"{self.path}: unexpected schema")

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        for name, expected in self._owner_facts.items():
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            if row is None or not isinstance(row[0], str):
                raise CorruptFileError(f"{self.path}: the {name} of its owner is missing")
            if row[0] != expected:
                raise Conflict(
                    f"sqlite: {self.path} contains the routes of another {name}, {row[0]!r:.60}",
                    hint="give each node its own path, or delete the file: routes are learned again",
                )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _set_aside(self) -> None:
        aside = self.path.with_name(self.path.name + ".corrupt")
        for suffix in ("-wal", "-shm", ""):
            source, target = self.path.with_name(self.path.name + suffix), aside.with_name(aside.name + suffix)
            target.unlink(missing_ok=True)
            if source.exists():
                source.replace(target)
        self.set_aside_as = aside


def is_corrupt(error: BaseException) -> bool:
    """Return whether `error` means that the file is corrupt, rather than that the disk or a lock prevents access."""
    return isinstance(error, CorruptFileError) or (isinstance(error, sqlite3.Error) and _code(error) in _CORRUPT_CODES)


def _code(error: sqlite3.Error) -> int:
    # The low byte is the primary result code. Errors of the Python module itself have none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _lease_end(connection: sqlite3.Connection, keep_s: float, clocks: Clocks) -> float:
    """Return the end of all leases as wall-clock time: `keep_s` after the node was last alive."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'alive_at'").fetchone()
    alive_at = row[0] if row is not None else None
    if not isinstance(alive_at, float) or not math.isfinite(alive_at):
        return -math.inf
    return min(alive_at, clocks.wall) + keep_s


def _text(data: bytes) -> str:
    # Invalid UTF-8 becomes surrogates, which are neither valid in names nor printable.
    return data.decode("utf-8", "surrogateescape")


def _keys_without_row(rows: Mapping[K, Row | None]) -> list[K]:
    # A name that cannot be stored cannot be used in a query either.
    return [key for key, row in rows.items() if row is None and all(map(_is_storable, key))]


def _is_storable(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)
