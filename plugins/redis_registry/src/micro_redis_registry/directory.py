"""The records known to this process, updated from pages and from the feed. Pure.

One task calls the methods in this order: `begin`, `put_page` for all pages, `end`, then `put` and `remove` for the messages of
the feed. Therefore:

- a page is newer than everything known before `begin`, whatever its sequence number;
- a message that is not newer than the start of the pages is contained in the pages and is dropped;
- a message about a record is applied if its sequence number is higher than that of the record.

A known record that is missing from the pages is *held* for a while: the server has probably lost its data, and the owner of the
record will restore it. Watchers are not notified of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from micro_core.contract import Instance, Malformed, RegistryEvent
from micro_core.contract.watching import changes
from micro_redis_registry.encoding import decode_record

MAX_RECORDS = 65_536
"""Maximum number of records. Further ones are counted, so that other clients of the server cannot exhaust our memory."""


@dataclass(frozen=True, slots=True)
class _Record:
    instance: Instance
    encoded: bytes
    sequence: int


@dataclass(slots=True)
class _Pages:
    """The state of reading pages: the sequence number before the first page, and the ids found so far."""

    since: int
    found: set[str] = field(default_factory=set)


class Directory:
    """The records by id. Methods that change records return the resulting events for watchers.

    `count` is called with the name of a counter for each invalid or excess record.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._records: dict[str, _Record] = {}
        self._held: dict[str, float] = {}
        self._pages: _Pages | None = None
        self._floor = 0
        self.sequence = 0
        """Sequence number of the last known change; all earlier changes are known, too."""

    def __len__(self) -> int:
        return len(self._records)

    def instances(self) -> list[Instance]:
        """Return all known instances."""
        return [known.instance for known in self._records.values()]

    def find(self, instance_id: str) -> Instance | None:
        """Return the instance with this id, or None."""
        known = self._records.get(instance_id)
        return known.instance if known is not None else None

    def decoded(self, instance_id: str, encoded: bytes) -> Instance | None:
        """Return the known instance if its encoded form is `encoded`, which avoids decoding it again; otherwise None."""
        known = self._records.get(instance_id)
        return known.instance if known is not None and known.encoded == encoded else None

    def begin(self, sequence: int) -> None:
        """Start reading pages; `sequence` is the sequence number of the server before the first page."""
        self._pages = _Pages(sequence)

    def put_page(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        """Apply a record of a page."""
        pages = self._pages
        assert pages is not None
        known = self._records.get(instance_id)
        # An id appears on two pages if it moved to another service in the meantime; the later record counts.
        if instance_id in pages.found and known is not None and known.sequence > sequence:
            return []
        pages.found.add(instance_id)
        return self._put(instance_id, sequence, encoded)

    def end(self, *, hold_until: float) -> None:
        """Finish reading pages. Records that were on no page are held until `hold_until`."""
        pages = self._pages
        assert pages is not None
        self._pages = None
        self._floor = self.sequence = pages.since
        for instance_id in self._records.keys() - pages.found:
            self._held[instance_id] = hold_until

    def put(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        """Apply a message of the feed that a record was created or changed."""
        return self._put(instance_id, sequence, encoded) if self._is_newer(instance_id, sequence) else []

    def remove(self, instance_id: str, sequence: int) -> list[RegistryEvent]:
        """Apply a message of the feed that a record was removed."""
        return self._drop(instance_id) if self._is_newer(instance_id, sequence) else []

    def lose(self, instance_id: str) -> list[RegistryEvent]:
        """Remove a record that the server has lost without a message on the feed."""
        return self._drop(instance_id)

    def drop_expired(self, now: float) -> list[RegistryEvent]:
        """Remove records whose hold time has ended at `now`."""
        due = [instance_id for instance_id, until in self._held.items() if until <= now]
        return [event for instance_id in due for event in self._drop(instance_id)]

    def clear(self) -> None:
        """Remove all records, when there are no watches left."""
        self._records.clear()
        self._held.clear()
        self._pages = None
        self._floor = self.sequence = 0

    def _is_newer(self, instance_id: str, sequence: int) -> bool:
        if sequence <= self._floor:
            return False
        self.sequence = max(self.sequence, sequence)
        known = self._records.get(instance_id)
        # A held record was lost on the server together with its sequence, so its number is not comparable.
        return known is None or instance_id in self._held or sequence > known.sequence

    def _put(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        self._held.pop(instance_id, None)
        before = self._records.get(instance_id)
        if before is None and len(self._records) >= MAX_RECORDS:
            self._count("redis_records_over_limit")
            return []
        if before is not None and before.encoded == encoded:
            self._records[instance_id] = _Record(before.instance, before.encoded, sequence)
            return []
        try:
            instance = decode_record(encoded, instance_id)
        except Malformed:
            self._count("redis_garbage")
            return self._drop(instance_id)
        self._records[instance_id] = _Record(instance, encoded, sequence)
        return changes(before.instance if before is not None else None, instance)

    def _drop(self, instance_id: str) -> list[RegistryEvent]:
        self._held.pop(instance_id, None)
        known = self._records.pop(instance_id, None)
        return changes(known.instance, None) if known is not None else []
