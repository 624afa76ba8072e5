"""The current records of a directory of record files, read incrementally. All file calls block.

Callers pass `now` (monotonic clock) and `wall` (wall clock) in seconds. The time of a file is compared with the wall clock
once, when the file is read. After that its lease uses the monotonic clock, so that a change of the wall clock has no effect.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from micro_core.builtin.registry.process_identity import has_ended
from micro_core.builtin.registry.record_files import (
    RECORD_SUFFIX,
    TEMPORARY_SUFFIX,
    Record,
    Signature,
    read_record,
    remove_expired,
    sign,
)
from micro_core.contract import Counters, CountersInMemory, Instance

MAX_FILES = 20_000
"""Record files read from one directory. Further files are counted and ignored."""

SETTLE_S = 2.0
"""File systems store times with a resolution of up to 2 s (FAT). Two changes within it cause the same modification time. So
a directory counts as unchanged only if it was also read this long after the modification time was first seen."""

OWNER_CHECK_S = 1.0
"""Interval at which the view checks whether the owners of the records still run."""

_MAX_TEMPORARY_AGE_S = 60.0
"""An older temporary file belongs to a process that ended while it was writing."""


class _File(NamedTuple):
    """A file as it was read. `expires_at` is a time of the monotonic clock; an invalid file never expires."""

    signature: Signature
    record: Record | None
    expires_at: float


class RecordView:
    """The current records of `directory`. `refresh` may be called in any thread."""

    def __init__(self, directory: Path, *, check_owner: bool) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._instances: Mapping[str, Instance] = {}
        self._directory_modified_ns: int | None = None
        self._directory_changed_at = -math.inf
        self._directory_read_at = -math.inf
        self._next_expiry = math.inf
        self._next_owner_check = -math.inf if check_owner else math.inf
        self._counters = CountersInMemory()

    def is_current(self, now: float) -> bool:
        """Return whether a refresh would have no effect. Costs one `stat`. Raises OSError."""
        return now < self._next_expiry and now < self._next_owner_check and self._is_settled(self._modified_ns())

    def refresh(self, now: float, wall: float) -> Mapping[str, Instance]:
        """Return the current records by id. Without a change, it is the same object as before. Raises OSError."""
        with self._lock:
            has_changed = self._read_changed(now, wall)
            has_changed |= self._remove_orphans(now)
            has_changed |= self._remove_expired(now, wall)
            if has_changed:
                self._instances = {
                    file.record.instance.id: file.record.instance for file in self._files.values() if file.record
                }
            return self._instances

    def move_counts(self, counters: Counters) -> None:
        """Add the counts since the last call to `counters`, which belongs to the event loop."""
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
                continue  # removed after the directory was listed
            self._files[entry.name] = file
        self._next_expiry = min((file.expires_at for file in self._files.values()), default=math.inf)
        return before != self._files

    def _entries(self, wall: float) -> list[os.DirEntry[str]]:
        found: list[os.DirEntry[str]] = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith(TEMPORARY_SUFFIX):
                        self._remove_old_temporary(entry, wall)
                    elif not entry.name.endswith(RECORD_SUFFIX):
                        continue
                    elif len(found) < MAX_FILES:
                        found.append(entry)
                    else:
                        self._counters.add("registry_records_over_limit")
        except FileNotFoundError:
            return []
        return found

    def _read(self, path: Path, now: float, wall: float) -> _File:
        signature, record = read_record(path)
        if record is None:
            self._counters.add("registry_records_malformed")
            return _File(signature, None, math.inf)
        # A file with a time in the future (the wall clock was set back) is valid for one lease from now.
        remaining_s = min(signature.modified_ns / 1e9 + record.lease_s - wall, record.lease_s)
        return _File(signature, record, now + remaining_s)

    def _remove_expired(self, now: float, wall: float) -> bool:
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
            # With the same signature there was no renewal, and the wall clock is not used again.
            current = file if sign(path.lstat()) == file.signature else self._read(path, now, wall)
        except FileNotFoundError:
            return None
        if current.expires_at > now:
            return current
        self._counters.add("registry_records_expired")
        remove_expired(path, current.signature)
        return None

    def _remove_orphans(self, now: float) -> bool:
        if now < self._next_owner_check:
            return False
        self._next_owner_check = now + OWNER_CHECK_S
        owners = {file.record.owner for file in self._files.values() if file.record}
        ended = {owner for owner in owners if owner and has_ended(owner)}
        orphans = [(name, file) for name, file in self._files.items() if file.record and file.record.owner in ended]
        for name, file in orphans:
            self._counters.add("registry_records_orphaned")
            remove_expired(self._directory / name, file.signature)
            del self._files[name]
        return bool(orphans)

    def _remove_old_temporary(self, entry: os.DirEntry[str], wall: float) -> None:
        try:
            if wall - entry.stat(follow_symlinks=False).st_mtime > _MAX_TEMPORARY_AGE_S:
                Path(entry.path).unlink(missing_ok=True)
        except FileNotFoundError:
            return
