"""One directory of record files: how `local_registry` writes, renews and removes them. Blocking file calls only.

A record is one file, written under another name and moved into place, so nobody reads half of it:

    {"instance": {...}, "lease_s": 60.0, "owner": "..."}

It stands until its modification time plus `lease_s`. Renewing is thus one `utime`, which readers notice when they
look whether the lease has run out, and which leaves the directory untouched: a directory whose own modification
time stands still has not changed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from micro_core.builtin.registry.leases import check_lease
from micro_core.contract import BadRequest, Instance, Malformed, TooLarge, instance_from_dict, instance_to_dict

MAX_FILE_BYTES = 64 * 1024
"""One record; larger files of others are not read."""

RECORD_SUFFIX = ".json"
TEMPORARY_SUFFIX = ".tmp"

_MAX_OWNER_CHARS = 200
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

_temporary_numbers = itertools.count()


class Signature(NamedTuple):
    """What tells that a file is still the one that was read."""

    inode: int
    modified_ns: int
    size_bytes: int


class Record(NamedTuple):
    """What a record file says. `owner` names its process, or is empty."""

    instance: Instance
    lease_s: float
    owner: str


def path_part(name: str) -> str:
    """`name` as one part of a path: never empty, `.`, `..`, hidden, too long, or with a separator in it."""
    quoted = quote(name, safe="", errors="replace")
    if 0 < len(quoted) <= 200 and not quoted.startswith("."):
        return quoted
    return f"_{quoted[:80]}-{_digest(name)}"


def record_name(instance_id: str) -> str:
    """The file name of an id. The digest keeps ids apart that differ in case, or after the part for people."""
    readable = quote(instance_id, safe="", errors="replace")[:80].lstrip(".")
    return f"{readable}-{_digest(instance_id)}{RECORD_SUFFIX}"


def make_directory(state_dir: str, *parts: str) -> Path:
    """Create `state_dir`/parts, each level for this user only, and return it. Raises OSError."""
    directory = Path(state_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in parts:
        directory = directory / part
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def write_record(directory: Path, record: Record, wall: float) -> int:
    """Write or replace the record of an instance, its lease beginning at `wall`; returns the file's inode.

    Raises OSError, and TooLarge over MAX_FILE_BYTES.
    """
    content = _encode(record)
    temporary = _temporary_path(directory)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(content)
        os.utime(temporary, ns=_times(wall))
        inode = temporary.stat().st_ino
        temporary.replace(directory / record_name(record.instance.id))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return inode


def renew_record(directory: Path, instance_id: str, inode: int, wall: float) -> bool:
    """Begin the lease anew; False when the file is gone or another one than was written. Raises OSError."""
    path = directory / record_name(instance_id)
    try:
        if path.stat().st_ino != inode:
            return False
        os.utime(path, ns=_times(wall))
    except FileNotFoundError:
        return False
    return True


def remove_record(directory: Path, instance_id: str, *, inode: int | None = None) -> None:
    """Remove a record if it is there and, with `inode`, still that file. Raises OSError."""
    path = directory / record_name(instance_id)
    with suppress(FileNotFoundError):
        if inode is None or path.stat().st_ino == inode:
            path.unlink()


def read_record(path: Path) -> tuple[Signature, Record | None]:
    """What the file says, or None for anything that is no record. Raises FileNotFoundError alone."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError:  # a symbolic link, a socket, no permission: remembered by what lstat says of it
        return sign(path.lstat()), None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            return sign(found), None
        content = os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    try:
        return sign(found), _decode(content, path.name)
    except BadRequest:
        return sign(found), None


def sweep_record(path: Path, signature: Signature) -> None:
    """Remove the file that was found to have expired, unless its owner renews it in this very moment.

    Moved aside first: from then on the owner's renewal fails and it writes the record anew. A renewal that came
    between the reader's look and the move shows in the moved file, which is then put back. Raises OSError.
    """
    aside = _temporary_path(path.parent)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):  # another reader may clear away what looks old
        if sign(aside.stat()) != signature:
            with suppress(FileExistsError):
                path.hardlink_to(aside)
    aside.unlink(missing_ok=True)


def sign(found: os.stat_result) -> Signature:
    """The signature of a file's status."""
    return Signature(found.st_ino, found.st_mtime_ns, found.st_size)


def _encode(record: Record) -> bytes:
    value = {"instance": instance_to_dict(record.instance), "lease_s": record.lease_s, "owner": record.owner}
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(content) > MAX_FILE_BYTES:
        raise TooLarge(
            f"the record of {record.instance.id} takes {len(content)} bytes, the bound is {MAX_FILE_BYTES}",
            hint="describe fewer endpoints, or leave their schemas out",
        )
    return content


def _decode(content: bytes, name: str) -> Record:
    """Raises BadRequest."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{name}: not JSON: {error!s:.120}") from error
    if not isinstance(value, dict):
        raise Malformed(f"{name}: not a map")
    instance = instance_from_dict(value.get("instance"))
    lease_s, owner = value.get("lease_s"), value.get("owner", "")
    if isinstance(lease_s, bool) or not isinstance(lease_s, (int, float)):
        raise Malformed(f"{name}: lease_s is not a number")
    if not isinstance(owner, str) or len(owner) > _MAX_OWNER_CHARS:
        raise Malformed(f"{name}: owner is not a short text")
    if record_name(instance.id) != name:
        raise Malformed(f"{name}: holds the record of another instance")
    return Record(instance, float(check_lease(lease_s)), owner)


def _temporary_path(directory: Path) -> Path:
    return directory / f"{os.getpid()}-{next(_temporary_numbers)}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"


def _times(wall: float) -> tuple[int, int]:
    return int(wall * 1e9), int(wall * 1e9)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
