"""The records of all processes on the local network, according to the received messages.

Callers pass `now`, in seconds of any monotonic clock. An *owner* is one registry object of one process. It has a random
name, numbers its records in ascending order, and never uses a number twice, so the record of a number never changes. A
heartbeat lists the numbers of all current records of its owner, so it corrects the effects of lost, duplicated and
reordered messages:

    number in the list, record received                               the record is renewed
    number in the list, record not received                           the record has to be queried
    number not in the list, below the heartbeat's next number         the record is withdrawn
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from micro_core.contract import Instance, RegistryEvent
from micro_core.contract.watching import changes
from micro_mdns_registry.txt_records import MAX_RECORDS_PER_OWNER, Heartbeat

MAX_OWNERS = 1_024
"""Maximum number of owners. Further ones are ignored and counted, so that forged names cannot exhaust the memory."""

MAX_RECORDS = 8_192
"""Maximum number of records of all owners together, for the same reason."""

OWNER_RETENTION_S = 60.0
"""Seconds for which a silent owner without records is remembered, longer than the delay of any duplicated message."""

GRACE_S = 0.25
"""Seconds added to a lease before a record expires, for a heartbeat in transit. The contract allows up to one second."""


@dataclass(frozen=True, slots=True)
class _Record:
    owner: str
    sequence: int
    instance: Instance
    lease_s: float
    number: int


@dataclass(slots=True)
class _Owner:
    received_at: float
    records: dict[int, _Record] = field(default_factory=dict)
    renewed_at: dict[int, float] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    heartbeat: Heartbeat | None = None


class Directory:
    """The current records. If several owners register the same instance id, the registration received last is used."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._owners: dict[str, _Owner] = {}
        self._registrations: dict[str, list[_Record]] = {}
        self._registration_count = 0
        self._record_count = 0

    def instances(self, service: str | None = None) -> list[Instance]:
        """Return the instances of one service, or of all services, ordered by registration."""
        found = [registrations[-1].instance for registrations in self._registrations.values()]
        return [instance for instance in found if service is None or instance.service == service]

    def record_ids(self) -> list[tuple[str, int]]:
        """Return (owner, sequence number) of all current records."""
        return [
            (record.owner, record.sequence)
            for registrations in self._registrations.values()
            for record in registrations
        ]

    def is_wanted(self, owner: str, sequence: int) -> bool:
        """Return whether a record is missing here, i.e. neither stored nor known to be withdrawn or unreadable."""
        entry = self._owners.get(owner)
        if entry is None:
            return True
        if sequence in entry.records or sequence in entry.unreadable:
            return False
        heartbeat = entry.heartbeat
        return heartbeat is None or sequence >= heartbeat.next_sequence or sequence in heartbeat.records

    def renew(self, owner: str, sequence: int, now: float) -> None:
        """Renew the lease of a record that was received again."""
        entry = self._owners.get(owner)
        if entry is not None and sequence in entry.records:
            entry.received_at = entry.renewed_at[sequence] = now

    def put(self, owner: str, sequence: int, instance: Instance, lease_s: float, now: float) -> list[RegistryEvent]:
        """Store a record for which `is_wanted` is true, and return the resulting events.

        A newer record of the same instance and owner replaces the older one. Records above the limits are dropped and
        counted.
        """
        entry = self._owner(owner, now)
        if entry is None or self._record_count >= MAX_RECORDS or len(entry.records) >= MAX_RECORDS_PER_OWNER:
            self._count("mdns_records_refused")
            return []
        before = self._current(instance.id)
        for registration in self._registrations.get(instance.id, ()):
            if registration.owner == owner:
                if registration.sequence > sequence:
                    return []
                self._drop(registration)
                break
        self._registration_count += 1
        record = _Record(owner, sequence, instance, lease_s, self._registration_count)
        entry.records[sequence] = record
        entry.renewed_at[sequence] = now
        self._registrations.setdefault(instance.id, []).append(record)
        self._record_count += 1
        return changes(before, instance)

    def put_unreadable(self, owner: str, sequence: int, now: float) -> None:
        """Remember that a record cannot be decoded, so that it is not queried again."""
        entry = self._owner(owner, now)
        if entry is not None and len(entry.unreadable) < MAX_RECORDS_PER_OWNER:
            entry.unreadable.add(sequence)

    def remove(self, owner: str, sequence: int) -> list[RegistryEvent]:
        """Remove a record that its owner withdrew, and return the resulting events."""
        entry = self._owners.get(owner)
        record = entry.records.get(sequence) if entry is not None else None
        return self._remove([record]) if record is not None else []

    def apply_heartbeat(self, owner: str, heartbeat: Heartbeat, now: float) -> tuple[list[RegistryEvent], list[int]]:
        """Apply a heartbeat. Return the resulting events, and the sequence numbers of records to query."""
        entry = self._owner(owner, now)
        if entry is None:
            self._count("mdns_records_refused")
            return [], []
        if entry.heartbeat is not None and heartbeat.number <= entry.heartbeat.number:
            return [], []
        entry.heartbeat = heartbeat
        entry.unreadable &= heartbeat.records
        removed = [
            record
            for sequence, record in entry.records.items()
            if sequence < heartbeat.next_sequence and sequence not in heartbeat.records
        ]
        for sequence in heartbeat.records & entry.records.keys():
            entry.renewed_at[sequence] = now
        missing = sorted(heartbeat.records - entry.records.keys() - entry.unreadable)
        return self._remove(removed), missing

    def expire(self, now: float) -> list[RegistryEvent]:
        """Remove records whose lease has ended, and return the resulting events."""
        removed = [
            record
            for entry in self._owners.values()
            for sequence, record in entry.records.items()
            if entry.renewed_at[sequence] + record.lease_s + GRACE_S <= now
        ]
        events = self._remove(removed)
        silent = [
            owner
            for owner, entry in self._owners.items()
            if not entry.records and entry.received_at + OWNER_RETENTION_S <= now
        ]
        for owner in silent:
            del self._owners[owner]
        return events

    def next_expiry(self) -> float | None:
        """Return the time at which the next record expires, or None."""
        return min(
            (
                entry.renewed_at[sequence] + record.lease_s + GRACE_S
                for entry in self._owners.values()
                for sequence, record in entry.records.items()
            ),
            default=None,
        )

    def _owner(self, owner: str, now: float) -> _Owner | None:
        entry = self._owners.get(owner)
        if entry is None:
            if len(self._owners) >= MAX_OWNERS:
                return None
            entry = self._owners[owner] = _Owner(now)
        entry.received_at = now
        return entry

    def _current(self, instance_id: str) -> Instance | None:
        registrations = self._registrations.get(instance_id)
        return registrations[-1].instance if registrations else None

    def _remove(self, records: Iterable[_Record]) -> list[RegistryEvent]:
        events: list[RegistryEvent] = []
        for record in records:
            before = self._current(record.instance.id)
            self._drop(record)
            events += changes(before, self._current(record.instance.id))
        return events

    def _drop(self, record: _Record) -> None:
        entry = self._owners[record.owner]
        del entry.records[record.sequence], entry.renewed_at[record.sequence]
        registrations = self._registrations[record.instance.id]
        registrations.remove(record)
        if not registrations:
            del self._registrations[record.instance.id]
        self._record_count -= 1
