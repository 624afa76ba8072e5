"""The registry role for one machine: a directory of small files, one a record, read by whoever is interested.

    <state_dir>/registry/<network>/<site>/<id>-<digest>.json

No server and no port. Watchers look at the directory every `poll_s`; as long as its modification time stands still
that is one `stat`. Writes are single small files and happen at once; reading many happens in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from micro_core.builtin.registry.leases import check_lease
from micro_core.builtin.registry.process_identity import process_token
from micro_core.builtin.registry.record_files import (
    Record,
    make_directory,
    path_part,
    remove_record,
    renew_record,
    write_record,
)
from micro_core.builtin.registry.record_view import RecordView
from micro_core.contract import (
    Closed,
    Driver,
    DriverContext,
    Instance,
    MicroError,
    OptionError,
    Registry,
    RegistryWatch,
    Unreachable,
    WatchSet,
    changes,
    check_instance,
    hookimpl,
    option,
)

_MIN_PAUSE_S = 0.02
"""Pause between two looks however many records this process registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRegistryOptions:
    """Options of the local registry."""

    poll_s: float = option(0.25, "Seconds between two looks of a watcher at the directory.")
    check_owner: bool = option(True, "Drop the records of a process that is gone before their lease ends.")


class _Owned(NamedTuple):
    """A record this object wrote, and into which file."""

    record: Record
    inode: int


class LocalRegistry:
    """Implements `micro_core.contract.registry.Registry`."""

    def __init__(self, options: LocalRegistryOptions, context: DriverContext) -> None:
        if not 0.01 <= options.poll_s <= 60 or not math.isfinite(options.poll_s):
            raise OptionError(f"poll_s is {options.poll_s!r:.40}", hint="seconds from 0.01 to 60")
        self._options = options
        self._clock = context.clock
        self._counters = context.counters
        self._logger: logging.Logger = context.logger
        self._state_dir = context.state_dir
        self._parts = ("registry", path_part(context.network), path_part(context.site))
        self.directory = Path(context.state_dir, *self._parts)
        self._owner = process_token() if options.check_owner else ""
        self._owned: dict[str, _Owned] = {}
        self._view = RecordView(self.directory, check_owner=options.check_owner)
        self._standing: Mapping[str, Instance] = {}
        self._watches = WatchSet(context.counters)
        self._refreshing = asyncio.Lock()
        self._poke = asyncio.Event()
        self._poll_task: asyncio.Task[None] | None = None
        self._is_open = False

    async def start(self) -> None:
        """Make the directory; raises Unreachable when that is impossible."""
        with self._file_errors():
            make_directory(self._state_dir, *self._parts)
        self._is_open = True

    async def close(self) -> None:
        """Withdraw what was registered here and end the watches."""
        if not self._is_open:
            return
        self._is_open = False
        await self._watches.close()
        task, self._poll_task = self._poll_task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        owned, self._owned = self._owned, {}
        with self._file_errors():
            for instance_id, entry in owned.items():
                remove_record(self.directory, instance_id, inode=entry.inode)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew; raises BadRequest, TooLarge (64 KiB a record), Closed, Unreachable."""
        self._check_open()
        record = Record(check_instance(instance), float(check_lease(lease_s)), self._owner)
        owned = self._owned.get(instance.id)
        with self._file_errors():
            if (
                owned is not None
                and owned.record == record
                and renew_record(self.directory, instance.id, owned.inode, self._clock.wall())
            ):
                return
            self._owned[instance.id] = _Owned(record, self._write(record))
        self._poke.set()

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of this id, whoever registered it; raises Closed, Unreachable."""
        self._check_open()
        self._owned.pop(instance.id, None)
        with self._file_errors():
            remove_record(self.directory, instance.id)
        self._poke.set()

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The live records; raises Closed, Unreachable."""
        self._check_open()
        await self._refresh()
        return [entry for entry in self._standing.values() if service is None or entry.service == service]

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow changes; raises Closed, Unreachable."""
        self._check_open()
        await self._refresh()
        self._check_open()
        watch = self._watches.open(service, self._standing.values())
        if self._poll_task is None:
            self._poll_task = asyncio.create_task(self._poll(), name="local registry poll")
        return watch

    def _write(self, record: Record) -> int:
        try:
            return write_record(self.directory, record, self._clock.wall())
        except FileNotFoundError:
            # Somebody cleared the state directory away: what stands is written anew as it is renewed.
            make_directory(self._state_dir, *self._parts)
            return write_record(self.directory, record, self._clock.wall())

    async def _refresh(self) -> None:
        async with self._refreshing:
            with self._file_errors():
                if self._view.is_current(self._clock.now()):
                    return
                found = await asyncio.to_thread(self._view.refresh, self._clock.now(), self._clock.wall())
            self._view.report(self._counters)
            before, self._standing = self._standing, found
            if before is found:
                return
            for instance_id in [*(gone for gone in before if gone not in found), *found]:
                self._watches.publish(changes(before.get(instance_id), found.get(instance_id)))

    async def _poll(self) -> None:
        is_failing = False
        while len(self._watches):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.poll_s):
                    await self._poke.wait()
                    await asyncio.sleep(_MIN_PAUSE_S)
            self._poke.clear()
            try:
                await self._refresh()
                is_failing = False
            except MicroError as error:
                self._counters.add("registry_poll_failed")
                if not is_failing:
                    self._logger.warning("the registry's directory cannot be read", extra={"reason": str(error)})
                is_failing = True
        self._poll_task = None

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the local registry is not started, or closed")

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unreachable(
                f"the registry's directory {self.directory} fails: {error.strerror or error}",
                hint="check its owner, its mode and the space left",
            ) from error


def create(options: LocalRegistryOptions, context: DriverContext) -> LocalRegistry:
    """Build the registry; raises OptionError."""
    return LocalRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    return Driver(
        name="local",
        summary="Services of this machine, in files of this user.",
        options=LocalRegistryOptions,
        create=create,
        capabilities=frozenset({"watch"}),
    )
