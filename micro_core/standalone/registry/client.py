"""The registry role as a client of `micro registry`, at a known address.

Each filter that is watched has one stream, whose copy of the records stands while the registry is away. A registry that
comes back empty is filled again by those who own records, before anybody is told that others have gone.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from micro_core.contract import (
    Closed,
    ConfigError,
    Driver,
    DriverContext,
    Instance,
    MicroError,
    OptionError,
    Registry,
    RegistryEventKind,
    RegistryWatch,
    Unreachable,
    WatchSet,
    changes,
    check_instance,
    hookimpl,
    instance_from_dict,
    instance_to_dict,
    option,
)
from micro_core.rpc.client import Client
from micro_core.standalone.registry.server import DEFAULT_ADDRESS, SERVICE
from micro_core.wire.header import CallMode

T = TypeVar("T")

MAX_RECORDS = 100_000
"""Records believed of one registry."""

MAX_FILTERS = 1_024
"""Services that are watched one by one, at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRegistryOptions:
    """Options of the registry that is a service."""

    address: str = option(DEFAULT_ADDRESS, "Where `micro registry` takes calls; it listens there by itself.")
    timeout_s: float = option(3.0, "How long one request may take.")
    start_s: float = option(10.0, "How long the start waits for a registry that is not there yet.")
    retry_s: float = option(1.0, "Longest pause between two tries while the registry is away.")
    grace_s: float = option(3.0, "How long records that a restarted registry lacks stand, for their owners to come.")


class _Owned(NamedTuple):
    """A record of this process, and the incarnation of the registry that has it."""

    instance: Instance
    lease_s: float
    incarnation: str


class ServiceRegistry:
    """Implements `micro_core.contract.registry.Registry`."""

    def __init__(self, options: ServiceRegistryOptions, context: DriverContext) -> None:
        for name in ("timeout_s", "start_s", "retry_s", "grace_s"):
            value = getattr(options, name)
            if not 0 <= value <= 3_600 or not math.isfinite(value) or (name in ("timeout_s", "retry_s") and value == 0):
                raise OptionError(f"{name} = {value!r:.40} is not a time", hint="seconds, at most 3600")
        if context.transport is None:
            raise ConfigError("the registry `service` needs a transport")
        self.options = options
        self.context = context
        self._client = Client(
            registry=self, transport=context.transport, proxy="", name="registry:service", counters=context.counters
        )
        self._owned: dict[str, _Owned] = {}
        self._place = {"network": context.network, "site": context.site}
        self._copies: dict[str, _Copy] = {}
        self._watches: dict[str, WatchSet] = {}
        self._is_open = False

    # ---------------------------------------------------------------- Registry

    async def start(self) -> None:
        """Wait for the registry; raises Unreachable when it does not come within `start_s`."""
        self._is_open = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.start_s
        pause_s, was_told = 0.05, False
        while True:
            try:
                await self._call("Debug.Health", {})
                return
            except MicroError as error:
                if loop.time() + pause_s > deadline:
                    self._is_open = False
                    await self._client.close()
                    raise Unreachable(
                        f"no registry at {self.options.address}: {error.detail}",
                        hint="micro registry; or another address: MICRO_REGISTRY__SERVICE__ADDRESS",
                    ) from error
                if not was_told:
                    was_told = True
                    self.context.logger.warning("waiting for the registry", extra={"address": self.options.address})
                await asyncio.sleep(pause_s * self.context.random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, self.options.retry_s)

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        await asyncio.gather(*(copy.close() for copy in self._copies.values()))
        for watches in self._watches.values():
            await watches.close()
        owned, self._owned = self._owned, {}
        gone = [{"instance": instance_to_dict(record.instance), "if_equal": True} for record in owned.values()]
        answers = [self._call("Registry.Deregister", request) for request in gone]
        for answer in await asyncio.gather(*answers, return_exceptions=True):
            if isinstance(answer, MicroError):
                self.context.counters.add("registry_records_not_withdrawn")
        await self._client.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """As `Registry.register`; raises BadRequest, TooLarge, Closed, Unreachable.

        A record that was accepted once is registered again, by itself, when the registry comes back without it.
        """
        self._check_open()
        checked = check_instance(instance)
        await self._register(checked, lease_s)
        # The stream that tells that the registry has gone, and come back.
        self._copy(SERVICE)

    async def _register(self, instance: Instance, lease_s: float) -> None:
        request = {"instance": instance_to_dict(instance), "lease_s": float(lease_s)}
        answer = await self._call("Registry.Register", request)
        incarnation = answer.get("incarnation", "") if isinstance(answer, dict) else ""
        self._owned[instance.id] = _Owned(instance, lease_s, str(incarnation))

    async def deregister(self, instance: Instance) -> None:
        self._check_open()
        self._owned.pop(instance.id, None)
        await self._call("Registry.Deregister", {"instance": instance_to_dict(instance)})

    async def instances(self, service: str | None = None) -> list[Instance]:
        self._check_open()
        found: dict[str, Instance] = {}

        async def read() -> None:
            stream = self._stream("Registry.Instances", service or "", self.options.timeout_s)
            async with stream:
                async for item in stream:
                    for instance in _records(item):
                        found[instance.id] = instance
                    _check_count(found)

        await self._reached(read())
        return list(found.values())

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """As `Registry.watch`; raises Closed, and Unreachable where nothing is known yet and the registry is away."""
        self._check_open()
        word = service or ""
        copy = self._copy(word)
        try:
            async with asyncio.timeout(self.options.timeout_s):
                await copy.synced.wait()
        except TimeoutError:
            raise Unreachable(
                f"the registry at {self.options.address} does not answer: {copy.reason or 'silence'}",
                hint="micro registry",
            ) from None
        self._check_open()
        return self._watches[word].open(service, copy.records.values())

    # ---------------------------------------------------------- for its copies

    async def connected(self, incarnation: str) -> None:
        """A watch stands: what is owned here is registered again with a registry that has begun anew."""
        for instance, lease_s, registered_with in [*self._owned.values()]:
            if registered_with == incarnation:
                continue
            try:
                await self._register(instance, lease_s)
                self.context.counters.add("registry_records_reasserted")
            except MicroError as error:
                # The owner's next renewal tries again, and the next connection does.
                self.context.counters.add("registry_records_not_reasserted")
                self.context.logger.warning(
                    "a record was not registered again", extra={"id": instance.id, "reason": str(error)}
                )
        self.context.logger.info("watching the registry", extra={"incarnation": incarnation})

    def stream_of(self, word: str) -> Any:
        return self._stream("Registry.Watch", word, None)

    def publish(self, word: str, before: Instance | None, after: Instance | None) -> None:
        self._watches[word].publish(changes(before, after))

    # ------------------------------------------------------------------ inside

    def _copy(self, word: str) -> _Copy:
        copy = self._copies.get(word)
        if copy is None:
            if len(self._copies) >= MAX_FILTERS:
                raise Unreachable(f"more than {MAX_FILTERS} services are watched one by one", hint="watch all of them")
            self._watches[word] = WatchSet(self.context.counters)
            copy = self._copies[word] = _Copy(self, word)
            copy.begin()
        return copy

    def _stream(self, endpoint: str, word: str, timeout_s: float | None) -> Any:
        return self._client.stream(
            SERVICE,
            endpoint,
            {**self._place, "service": word},
            address=self.options.address,
            mode=CallMode.SERVER_STREAM,
            timeout_s=timeout_s,
        )

    async def _call(self, endpoint: str, request: dict[str, Any]) -> Any:
        return await self._reached(
            self._client.call(
                SERVICE,
                endpoint,
                {**self._place, **request} if endpoint.startswith("Registry.") else request,
                address=self.options.address,
                timeout_s=self.options.timeout_s,
                idempotent=True,
            )
        )

    async def _reached(self, work: Awaitable[T]) -> T:
        """What was asked; whatever says that nobody answered becomes the contract's Unreachable."""
        try:
            return await work
        except MicroError as error:
            if error.code in (404, 408, 429, 502, 503) and not isinstance(error, Unreachable):
                raise Unreachable(
                    f"the registry at {self.options.address} does not serve: {error.detail}", hint="micro registry"
                ) from error
            raise

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the registry `service` is not started, or closed")


class _Copy:
    """The records of one filter, kept by a stream that is opened again whenever it ends."""

    def __init__(self, owner: ServiceRegistry, word: str) -> None:
        self.records: dict[str, Instance] = {}
        self.synced = asyncio.Event()
        self.reason = ""
        self._owner = owner
        self._word = word
        self._incarnation = ""
        self._missing: set[str] = set()
        self._tasks: dict[asyncio.Task[None], None] = {}

    def begin(self) -> None:
        self._spawn(self._keep())

    async def close(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self) -> None:
        options, context = self._owner.options, self._owner.context
        pause_s = 0.05
        while True:
            try:
                stream = self._owner.stream_of(self._word)
                async with stream:
                    await self._read(stream)
                pause_s = 0.05
            except MicroError as error:
                if str(error) != self.reason:
                    context.logger.warning("the registry cannot be watched", extra={"reason": str(error)})
                context.counters.add("registry_watch_failed")
                self.reason = str(error)
            await asyncio.sleep(pause_s * context.random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, options.retry_s)

    async def _read(self, stream: Any) -> None:
        found: dict[str, Instance] = {}
        is_synced = False
        async for item in stream:
            if not isinstance(item, dict):
                continue
            if "synced" in item:
                is_synced = True
                self._take(found)
            elif "incarnation" in item:
                await self._begun(str(item["incarnation"])[:64])
            elif "records" in item:
                for instance in _records(item):
                    found[instance.id] = instance
                _check_count(found)
            elif is_synced:
                self._change(item)

    async def _begun(self, incarnation: str) -> None:
        is_new, self._incarnation = incarnation != self._incarnation, incarnation
        if is_new and self._word == SERVICE:
            # Not awaited here: the stream must go on being read.
            self._spawn(self._owner.connected(incarnation))

    def _take(self, found: dict[str, Instance]) -> None:
        """The registry's whole word. What it lacks may come back within the grace: it may have begun anew."""
        self.reason = ""
        for instance_id, instance in found.items():
            self._put(instance_id, instance)
        self._missing = {instance_id for instance_id in self.records if instance_id not in found}
        self.synced.set()
        if self._missing:
            self._spawn(self._drop_missing(self._missing))

    async def _drop_missing(self, missing: set[str]) -> None:
        await asyncio.sleep(self._owner.options.grace_s)
        if missing is self._missing:
            for instance_id in sorted(missing):
                self._put(instance_id, None)

    def _change(self, item: dict[str, Any]) -> None:
        instance = instance_from_dict(item.get("record"))
        if item.get("kind") == RegistryEventKind.DELETED.value:
            self._put(instance.id, None)
        else:
            self._put(instance.id, instance)
            _check_count(self.records)

    def _put(self, instance_id: str, instance: Instance | None) -> None:
        before = self.records.pop(instance_id, None)
        if instance is not None:
            self.records[instance_id] = instance
        self._missing.discard(instance_id)
        self._owner.publish(self._word, before, instance)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._owner.context.counters.add("registry_tasks_failed")
            logging.getLogger(__name__).error("a task of the registry's client failed", exc_info=error)


def _records(item: Any) -> list[Instance]:
    found = item.get("records") if isinstance(item, dict) else None
    return [instance_from_dict(record) for record in found] if isinstance(found, list) else []


def _check_count(records: dict[str, Instance]) -> None:
    if len(records) > MAX_RECORDS:
        raise Unreachable(f"the registry has more than {MAX_RECORDS} records")


def create(options: ServiceRegistryOptions, context: DriverContext) -> ServiceRegistry:
    """Build the registry; raises OptionError, ConfigError."""
    return ServiceRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    return Driver(
        name="service",
        summary="The records of a `micro registry` process.",
        capabilities=frozenset({"watch"}),
        options=ServiceRegistryOptions,
        create=create,
    )
