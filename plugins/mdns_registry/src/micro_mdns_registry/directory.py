"""Who is on the local network, from what was heard: the records of all owners, and what each beat does to them.

Pure: callers pass `now`, in seconds of any monotonic clock. An *owner* is one registry object of one process, under a
random name. It numbers its records upwards and never uses a number twice, so a record under a number never changes.
A beat names every number that stands. Hence whatever was lost, doubled or reordered on the way, the next beat repairs:

    listed, known           renewed
    listed, not known       to be asked for
    known, below the beat's next number, not listed     withdrawn
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from micro_core.contract import Instance, RegistryEvent
from micro_core.contract.watching import changes
from micro_mdns_registry.texts import MAX_STANDING, Beat

MAX_OWNERS = 1_024
"""Owners remembered; strangers beyond are ignored and counted, so that forged names cannot fill memory."""

MAX_RECORDS = 8_192
"""Records of all owners together, for the same reason."""

OWNER_MEMORY_S = 60.0
"""Seconds for which a silent owner without records is remembered: longer than any late copy of a message travels."""

GRACE_S = 0.25
"""Added to a lease before a record is given up, for a beat that is on its way. Within the second the contract allows."""


@dataclass(frozen=True, slots=True)
class _Record:
    owner: str
    sequence: int
    instance: Instance
    lease_s: float
    arrival: int


@dataclass(slots=True)
class _Owner:
    heard_at: float
    records: dict[int, _Record] = field(default_factory=dict)
    renewed_at: dict[int, float] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    beat: Beat | None = None


class Directory:
    """The records that stand. Several owners may claim one instance id: the claim heard last counts."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._owners: dict[str, _Owner] = {}
        self._claims: dict[str, list[_Record]] = {}
        self._arrivals = 0
        self._record_count = 0

    def instances(self, service: str | None = None) -> list[Instance]:
        """The instances of one service or of all, oldest claim first."""
        found = [claims[-1].instance for claims in self._claims.values()]
        return [instance for instance in found if service is None or instance.service == service]

    def known(self) -> list[tuple[str, int]]:
        """(owner, sequence number) of every record that stands."""
        return [(record.owner, record.sequence) for claims in self._claims.values() for record in claims]

    def is_wanted(self, owner: str, sequence: int) -> bool:
        """Whether a record is not known yet, and not known to be withdrawn or unreadable."""
        known = self._owners.get(owner)
        if known is None:
            return True
        if sequence in known.records or sequence in known.unreadable:
            return False
        beat = known.beat
        return beat is None or sequence >= beat.next_sequence or sequence in beat.standing

    def renew(self, owner: str, sequence: int, now: float) -> None:
        """The record was heard again."""
        known = self._owners.get(owner)
        if known is not None and sequence in known.records:
            known.heard_at = known.renewed_at[sequence] = now

    def put(self, owner: str, sequence: int, instance: Instance, lease_s: float, now: float) -> list[RegistryEvent]:
        """Take in a record that `is_wanted`. A newer record of the same instance and owner replaces the older."""
        known = self._owner(owner, now)
        if known is None or self._record_count >= MAX_RECORDS or len(known.records) >= MAX_STANDING:
            self._count("mdns_records_refused")
            return []
        before = self._current(instance.id)
        for claim in self._claims.get(instance.id, ()):
            if claim.owner == owner:
                if claim.sequence > sequence:
                    return []
                self._drop(claim)
                break
        self._arrivals += 1
        record = _Record(owner, sequence, instance, lease_s, self._arrivals)
        known.records[sequence] = record
        known.renewed_at[sequence] = now
        self._claims.setdefault(instance.id, []).append(record)
        self._record_count += 1
        return changes(before, instance)

    def put_unreadable(self, owner: str, sequence: int, now: float) -> None:
        """Remember that a record cannot be read, so that it is not asked for again."""
        known = self._owner(owner, now)
        if known is not None and len(known.unreadable) < MAX_STANDING:
            known.unreadable.add(sequence)

    def remove(self, owner: str, sequence: int) -> list[RegistryEvent]:
        """The owner withdrew the record."""
        known = self._owners.get(owner)
        record = known.records.get(sequence) if known is not None else None
        return self._end([record]) if record is not None else []

    def beat(self, owner: str, beat: Beat, now: float) -> tuple[list[RegistryEvent], list[int]]:
        """Return what changed, and the sequence numbers to ask for."""
        known = self._owner(owner, now)
        if known is None:
            self._count("mdns_records_refused")
            return [], []
        if known.beat is not None and beat.number <= known.beat.number:
            return [], []
        known.beat = beat
        known.unreadable &= beat.standing
        gone = [
            record
            for sequence, record in known.records.items()
            if sequence < beat.next_sequence and sequence not in beat.standing
        ]
        for sequence in beat.standing & known.records.keys():
            known.renewed_at[sequence] = now
        missing = sorted(beat.standing - known.records.keys() - known.unreadable)
        return self._end(gone), missing

    def expire(self, now: float) -> list[RegistryEvent]:
        """Give up what was not renewed in its lease."""
        gone = [
            record
            for known in self._owners.values()
            for sequence, record in known.records.items()
            if known.renewed_at[sequence] + record.lease_s + GRACE_S <= now
        ]
        events = self._end(gone)
        silent = [
            owner
            for owner, known in self._owners.items()
            if not known.records and known.heard_at + OWNER_MEMORY_S <= now
        ]
        for owner in silent:
            del self._owners[owner]
        return events

    def next_expiry(self) -> float | None:
        """When `expire` next has a record to give up, or None."""
        return min(
            (
                known.renewed_at[sequence] + record.lease_s + GRACE_S
                for known in self._owners.values()
                for sequence, record in known.records.items()
            ),
            default=None,
        )

    def _owner(self, owner: str, now: float) -> _Owner | None:
        known = self._owners.get(owner)
        if known is None:
            if len(self._owners) >= MAX_OWNERS:
                return None
            known = self._owners[owner] = _Owner(now)
        known.heard_at = now
        return known

    def _current(self, instance_id: str) -> Instance | None:
        claims = self._claims.get(instance_id)
        return claims[-1].instance if claims else None

    def _end(self, records: Iterable[_Record]) -> list[RegistryEvent]:
        events: list[RegistryEvent] = []
        for record in records:
            before = self._current(record.instance.id)
            self._drop(record)
            events += changes(before, self._current(record.instance.id))
        return events

    def _drop(self, record: _Record) -> None:
        known = self._owners[record.owner]
        del known.records[record.sequence], known.renewed_at[record.sequence]
        claims = self._claims[record.instance.id]
        claims.remove(record)
        if not claims:
            del self._claims[record.instance.id]
        self._record_count -= 1
