"""The SQLite file of one node's learned routes. Blocks: for one worker thread, never for the loop.

Write-ahead log, synchronous NORMAL: what was committed survives the death of the process at any moment; the death of the
machine may take the last commits and leaves the file sound.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from micro_core.contract import Conflict, OptionError, Route, RouteKey
from micro_sqlite_table.rows import COLUMNS, KEY_COLUMNS, Clocks, Row, route_of, row_of

SCHEMA_VERSION = 1
"""PRAGMA user_version. A file of another version is set aside: routes are soon learned anew, nothing is migrated."""

APPLICATION_ID = 0x6D726F75
"""PRAGMA application_id, `mrou`: the file of another program is never touched."""

_ROUTES = (
    "CREATE TABLE routes (service TEXT, gateway TEXT, network TEXT, router TEXT, metric INTEGER, site TEXT, version TEXT, "
    "hops INTEGER, expires_at REAL, PRIMARY KEY (service, gateway, network, router)) WITHOUT ROWID"
)
_FACTS = "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID"
SCHEMA = {("table", "routes", _ROUTES), ("table", "facts", _FACTS)}

_PUT = f"INSERT OR REPLACE INTO routes ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
_DELETE = f"DELETE FROM routes WHERE {' AND '.join(f'{name} = ?' for name in KEY_COLUMNS)}"  # noqa: S608
_READ = f"SELECT {', '.join(COLUMNS)} FROM routes LIMIT ?"  # noqa: S608

BUSY_S = 1.0
"""How long a write waits for somebody else who looks into the file."""

MAX_ROW_BYTES = 64 * 1024
"""SQLite reads no longer row or text: the longest that is written has a quarter of this."""

_UNSOUND = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG)


class Unsound(Exception):
    """The file is damaged, or its content is not what this driver writes."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an opened file held."""

    routes: tuple[Route, ...] = ()
    refused: int = 0
    """Rows that nobody here has written, or more than may be kept."""
    too_old: int = 0
    """Rows of a node that ended too long ago."""


class RouteFile:
    """`open` before all else; then `read`, `write`. Raises sqlite3.Error and OSError where it fails."""

    def __init__(self, path: Path, *, node_id: str, network: str) -> None:
        self.path = path
        self.set_aside_as: Path | None = None
        """Where the last file went that was unsound; None for none."""
        self._owner_facts = {"node": node_id, "network": network}
        self._owner: sqlite3.Connection | None = None
        self._connection: sqlite3.Connection | None = None

    # ------------------------------------------------------------------------ life

    def open(self) -> None:
        """Open the file, or begin one; an unsound one is set aside.

        Raises Conflict for the file of another node, OptionError for that of another program.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._claim()
        try:
            self._connect()
        except (sqlite3.Error, Unsound) as error:
            self._disconnect()
            if not is_unsound(error):
                raise
            self._set_aside()
            self._connect()

    def close(self) -> None:
        """Close, and let others have it; safe to call twice."""
        self._disconnect()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.close()

    def reopen(self) -> None:
        """Open anew after a failure: the file may be gone, moved or damaged. Raises as `open`."""
        self._disconnect()
        self.open()

    # --------------------------------------------------------------------- reading

    def read(self, *, keep_s: float, most: int, clocks: Clocks) -> Found:
        """The routes of the node's earlier life, each with a lease that ends `keep_s` after that life at the latest."""
        with self._transaction() as connection:
            lease_end = _lease_end(connection, keep_s, clocks)
            if lease_end <= clocks.wall:
                return Found(too_old=connection.execute("DELETE FROM routes").rowcount)
            # What is read here has been given back once: when this life ends early, its lease goes on.
            connection.execute("UPDATE routes SET expires_at = min(coalesce(expires_at, ?1), ?1)", (lease_end,))
            routes: list[Route] = []
            refused = too_old = 0
            for row in connection.execute(_READ, (most + 1,)):
                route = route_of(row, lease_end, clocks)
                if route is None or len(routes) >= most:
                    refused += 1
                elif route.expires_at is not None and route.expires_at <= clocks.now:
                    too_old += 1
                else:
                    routes.append(route)
        return Found(tuple(routes), refused, too_old)

    # --------------------------------------------------------------------- writing

    def write(self, changes: Mapping[RouteKey, Route | None], clocks: Clocks, *, clear: bool) -> int:
        """Put or delete these in one transaction, after deleting all where `clear` says so; and note that the node lives.

        Returns how many are left out, because nobody would believe them.
        """
        rows: list[Row] = []
        gone: list[tuple[str, ...]] = []
        refused = 0
        for key, route in changes.items():
            row = row_of(route, clocks) if route is not None else None
            if row is not None:
                rows.append(row)
            else:
                refused += route is not None
                gone.append((key.service, key.gateway, key.network, key.router))
        with self._transaction() as connection:
            if clear:
                connection.execute("DELETE FROM routes")
            # A name that cannot be in the file cannot be asked for either.
            connection.executemany(_DELETE, [names for names in gone if all(map(_is_storable, names))])
            connection.executemany(_PUT, rows)
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('alive_at', ?)", (clocks.wall,))
        return refused

    # ---------------------------------------------------------------------- inside

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        if connection is None:
            raise sqlite3.OperationalError("the file is not open")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, when the disk was full.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _claim(self) -> None:
        """Hold the lock of this file's owner; it goes with the process. Raises Conflict."""
        if self._owner is not None:
            return
        lock = self.path.with_name(self.path.name + ".owner")
        owner = sqlite3.connect(lock, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            # Never written: SQLite's locks work on every system that has SQLite.
            owner.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            owner.close()
            if _code(error) == sqlite3.SQLITE_BUSY:
                raise Conflict(
                    f"sqlite: another node is using {self.path}",
                    hint="give each node a path of its own, as in MICRO_SQLITE__PATH=...; two nodes of one name share one",
                ) from error
            raise
        self._owner = owner

    def _connect(self) -> None:
        # Made here, so that only this user may read it: SQLite would ask the umask alone.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        # A hostile file: no code of its schema runs, no value is longer than ours are, no text is trusted to be one.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
        connection.text_factory = _text
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        self._check_kind(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise Unsound(f"{self.path}: {told!r:.200}")
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
                f"sqlite.path: {self.path} is the file of another program", hint="name one that does not exist yet"
            )
        elif version != SCHEMA_VERSION:
            raise Unsound(f"{self.path}: schema version {version}, not {SCHEMA_VERSION}")
        elif objects != len(SCHEMA) or set(connection.execute("SELECT type, name, sql FROM sqlite_master")) != SCHEMA:
            raise Unsound(f"{self.path}: its schema is another one")

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        for name, mine in self._owner_facts.items():
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            if row is None or not isinstance(row[0], str):
                raise Unsound(f"{self.path}: it does not say of which {name} it is")
            if row[0] != mine:
                raise Conflict(
                    f"sqlite: {self.path} holds the routes of another {name}, {row[0]!r:.60}",
                    hint="give each node a path of its own, or remove the file: routes are learned anew",
                )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _set_aside(self) -> None:
        aside = self.path.with_name(self.path.name + ".unsound")
        for end in ("-wal", "-shm", ""):
            source, target = self.path.with_name(self.path.name + end), aside.with_name(aside.name + end)
            target.unlink(missing_ok=True)
            if source.exists():
                source.replace(target)
        self.set_aside_as = aside


def is_unsound(error: BaseException) -> bool:
    """Whether the file is to blame, and not the disk, the directory, or somebody who holds it."""
    return isinstance(error, Unsound) or (isinstance(error, sqlite3.Error) and _code(error) in _UNSOUND)


def _code(error: sqlite3.Error) -> int:
    # The low byte is the primary code; errors of the Python module itself have none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _lease_end(connection: sqlite3.Connection, keep_s: float, clocks: Clocks) -> float:
    """Wall-clock seconds: `keep_s` after the node was last known to live, and not later than that from now on."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'alive_at'").fetchone()
    alive_at = row[0] if row is not None else None
    if not isinstance(alive_at, float) or not math.isfinite(alive_at):
        return -math.inf
    return min(alive_at, clocks.wall) + keep_s


def _text(data: bytes) -> str:
    # What is no UTF-8 becomes surrogates, which are in no name and are not printable.
    return data.decode("utf-8", "surrogateescape")


def _is_storable(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
