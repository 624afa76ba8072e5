"""The keys and channels of one namespace. Pure.

    micro:{go.micro/eu}:instance:<id>        hash: record (JSON), service, owner, sequence, lease; expires with its lease
    micro:{go.micro/eu}:service:<name>       set: ids of one service
    micro:{go.micro/eu}:index                sorted set: "<service> <id>" by the end of its lease (ms since 1970), and
                                             `epoch` and `sequence` (see scripts.py)
    micro:{go.micro/eu}:feed:<db>            channel: every change

The braces are a hash tag: in a cluster all keys of a namespace are on one node, so that one script can change them
together. Channels do not belong to a database, so the name of the feed contains the number of the database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from micro_core.contract import OptionError

_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:/-]{1,400}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """The names of keys and channels; all of them start with `root`."""

    root: str
    database: int

    @property
    def index(self) -> str:
        """Key of the index."""
        return f"{self.root}index"

    @property
    def feed(self) -> str:
        """Name of the channel of changes."""
        return f"{self.root}feed:{self.database}"

    @property
    def keyspace_pattern(self) -> str:
        """Pattern of keyspace notifications about the records. `root` contains no wildcard characters."""
        return f"{self.keyspace_prefix}*"

    @property
    def keyspace_prefix(self) -> str:
        """Prefix of the channel of a keyspace notification; the id of the instance follows."""
        return f"__keyspace@{self.database}__:{self.root}instance:"

    def record(self, instance_id: str) -> str:
        """Return the key of a record."""
        return f"{self.root}instance:{instance_id}"

    def service(self, name: str) -> str:
        """Return the key of the set of ids of a service."""
        return f"{self.root}service:{name}"


def make_namespace(*, prefix: str, namespace: str, network: str, site: str, database: int) -> Namespace:
    """Return the namespace for the given options.

    Raises OptionError for a prefix or namespace with characters that are not allowed in keys.
    """
    name = namespace or f"{network}/{site}"
    if _PREFIX.fullmatch(prefix) is None:
        raise OptionError(
            f"redis: invalid prefix {prefix!r:.80}", hint="use letters, digits and . _ - : /, at most 100"
        )
    if _NAMESPACE.fullmatch(name) is None:
        raise OptionError(
            f"redis: invalid namespace {name!r:.80}", hint="use letters, digits and . _ - : /, at most 400"
        )
    return Namespace(f"{prefix}:{{{name}}}:", database)
