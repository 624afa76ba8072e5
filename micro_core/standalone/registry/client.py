"""The driver `registry:service`: a client of `micro registry`, which listens at a known address.

The client keeps a copy of the records for each service that is watched. When a registry comes back without records, their
owners register them again, and watchers see no change.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
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
    RegistryWatch,
    Unreachable,
    WatchSet,
    changes,
    check_instance,
    hookimpl,
    instance_to_dict,
    option,
)
from micro_core.contract.names import REGISTRY_SERVICE
from micro_core.rpc.client import Client
from micro_core.standalone.registry.protocol import DEFAULT_ADDRESS, instances_of
from micro_core.standalone.registry.record_copy import RecordCopy, check_record_count
from micro_core.wire.header import CallMode

T = TypeVar("T")

MAX_COPIES = 1_024
"""Services that are watched separately at the same time."""

INITIAL_RETRY_S = 0.05

NOT_SERVED = (404, 408, 429, 502, 503)
"""Codes of errors which mean that no registry has handled the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRegistryOptions:
    """Options of `registry:service`."""

    address: str = option(DEFAULT_ADDRESS, "Address of `micro registry`, which listens there by default.")
    timeout_s: float = option(3.0, "Timeout of one request in seconds.")
    start_s: float = option(10.0, "Seconds that the start waits for the registry.")
    retry_s: float = option(1.0, "Longest pause between two attempts to reach the registry in seconds.")
    grace_s: float = option(
        3.0,
        "Seconds for which records that a restarted registry lacks are kept until their owners register them again.",
    )


class _OwnedRecord(NamedTuple):
    """A record of this process, and the incarnation of the registry that has accepted it."""

    instance: Instance
    lease_s: float
    incarnation: str


class ServiceRegistry:
    """Implements `micro_core.contract.registry.Registry`.

    Raises:
        OptionError: An option is out of range.
        ConfigError: There is no transport.
    """

    def __init__(self, options: ServiceRegistryOptions, context: DriverContext) -> None:
        for name in ("timeout_s", "start_s", "retry_s", "grace_s"):
            value = getattr(options, name)
            if not 0 <= value <= 3_600 or not math.isfinite(value) or (name in ("timeout_s", "retry_s") and value == 0):
                raise OptionError(f"invalid {name} {value!r:.40}", hint="use at most 3600 seconds")
        if context.transport is None:
            raise ConfigError("the driver registry:service needs a transport")
        self._options = options
        self._context = context
        self._client = Client(
            registry=self, transport=context.transport, proxy="", name="registry:service", counters=context.counters
        )
        self._owned: dict[str, _OwnedRecord] = {}
        self._scope = {"network": context.network, "site": context.site}
        self._copies: dict[str, RecordCopy] = {}
        """By the name of the service; the copy of all services has an empty name."""
        self._watches: dict[str, WatchSet] = {}
        self._is_open = False

    # --------------------------------------------------------------- Registry

    async def start(self) -> None:
        """Wait until the registry answers.

        Raises:
            Unreachable: The registry has not answered within `start_s`.
        """
        self._is_open = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.start_s
        pause_s, is_logged = INITIAL_RETRY_S, False
        while True:
            try:
                await self._call("Debug.Health", {})
                return
            except MicroError as error:
                if loop.time() + pause_s > deadline:
                    self._is_open = False
                    await self._client.close()
                    raise Unreachable(
                        f"no registry at {self._options.address}: {error.detail}",
                        hint="micro registry; or another address: MICRO_REGISTRY__SERVICE__ADDRESS",
                    ) from error
                if not is_logged:
                    is_logged = True
                    self._context.logger.warning("waiting for the registry", extra={"address": self._options.address})
                await asyncio.sleep(pause_s * self._context.random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, self._options.retry_s)

    async def close(self) -> None:
        """End the watches and deregister the records of this process. Safe to call twice."""
        if not self._is_open:
            return
        self._is_open = False
        await asyncio.gather(*(copy.close() for copy in self._copies.values()))
        for watches in self._watches.values():
            await watches.close()
        owned, self._owned = self._owned, {}
        requests = [{"instance": instance_to_dict(record.instance), "if_equal": True} for record in owned.values()]
        answers = [self._call("Registry.Deregister", request) for request in requests]
        for answer in await asyncio.gather(*answers, return_exceptions=True):
            if isinstance(answer, MicroError):
                self._context.counters.add("registry_records_not_withdrawn")
        await self._client.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record. Raises BadRequest, TooLarge, Closed, Unreachable.

        If the registry restarts without the record, this client registers it again.
        """
        self._check_open()
        checked = check_instance(instance)
        await self._register(checked, lease_s)
        # The stream of this copy shows when the registry has restarted.
        self._copy_of(REGISTRY_SERVICE)

    async def _register(self, instance: Instance, lease_s: float) -> None:
        request = {"instance": instance_to_dict(instance), "lease_s": float(lease_s)}
        answer = await self._call("Registry.Register", request)
        incarnation = answer.get("incarnation", "") if isinstance(answer, dict) else ""
        self._owned[instance.id] = _OwnedRecord(instance, lease_s, str(incarnation))

    async def deregister(self, instance: Instance) -> None:
        """Remove a record. Unknown records are ignored. Raises Closed, Unreachable."""
        self._check_open()
        self._owned.pop(instance.id, None)
        await self._call("Registry.Deregister", {"instance": instance_to_dict(instance)})

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the records of a service, or of all services. Raises Closed, Unreachable."""
        self._check_open()
        records: dict[str, Instance] = {}

        async def read() -> None:
            async with self._stream("Registry.Instances", service or "", self._options.timeout_s) as stream:
                async for item in stream:
                    for instance in instances_of(item):
                        records[instance.id] = instance
                    check_record_count(records)

        await self._with_unreachable(read())
        return list(records.values())

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow the records of a service, or of all services. Raises Closed.

        Raises:
            Unreachable: The registry is not available, and there is no copy of these records yet.
        """
        self._check_open()
        copy = self._copy_of(service or "")
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await copy.synced.wait()
        except TimeoutError:
            raise Unreachable(
                f"the registry at {self._options.address} does not answer: "
                f"{copy.last_error or f'timeout after {self._options.timeout_s:g} s'}",
                hint="micro registry",
            ) from None
        self._check_open()
        return self._watches[service or ""].open(service, copy.records.values())

    # ----------------------------------------------------------------- copies

    def _copy_of(self, service: str) -> RecordCopy:
        copy = self._copies.get(service)
        if copy is None:
            if len(self._copies) >= MAX_COPIES:
                raise Unreachable(
                    f"cannot watch {service}: {MAX_COPIES} services are watched separately",
                    hint="watch all services at once",
                )
            watches = self._watches[service] = WatchSet(self._context.counters)
            copy = self._copies[service] = RecordCopy(
                self._context,
                open_watch=partial(self._stream, "Registry.Watch", service, None),
                on_change=lambda before, after: watches.publish(changes(before, after)),
                on_new_incarnation=self._register_again if service == REGISTRY_SERVICE else None,
                retry_s=self._options.retry_s,
                grace_s=self._options.grace_s,
            )
            copy.start()
        return copy

    async def _register_again(self, incarnation: str) -> None:
        """Register the records of this process with a registry that has restarted."""
        for instance, lease_s, registered_with in [*self._owned.values()]:
            if registered_with == incarnation:
                continue
            try:
                await self._register(instance, lease_s)
                self._context.counters.add("registry_records_reasserted")
            except MicroError as error:
                # The next renewal by the owner and the next connection try again.
                self._context.counters.add("registry_records_not_reasserted")
                self._context.logger.warning(
                    "cannot register a record again", extra={"id": instance.id, "reason": str(error)}
                )
        self._context.logger.info("watching the registry", extra={"incarnation": incarnation})

    # --------------------------------------------------------------- requests

    def _stream(self, endpoint: str, service: str, timeout_s: float | None) -> Any:
        return self._client.stream(
            REGISTRY_SERVICE,
            endpoint,
            {**self._scope, "service": service},
            address=self._options.address,
            mode=CallMode.SERVER_STREAM,
            timeout_s=timeout_s,
        )

    async def _call(self, endpoint: str, request: dict[str, Any]) -> Any:
        return await self._with_unreachable(
            self._client.call(
                REGISTRY_SERVICE,
                endpoint,
                {**self._scope, **request} if endpoint.startswith("Registry.") else request,
                address=self._options.address,
                timeout_s=self._options.timeout_s,
                idempotent=True,
            )
        )

    async def _with_unreachable(self, work: Awaitable[T]) -> T:
        """Await `work`. Errors which mean that no registry has answered become the Unreachable of the contract."""
        try:
            return await work
        except MicroError as error:
            if error.code in NOT_SERVED and not isinstance(error, Unreachable):
                raise Unreachable(
                    f"the registry at {self._options.address} does not serve requests: {error.detail}",
                    hint="micro registry",
                ) from error
            raise

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the registry client is not started, or closed")


def create(options: ServiceRegistryOptions, context: DriverContext) -> ServiceRegistry:
    """Return the registry, not started. Raises OptionError, ConfigError."""
    return ServiceRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Return the description of the driver."""
    return Driver(
        name="service",
        summary="The records of a `micro registry` process.",
        capabilities=frozenset({"watch"}),
        options=ServiceRegistryOptions,
        create=create,
    )
