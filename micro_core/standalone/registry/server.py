"""`micro registry`: a registry as a service, `go.micro.registry`, for the driver `registry:service`.

The records are those of any registry driver; of its own it keeps none. Each network and site has its own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from micro_core.contract.errors import Overloaded
from micro_core.contract.names import check_network_name, check_site
from micro_core.contract.records import instance_from_dict, instance_to_dict
from micro_core.contract.registry import Instance, Registry, RegistryEventKind
from micro_core.rpc.server import Server

SERVICE = "go.micro.registry"
DEFAULT_ADDRESS = "tcp://127.0.0.1:8000"

MAX_WATCHERS = 1_024
"""Watches at once, of all clients; one more is refused with Overloaded."""

MAX_SITES = 64
"""Sites that one process keeps apart."""

BATCH_RECORDS = 100
BATCH_BYTES = 256 * 1024
"""Bounds of one item of a stream of records; a single record may pass the second one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    network: str
    site: str
    instance: dict[str, Any]
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeregisterRequest:
    """`if_equal` leaves a record that somebody else has replaced meanwhile."""

    network: str
    site: str
    instance: dict[str, Any]
    if_equal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsRequest:
    """`service` empty: the records of every service."""

    network: str
    site: str
    service: str = ""


OpenRegistry = Callable[[str, str], Registry]
"""`open(network, site)`: a registry that is not started."""


class RegistryEndpoints:
    """Serves the registries of several sites, each made and started when it is first asked for."""

    def __init__(self, open_registry: OpenRegistry) -> None:
        self._open_registry = open_registry
        self._registries: dict[tuple[str, str], Registry] = {}
        self._opening = asyncio.Lock()
        self._incarnation = secrets.token_hex(8)
        self._watchers = 0

    def add_to(self, server: Server) -> None:
        """Serve all of it."""
        server.add("Registry.Register", self.register, idempotent=True)
        server.add("Registry.Deregister", self.deregister, idempotent=True)
        server.add("Registry.Instances", self.instances, idempotent=True)
        server.add("Registry.Watch", self.watch, idempotent=True)

    async def of(self, network: str, site: str) -> Registry:
        """The registry of one site, started. Raises BadRequest, Overloaded, and what its start raises."""
        key = (check_network_name(network), check_site(site))
        async with self._opening:
            registry = self._registries.get(key)
            if registry is None:
                if len(self._registries) >= MAX_SITES:
                    raise Overloaded(f"{MAX_SITES} sites are kept here already", hint="a registry for each network")
                registry = self._open_registry(*key)
                await registry.start()
                self._registries[key] = registry
            return registry

    async def close(self) -> None:
        """Close every registry."""
        registries, self._registries = self._registries, {}
        await asyncio.gather(*(registry.close() for registry in registries.values()), return_exceptions=True)

    async def register(self, request: RegisterRequest) -> dict[str, Any]:
        """Create, replace or renew a record for `lease_s` seconds; answers with the incarnation of this registry."""
        registry = await self.of(request.network, request.site)
        await registry.register(instance_from_dict(request.instance), lease_s=request.lease_s)
        return {"incarnation": self._incarnation}

    async def deregister(self, request: DeregisterRequest) -> dict[str, Any]:
        """Remove a record; unknown ones are ignored."""
        registry = await self.of(request.network, request.site)
        instance = instance_from_dict(request.instance)
        if not request.if_equal or instance in await registry.instances(instance.service):
            await registry.deregister(instance)
        return {"incarnation": self._incarnation}

    async def instances(self, request: RecordsRequest) -> AsyncIterator[dict[str, Any]]:
        """The live records, in batches: {records}."""
        registry = await self.of(request.network, request.site)
        for batch in _batches(await registry.instances(request.service or None)):
            yield {"records": batch}

    async def watch(self, request: RecordsRequest) -> AsyncIterator[dict[str, Any]]:
        """Follow changes: {incarnation}, {records} in batches, {synced}, then {kind, record} for each change.

        Ends when the watcher has fallen behind: what it has missed is told when it watches again.
        """
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watches of the registry are open")
        registry = await self.of(request.network, request.site)
        self._watchers += 1
        try:
            # Open before the records are read: what changes between the two comes twice, and never not at all.
            watch = await registry.watch(request.service or None)
            try:
                yield {"incarnation": self._incarnation}
                told = {i.id: i for i in await registry.instances(request.service or None)}
                for batch in _batches(told.values()):
                    yield {"records": batch}
                yield {"synced": True}
                async for event in watch:
                    if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                        return
                    # A watch begins with what stands, and that has been told.
                    known = told.pop(event.instance.id, None)
                    if event.kind is RegistryEventKind.CREATED and known == event.instance:
                        continue
                    yield {"kind": event.kind.value, "record": instance_to_dict(event.instance)}
            finally:
                await watch.close()
        finally:
            self._watchers -= 1


def _batches(instances: Iterable[Instance]) -> list[list[dict[str, object]]]:
    batches: list[list[dict[str, object]]] = [[]]
    size = 0
    for instance in instances:
        record = instance_to_dict(instance)
        length = len(json.dumps(record, ensure_ascii=False))
        if batches[-1] and (len(batches[-1]) >= BATCH_RECORDS or size + length > BATCH_BYTES):
            batches.append([])
            size = 0
        batches[-1].append(record)
        size += length
    return batches
