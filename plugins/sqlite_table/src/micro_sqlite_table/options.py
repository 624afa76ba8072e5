"""Options of the SQLite table."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from micro_core.contract import DriverContext, OptionError, option


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteOptions:
    """Options of `table:sqlite`."""

    path: str = option("", "Path of the file. Empty: one file per node and network in the state directory.")
    flush_s: float = option(0.2, "Seconds for which changes are collected before they are written.")
    keep_s: float = option(90.0, "Seconds after the end of a node for which its routes are restored.")
    max_rows: int = option(
        100_000, "Maximum number of routes, and of offered services, in the file; further ones are only in memory."
    )


def check_options(options: SqliteOptions) -> None:
    """Check that all options are in range. Raises OptionError naming the option."""
    for name, is_valid, expected in (
        ("flush_s", 0.0 < options.flush_s <= 60.0, "greater than 0 and at most 60 (seconds)"),
        (
            "keep_s",
            0.0 < options.keep_s <= 3_600.0,
            "greater than 0 and at most 3600 (seconds), since older routes are outdated",
        ),
        ("max_rows", 1 <= options.max_rows <= 10_000_000, "from 1 to 10000000"),
    ):
        if not is_valid:
            raise OptionError(f"sqlite.{name} = {getattr(options, name)} is out of range: it must be {expected}")


def file_path(options: SqliteOptions, context: DriverContext) -> Path:
    """Return the absolute path of the file for the node and network of `context`."""
    if options.path:
        return Path(options.path).expanduser().absolute()
    network = context.network
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", network) is None:
        # The name of a network may contain `/` and may be too long for a file name.
        network = hashlib.blake2b(network.encode(), digest_size=16).hexdigest()
    return Path(context.state_dir).absolute() / "tables" / f"{context.node_id}-{network}.sqlite"
