"""Learned routes in an SQLite file: read from memory, written behind, back after a restart."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Table, hookimpl
from micro_sqlite_table.options import SqliteOptions


def create(options: SqliteOptions, context: DriverContext) -> Table:
    """Build the table; the file is opened by `start`. Raises OptionError."""
    from micro_sqlite_table.table import SqliteTable

    return SqliteTable(options, context)


@hookimpl
def micro_table() -> Driver[Table]:
    return Driver(
        name="sqlite",
        summary="Routes in memory, those of other nodes also in an SQLite file: they are back after a restart.",
        options=SqliteOptions,
        create=create,
        capabilities=frozenset({"persistent"}),
    )
