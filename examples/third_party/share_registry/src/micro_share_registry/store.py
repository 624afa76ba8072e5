"""The back end: a directory on a file share, with one file per record.

The clocks of two hosts are never compared. Each renewal writes a new random `beat`. A reader that sees no new beat for
the time of the lease, by its own clock, treats the record as expired and removes it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from micro_core.contract import BadRequest, DriverContext, Instance, Unreachable, instance_from_dict, instance_to_dict

from micro_share_registry.options import ShareOptions

MAX_FILE_BYTES = 128 * 1024
T = TypeVar("T")


class Record(NamedTuple):
    """The content of one file."""

    instance: Instance
    lease_s: float
    beat: str
    owner: str


class Store:
    """The records of one network and site."""

    def __init__(self, directory: Path, context: DriverContext) -> None:
        self._directory = directory
        self._context = context
        # By file: the newest beat, and when the lease that started with it expires.
        self._seen: dict[Path, tuple[str, float]] = {}

    async def put(self, instance: Instance, *, lease_s: float, owner: str) -> None:
        """Create, replace or renew the record with the id of `instance`."""
        record = Record(instance, lease_s, secrets.token_hex(8), owner)
        text = json.dumps({**record._asdict(), "instance": instance_to_dict(instance)})
        await self._on_disk(lambda: write(self._path(instance.id), text))

    async def remove(self, instance_id: str) -> None:
        """Remove a record if it exists."""
        await self._on_disk(lambda: unlink([self._path(instance_id)]))

    async def remove_owned(self, owner: str) -> None:
        """Remove every record whose last writer was `owner`."""
        found = await self._on_disk(self._read_all)
        await self._on_disk(lambda: unlink(path for path, record in found.items() if record.owner == owner))

    async def read(self) -> dict[str, Instance]:
        """Return the live records by id, and remove the expired ones."""
        found, now = await self._on_disk(self._read_all), self._context.clock.now()
        self._seen = {path: self._lease(path, record, now) for path, record in found.items()}
        expired = {path for path, (_, ends_at) in self._seen.items() if ends_at <= now}
        await self._on_disk(lambda: unlink(expired))
        return {record.instance.id: record.instance for path, record in found.items() if path not in expired}

    def _lease(self, path: Path, record: Record, now: float) -> tuple[str, float]:
        beat, ends_at = self._seen.get(path, ("", 0.0))
        return (beat, ends_at) if beat == record.beat else (record.beat, now + record.lease_s)

    def _read_all(self) -> dict[Path, Record]:
        # Does not create the share itself: if it is not mounted, the directory would exist on this host only.
        self._directory.parent.mkdir(exist_ok=True)
        self._directory.mkdir(exist_ok=True)
        found = {}
        for path in sorted(self._directory.iterdir()):
            try:
                if path.suffix == ".json":
                    with path.open("rb") as file:
                        found[path] = parse(file.read(MAX_FILE_BYTES))
            except FileNotFoundError:
                continue  # Removed after the directory was listed.
            except (BadRequest, ValueError, TypeError, KeyError, RecursionError):
                self._context.counters.add("share_files_invalid")
        return found

    def _path(self, instance_id: str) -> Path:
        return self._directory / f"{sha256(instance_id.encode()).hexdigest()}.json"

    async def _on_disk(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise Unreachable(f"cannot access {self._directory}: {error}", hint="check that it is mounted") from error


def parse(content: bytes) -> Record:
    """Return the record in a file. Raises BadRequest, ValueError, TypeError or KeyError if the content is invalid."""
    value = json.loads(content)
    instance, lease_s = instance_from_dict(value["instance"]), float(value["lease_s"])
    return Record(instance, lease_s, str(value["beat"]), str(value["owner"]))


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that readers see complete files only."""
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def unlink(paths: Iterable[Path]) -> None:
    """Remove files that may have been removed already."""
    for path in paths:
        path.unlink(missing_ok=True)


def store_of(options: ShareOptions, context: DriverContext) -> Store:
    """Return the store of this network and site."""
    root = Path(options.path or context.state_dir).expanduser()
    return Store(root / f"share-{quote(context.network, safe='')}" / context.site, context)
