"""The driver `registry:local`: the registry of one machine, a directory with one small file per record.

    <state_dir>/registry/<network>/<site>/<id>-<digest>.json

It needs no server and no port. Watchers check the directory every `poll_s` seconds, which costs one `stat` as long as its
modification time does not change. A record is written in the event loop; the directory is read in a thread.
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
    path_component,
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
from micro_core.lifecycle.background_tasks import BackgroundTasks

_MIN_PAUSE_S = 0.02
"""Shortest pause between two checks of the directory while this process registers records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRegistryOptions:
    """Options of `registry:local`."""

    poll_s: float = option(0.25, "Interval in seconds at which watchers check the directory.")
    check_owner: bool = option(True, "Remove the records of a process when it has ended, before their lease expires.")


class _OwnedRecord(NamedTuple):
    """A record that this object wrote, and the inode of its file."""

    record: Record
    inode: int


class LocalRegistry:
    """Implements `micro_core.contract.registry.Registry`.

    Raises:
        OptionError: `poll_s` is out of range.
    """

    def __init__(self, options: LocalRegistryOptions, context: DriverContext) -> None:
        if not 0.01 <= options.poll_s <= 60 or not math.isfinite(options.poll_s):
            raise OptionError(f"invalid poll_s {options.poll_s!r:.40}", hint="use 0.01 to 60 seconds")
        self._options = options
        self._clock = context.clock
        self._counters = context.counters
        self._logger: logging.Logger = context.logger
        self._state_dir = context.state_dir
        self._path_components = ("registry", path_component(context.network), path_component(context.site))
        self.directory = Path(context.state_dir, *self._path_components)
        self._owner = process_token() if options.check_owner else ""
        self._owned: dict[str, _OwnedRecord] = {}
        self._view = RecordView(self.directory, check_owner=options.check_owner)
        self._instances: Mapping[str, Instance] = {}
        self._watches = WatchSet(context.counters)
        self._refreshing = asyncio.Lock()
        self._has_written = asyncio.Event()
        self._tasks = BackgroundTasks(
            component="local registry",
            logger=context.logger,
            counters=context.counters,
            failure_counter="registry_poll_failed",
        )
        self._is_polling = False
        """Whether a task checks the directory for the open watches."""
        self._is_open = False

    async def start(self) -> None:
        """Create the directory. Raises Unreachable if that fails."""
        with self._file_errors():
            make_directory(self._state_dir, *self._path_components)
        self._is_open = True

    async def close(self) -> None:
        """Remove the records that this object registered and end its watches. Safe to call twice."""
        if not self._is_open:
            return
        self._is_open = False
        await self._watches.close()
        await self._tasks.cancel()
        self._is_polling = False
        owned, self._owned = self._owned, {}
        with self._file_errors():
            for instance_id, entry in owned.items():
                remove_record(self.directory, instance_id, inode=entry.inode)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record. Raises BadRequest, TooLarge (64 KiB per record), Closed, Unreachable."""
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
            self._owned[instance.id] = _OwnedRecord(record, self._write(record))
        self._has_written.set()

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of `instance.id`, also if another process registered it. Raises Closed, Unreachable."""
        self._check_open()
        self._owned.pop(instance.id, None)
        with self._file_errors():
            remove_record(self.directory, instance.id)
        self._has_written.set()

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the current records of one service, or of all. Raises Closed, Unreachable."""
        self._check_open()
        await self._refresh()
        return [entry for entry in self._instances.values() if service is None or entry.service == service]

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Report the changes of one service, or of all. Raises Closed, Unreachable."""
        self._check_open()
        await self._refresh()
        self._check_open()
        watch = self._watches.open(service, self._instances.values())
        if not self._is_polling:
            self._is_polling = True
            self._tasks.start(self._poll())
        return watch

    def _write(self, record: Record) -> int:
        try:
            return write_record(self.directory, record, self._clock.wall())
        except FileNotFoundError:
            # The state directory was deleted. Each record is written again with its next renewal.
            make_directory(self._state_dir, *self._path_components)
            return write_record(self.directory, record, self._clock.wall())

    async def _refresh(self) -> None:
        async with self._refreshing:
            with self._file_errors():
                if self._view.is_current(self._clock.now()):
                    return
                found = await asyncio.to_thread(self._view.refresh, self._clock.now(), self._clock.wall())
            self._view.move_counts(self._counters)
            before, self._instances = self._instances, found
            if before is found:
                return
            for instance_id in [*(removed for removed in before if removed not in found), *found]:
                self._watches.publish(changes(before.get(instance_id), found.get(instance_id)))

    async def _poll(self) -> None:
        is_failing = False
        while len(self._watches):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.poll_s):
                    await self._has_written.wait()
                    await asyncio.sleep(_MIN_PAUSE_S)
            self._has_written.clear()
            try:
                await self._refresh()
                is_failing = False
            except MicroError as error:
                self._counters.add("registry_poll_failed")
                if not is_failing:
                    self._logger.warning("cannot read the directory of the registry", extra={"reason": str(error)})
                is_failing = True
        self._is_polling = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the local registry is not started, or closed")

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unreachable(
                f"cannot use the registry directory {self.directory}: {error.strerror or error}",
                hint="check its owner, its mode and the free space",
            ) from error


def create(options: LocalRegistryOptions, context: DriverContext) -> LocalRegistry:
    """Return the registry, not started. Raises OptionError."""
    return LocalRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Return the description of the driver."""
    return Driver(
        name="local",
        summary="Services of this machine, in files of this user.",
        options=LocalRegistryOptions,
        create=create,
        capabilities=frozenset({"watch"}),
    )
