"""What this process knows of the records, from pages and from the feed, and what each piece of news changes. Pure.

One task feeds it, in this order: subscribe, `begin`, the pages, `end`, then the feed's messages as they come. So

- a page is newer than all that was known before `begin`: it counts whatever its number;
- a message that is not newer than the pages' beginning is in the pages already, and is dropped;
- a message about one record counts when its number is above that of the record.

A record that the pages lack, though it was known, is *held* for a while: most likely the server lost its data, and the
record's owner is about to restore it. Watchers need not hear of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from micro_core.contract import Instance, Malformed, RegistryEvent
from micro_core.contract.watching import changes
from micro_redis_registry.encoding import decode_record

MAX_RECORDS = 65_536
"""Records known at once; those beyond are counted, so that whoever can write to the server cannot fill our memory."""


@dataclass(frozen=True, slots=True)
class _Known:
    instance: Instance
    encoded: bytes
    sequence: int


@dataclass(slots=True)
class _Pages:
    """The pages that are being read: what was known before, and what they held so far."""

    since: int
    found: set[str] = field(default_factory=set)


class Directory:
    """The records by id. Every method that takes news returns the events that tell of it."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._known: dict[str, _Known] = {}
        self._held: dict[str, float] = {}
        self._pages: _Pages | None = None
        self._floor = 0
        self.sequence = 0
        """Number of the last change that is known: everything up to it is."""

    def __len__(self) -> int:
        return len(self._known)

    def instances(self) -> list[Instance]:
        return [known.instance for known in self._known.values()]

    def find(self, instance_id: str) -> Instance | None:
        known = self._known.get(instance_id)
        return known.instance if known is not None else None

    def decoded(self, instance_id: str, encoded: bytes) -> Instance | None:
        """The instance of these very bytes, if it is known: decoding costs more than comparing."""
        known = self._known.get(instance_id)
        return known.instance if known is not None and known.encoded == encoded else None

    def begin(self, sequence: int) -> None:
        """Pages follow; `sequence` is the server's number before the first."""
        self._pages = _Pages(sequence)

    def put_page(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        """A record of a page."""
        pages = self._pages
        assert pages is not None
        known = self._known.get(instance_id)
        # An id is on two pages when it moved to another service meanwhile: the later record counts.
        if instance_id in pages.found and known is not None and known.sequence > sequence:
            return []
        pages.found.add(instance_id)
        return self._put(instance_id, sequence, encoded)

    def end(self, *, hold_until: float) -> None:
        """The last page was read. What is known and was on none is held."""
        pages = self._pages
        assert pages is not None
        self._pages = None
        self._floor = self.sequence = pages.since
        for instance_id in self._known.keys() - pages.found:
            self._held[instance_id] = hold_until

    def put(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        """The feed says that a record was created or changed."""
        return self._put(instance_id, sequence, encoded) if self._is_news(instance_id, sequence) else []

    def remove(self, instance_id: str, sequence: int) -> list[RegistryEvent]:
        """The feed says that a record is no more."""
        return self._drop(instance_id) if self._is_news(instance_id, sequence) else []

    def lose(self, instance_id: str) -> list[RegistryEvent]:
        """The server says that it has no such record, and that nobody will be told."""
        return self._drop(instance_id)

    def release(self, now: float) -> list[RegistryEvent]:
        """Give up what was held until now."""
        due = [instance_id for instance_id, until in self._held.items() if until <= now]
        return [event for instance_id in due for event in self._drop(instance_id)]

    def clear(self) -> None:
        """Forget everything: nobody watches any more."""
        self._known.clear()
        self._held.clear()
        self._pages = None
        self._floor = self.sequence = 0

    def _is_news(self, instance_id: str, sequence: int) -> bool:
        if sequence <= self._floor:
            return False
        self.sequence = max(self.sequence, sequence)
        known = self._known.get(instance_id)
        # What is held is lost on the server, and with it the row of numbers that its own belongs to.
        return known is None or instance_id in self._held or sequence > known.sequence

    def _put(self, instance_id: str, sequence: int, encoded: bytes) -> list[RegistryEvent]:
        self._held.pop(instance_id, None)
        before = self._known.get(instance_id)
        if before is None and len(self._known) >= MAX_RECORDS:
            self._count("redis_records_over_bound")
            return []
        if before is not None and before.encoded == encoded:
            self._known[instance_id] = _Known(before.instance, before.encoded, sequence)
            return []
        try:
            instance = decode_record(encoded, instance_id)
        except Malformed:
            self._count("redis_garbage")
            return self._drop(instance_id)
        self._known[instance_id] = _Known(instance, encoded, sequence)
        return changes(before.instance if before is not None else None, instance)

    def _drop(self, instance_id: str) -> list[RegistryEvent]:
        self._held.pop(instance_id, None)
        known = self._known.pop(instance_id, None)
        return changes(known.instance, None) if known is not None else []
