"""A route table that stores learned routes in an SQLite file and restores them after a restart."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Table, hookimpl
from micro_sqlite_table.options import SqliteOptions


def create(options: SqliteOptions, context: DriverContext) -> Table:
    """Build the table; `start` opens the file. Raises OptionError for invalid options."""
    from micro_sqlite_table.table import SqliteTable

    return SqliteTable(options, context)


@hookimpl
def micro_table() -> Driver[Table]:
    """Describe the SQLite table."""
    return Driver(
        name="sqlite",
        summary="Stores learned routes in an SQLite file and restores them after a restart.",
        options=SqliteOptions,
        create=create,
        capabilities=frozenset({"persistent"}),
    )
