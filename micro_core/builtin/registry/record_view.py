"""What one process sees in a directory of record files: read what changed, forget what expired. Blocking file calls.

Callers pass `now` (monotonic) and `wall` (since 1970) in seconds. A file's time is compared with the wall clock once,
when it is read; from then on its lease runs on the monotonic clock, so setting the wall clock does no harm.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from micro_core.builtin.registry.process_identity import is_gone
from micro_core.builtin.registry.record_files import (
    RECORD_SUFFIX,
    TEMPORARY_SUFFIX,
    Record,
    Signature,
    read_record,
    sign,
    sweep_record,
)
from micro_core.contract import Counters, CountersInMemory, Instance

MAX_FILES = 20_000
"""Record files of one directory that are looked at; those beyond are counted."""

SETTLE_S = 2.0
"""File systems count time in ticks, up to 2 s long (FAT): two changes in one tick leave the same modification time. A
directory is believed to be unchanged only when it was also read this long after the time was first seen."""

OWNER_CHECK_S = 1.0
"""How often the owners of records are looked for."""

_TEMPORARY_LIFE_S = 60.0
"""A file half written longer ago than this belongs to a process that is gone."""


class _File(NamedTuple):
    """A file as it was read. `expires_at` is of the monotonic clock; a file that is no record never expires."""

    signature: Signature
    record: Record | None
    expires_at: float


class RecordView:
    """The live records of `directory`. `refresh` may run in any thread, one at a time."""

    def __init__(self, directory: Path, *, check_owner: bool) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._live: Mapping[str, Instance] = {}
        self._directory_modified_ns: int | None = None
        self._directory_changed_at = -math.inf
        self._directory_read_at = -math.inf
        self._next_expiry = math.inf
        self._next_owner_check = -math.inf if check_owner else math.inf
        self._counters = CountersInMemory()

    def is_current(self, now: float) -> bool:
        """True when a refresh would find nothing new: one `stat`. Raises OSError."""
        return now < self._next_expiry and now < self._next_owner_check and self._is_settled(self._modified_ns())

    def refresh(self, now: float, wall: float) -> Mapping[str, Instance]:
        """The live records by id; the very same map as before when nothing changed. Raises OSError."""
        with self._lock:
            has_changed = self._read_changed(now, wall)
            has_changed |= self._drop_orphans(now)
            has_changed |= self._drop_expired(now, wall)
            if has_changed:
                self._live = {
                    file.record.instance.id: file.record.instance for file in self._files.values() if file.record
                }
            return self._live

    def report(self, counters: Counters) -> None:
        """Hand over what was counted since the last call."""
        counted, self._counters = self._counters, CountersInMemory()
        for name, amount in counted.values.items():
            counters.add(name, amount)

    def _is_settled(self, modified_ns: int | None) -> bool:
        return (
            modified_ns == self._directory_modified_ns
            and self._directory_read_at - self._directory_changed_at > SETTLE_S
        )

    def _modified_ns(self) -> int | None:
        try:
            return self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _read_changed(self, now: float, wall: float) -> bool:
        modified_ns = self._modified_ns()
        if self._is_settled(modified_ns):
            return False
        if modified_ns != self._directory_modified_ns:
            self._directory_modified_ns, self._directory_changed_at = modified_ns, now
        self._directory_read_at = now
        before, self._files = self._files, {}
        for entry in self._entries(wall):
            try:
                file = before.get(entry.name)
                if file is None or file.signature != sign(entry.stat(follow_symlinks=False)):
                    file = self._read(Path(entry.path), now, wall)
            except FileNotFoundError:
                continue  # removed between listing and reading
            self._files[entry.name] = file
        self._next_expiry = min((file.expires_at for file in self._files.values()), default=math.inf)
        return before != self._files

    def _entries(self, wall: float) -> list[os.DirEntry[str]]:
        found: list[os.DirEntry[str]] = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith(TEMPORARY_SUFFIX):
                        self._clear_temporary(entry, wall)
                    elif not entry.name.endswith(RECORD_SUFFIX):
                        continue
                    elif len(found) < MAX_FILES:
                        found.append(entry)
                    else:
                        self._counters.add("registry_records_over_bound")
        except FileNotFoundError:
            return []
        return found

    def _read(self, path: Path, now: float, wall: float) -> _File:
        signature, record = read_record(path)
        if record is None:
            self._counters.add("registry_records_malformed")
            return _File(signature, None, math.inf)
        # A file from the future (the wall clock was set back) gets one lease from now, not more.
        remaining_s = min(signature.modified_ns / 1e9 + record.lease_s - wall, record.lease_s)
        return _File(signature, record, now + remaining_s)

    def _drop_expired(self, now: float, wall: float) -> bool:
        if now < self._next_expiry:
            return False
        has_changed = False
        for name, file in list(self._files.items()):
            if file.expires_at > now:
                continue
            renewed = self._find_renewed(name, file, now, wall)
            if renewed is None:
                del self._files[name]
                has_changed = True
            else:
                self._files[name] = renewed
                has_changed |= renewed.record != file.record
        self._next_expiry = min((file.expires_at for file in self._files.values()), default=math.inf)
        return has_changed

    def _find_renewed(self, name: str, file: _File, now: float, wall: float) -> _File | None:
        path = self._directory / name
        try:
            # The same signature means no renewal, whatever the wall clock says by now.
            current = file if sign(path.lstat()) == file.signature else self._read(path, now, wall)
        except FileNotFoundError:
            return None
        if current.expires_at > now:
            return current
        self._sweep(path, current.signature, "registry_records_expired")
        return None

    def _drop_orphans(self, now: float) -> bool:
        if now < self._next_owner_check:
            return False
        self._next_owner_check = now + OWNER_CHECK_S
        owners = {file.record.owner for file in self._files.values() if file.record}
        gone = {owner for owner in owners if owner and is_gone(owner)}
        orphans = [(name, file) for name, file in self._files.items() if file.record and file.record.owner in gone]
        for name, file in orphans:
            self._sweep(self._directory / name, file.signature, "registry_records_orphaned")
            del self._files[name]
        return bool(orphans)

    def _sweep(self, path: Path, signature: Signature, counter: str) -> None:
        self._counters.add(counter)
        sweep_record(path, signature)

    def _clear_temporary(self, entry: os.DirEntry[str], wall: float) -> None:
        try:
            if wall - entry.stat(follow_symlinks=False).st_mtime > _TEMPORARY_LIFE_S:
                Path(entry.path).unlink(missing_ok=True)
        except FileNotFoundError:
            return
