"""What can be set about the SQLite table."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from micro_core.contract import DriverContext, OptionError, option


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteOptions:
    """Options of `table:sqlite`."""

    path: str = option("", "The file. Empty: one for each node and network, in the state directory.")
    flush_s: float = option(0.2, "Seconds for which changes wait to be written together.")
    keep_s: float = option(90.0, "Seconds after the end of a node for which its routes are given back.")
    max_rows: int = option(100_000, "Routes kept in the file at most; the rest is in memory alone.")


def check(options: SqliteOptions) -> None:
    """Raise OptionError for what makes no sense."""
    for name, is_right, wanted in (
        ("flush_s", 0.0 < options.flush_s <= 60.0, "over 0 and at most 60 seconds"),
        ("keep_s", 0.0 < options.keep_s <= 3_600.0, "over 0 and at most 3600 seconds: older routes are of no use"),
        ("max_rows", 1 <= options.max_rows <= 10_000_000, "1 to 10000000"),
    ):
        if not is_right:
            raise OptionError(f"sqlite.{name}: {getattr(options, name)} is not {wanted}")


def path_of(options: SqliteOptions, context: DriverContext) -> Path:
    """Where the file is."""
    if options.path:
        return Path(options.path).expanduser().absolute()
    network = context.network
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", network) is None:
        # Names may hold `/` and be as long as a file's name may be.
        network = hashlib.blake2b(network.encode(), digest_size=16).hexdigest()
    return Path(context.state_dir).absolute() / "tables" / f"{context.node_id}-{network}.sqlite"
