"""Which keys and channels belong to the registries of one namespace. Pure.

    micro:{go.micro/eu}:instance:<id>        hash: record (JSON), service, owner, sequence, lease; expires with its lease
    micro:{go.micro/eu}:service:<name>       set: ids of one service
    micro:{go.micro/eu}:index                sorted set: "<service> <id>" by the end of its lease (ms since 1970), and
                                             `epoch` and `sequence` (see scripts.py)
    micro:{go.micro/eu}:feed:<db>            channel: every change

The braces are a hash tag: in a cluster all keys of a namespace are on one node, so that one script may change them
together. Channels know no databases, hence the number in the feed's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from micro_core.contract import OptionError

_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:/-]{1,400}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """Names of keys and channels; `root` is what all of them begin with."""

    root: str
    database: int

    @property
    def index(self) -> str:
        return f"{self.root}index"

    @property
    def feed(self) -> str:
        return f"{self.root}feed:{self.database}"

    @property
    def keyspace_pattern(self) -> str:
        """Redis's own notifications about the records. `root` has no character that means something in a pattern."""
        return f"{self.keyspace_prefix}*"

    @property
    def keyspace_prefix(self) -> str:
        """What the channel of such a notification begins with; the instance's id follows."""
        return f"__keyspace@{self.database}__:{self.root}instance:"

    def record(self, instance_id: str) -> str:
        return f"{self.root}instance:{instance_id}"

    def service(self, name: str) -> str:
        return f"{self.root}service:{name}"


def make_namespace(*, prefix: str, namespace: str, network: str, site: str, database: int) -> Namespace:
    """Raises OptionError for a prefix or namespace with characters that keys of this registry may not have."""
    named = namespace or f"{network}/{site}"
    if _PREFIX.fullmatch(prefix) is None:
        raise OptionError(
            f"redis: prefix {prefix!r:.80} does not fit", hint="letters, digits and . _ - : /, at most 100"
        )
    if _NAMESPACE.fullmatch(named) is None:
        raise OptionError(
            f"redis: namespace {named!r:.80} does not fit", hint="letters, digits and . _ - : /, at most 400"
        )
    return Namespace(f"{prefix}:{{{named}}}:", database)
