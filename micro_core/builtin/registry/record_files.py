"""A directory of record files: how `LocalRegistry` writes, renews and removes them. All file calls block.

Each record is one file. It is written under a temporary name and then renamed, so that readers never see half of it:

    {"instance": {...}, "lease_s": 60.0, "owner": "..."}

The record is valid until the modification time of the file plus `lease_s`. To renew it, one `utime` is enough. Readers
notice it when they check whether the lease has expired. It does not change the modification time of the directory, so a
directory with an unchanged modification time has the same files with the same content.
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
"""Size of one record file. Larger files are not read."""

RECORD_SUFFIX = ".json"
TEMPORARY_SUFFIX = ".tmp"

_MAX_OWNER_LENGTH = 200
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

_temporary_numbers = itertools.count()


class Signature(NamedTuple):
    """Values that differ if a file has been replaced or renewed."""

    inode: int
    modified_ns: int
    size_bytes: int


class Record(NamedTuple):
    """The content of a record file. `owner` is the token of the process that wrote it, or empty."""

    instance: Instance
    lease_s: float
    owner: str


def path_component(name: str) -> str:
    """Return `name` as one component of a path: not empty, `.`, `..`, hidden or too long, and without a separator."""
    quoted = quote(name, safe="", errors="replace")
    if 0 < len(quoted) <= 200 and not quoted.startswith("."):
        return quoted
    return f"_{quoted[:80]}-{_digest(name)}"


def record_name(instance_id: str) -> str:
    """Return the name of the record file of an instance.

    The digest distinguishes ids that differ only in case, or only after the readable part.
    """
    readable = quote(instance_id, safe="", errors="replace")[:80].lstrip(".")
    return f"{readable}-{_digest(instance_id)}{RECORD_SUFFIX}"


def make_directory(state_dir: str, *components: str) -> Path:
    """Create the directory and its parents, accessible to this user only, and return it. Raises OSError."""
    directory = Path(state_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for component in components:
        directory = directory / component
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def write_record(directory: Path, record: Record, wall: float) -> int:
    """Write or replace a record whose lease begins at `wall`, and return the inode of the file.

    Raises OSError, and TooLarge above MAX_FILE_BYTES.
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
    """Start the lease of a record again at `wall`.

    Return False if the file is missing or has another inode than the one that was written. Raises OSError.
    """
    path = directory / record_name(instance_id)
    try:
        if path.stat().st_ino != inode:
            return False
        os.utime(path, ns=_times(wall))
    except FileNotFoundError:
        return False
    return True


def remove_record(directory: Path, instance_id: str, *, inode: int | None = None) -> None:
    """Remove a record, if there is one. With `inode`, remove only this file. Raises OSError."""
    path = directory / record_name(instance_id)
    with suppress(FileNotFoundError):
        if inode is None or path.stat().st_ino == inode:
            path.unlink()


def read_record(path: Path) -> tuple[Signature, Record | None]:
    """Return the signature of a file and its record, or None if the file is not a valid record.

    Raises:
        FileNotFoundError: There is no file. Other errors of the file system count as an invalid record.
    """
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError:  # a symbolic link, a socket, or a missing permission
        return sign(path.lstat()), None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return sign(status), None
        content = os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    try:
        return sign(status), _decode(content, path.name)
    except BadRequest:
        return sign(status), None


def remove_expired(path: Path, signature: Signature) -> None:
    """Remove a file whose lease has expired, unless its owner renews it at the same time. Raises OSError.

    The file is first renamed, after which a renewal fails and the owner writes the record again. If a renewal took place
    between the check of the caller and the renaming, the signature of the renamed file differs, and the file is restored.
    """
    renamed = _temporary_path(path.parent)
    try:
        path.rename(renamed)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):  # another reader may remove old temporary files
        if sign(renamed.stat()) != signature:
            with suppress(FileExistsError):
                path.hardlink_to(renamed)
    renamed.unlink(missing_ok=True)


def sign(status: os.stat_result) -> Signature:
    """Return the signature of a file with this status."""
    return Signature(status.st_ino, status.st_mtime_ns, status.st_size)


def _encode(record: Record) -> bytes:
    value = {"instance": instance_to_dict(record.instance), "lease_s": record.lease_s, "owner": record.owner}
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(content) > MAX_FILE_BYTES:
        raise TooLarge(
            f"the record of {record.instance.id} has {len(content)} bytes (at most {MAX_FILE_BYTES})",
            hint="describe fewer endpoints, or omit their schemas",
        )
    return content


def _decode(content: bytes, name: str) -> Record:
    """Raise BadRequest if the content is not a valid record."""
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
    if not isinstance(owner, str) or len(owner) > _MAX_OWNER_LENGTH:
        raise Malformed(f"{name}: owner is not a string of at most {_MAX_OWNER_LENGTH} characters")
    if record_name(instance.id) != name:
        raise Malformed(f"{name}: contains the record of another instance")
    return Record(instance, float(check_lease(lease_s)), owner)


def _temporary_path(directory: Path) -> Path:
    return directory / f"{os.getpid()}-{next(_temporary_numbers)}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"


def _times(wall: float) -> tuple[int, int]:
    return int(wall * 1e9), int(wall * 1e9)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
