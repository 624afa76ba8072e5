"""The endpoints of `micro registry`, the service `go.micro.registry`, for the driver `registry:service`.

The records are stored by any registry driver. Each pair of network and site has a registry of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

from micro_core.contract.errors import Overloaded
from micro_core.contract.names import check_network_name, check_site
from micro_core.contract.records import instance_from_dict, instance_to_dict
from micro_core.contract.registry import Registry, RegistryEventKind
from micro_core.rpc.server import Server
from micro_core.standalone.registry.protocol import DeregisterRequest, RecordsRequest, RegisterRequest, batches

MAX_WATCHERS = 1_024
"""Open watches of all clients. A request for one more is refused with Overloaded."""

MAX_SITES = 64
"""Pairs of network and site in one process."""

OpenRegistry = Callable[[str, str], Registry]
"""`open_registry(network, site)` returns a registry that is not started."""


class RegistryEndpoints:
    """Serves the registries of several sites. Each one is created and started by the first request for it."""

    def __init__(self, open_registry: OpenRegistry) -> None:
        self._open_registry = open_registry
        self._registries: dict[tuple[str, str], Registry] = {}
        self._opening = asyncio.Lock()
        self._incarnation = secrets.token_hex(8)
        self._watcher_count = 0

    def add_to(self, server: Server) -> None:
        """Add all endpoints to `server`."""
        server.add("Registry.Register", self.register, idempotent=True)
        server.add("Registry.Deregister", self.deregister, idempotent=True)
        server.add("Registry.Instances", self.instances, idempotent=True)
        server.add("Registry.Watch", self.watch, idempotent=True)

    async def of(self, network: str, site: str) -> Registry:
        """Return the started registry of one site. Raises BadRequest for an invalid name, and what its start raises.

        Raises:
            Overloaded: MAX_SITES sites are in use.
        """
        key = (check_network_name(network), check_site(site))
        async with self._opening:
            registry = self._registries.get(key)
            if registry is None:
                if len(self._registries) >= MAX_SITES:
                    raise Overloaded(
                        f"cannot open the registry of site {site}: this process has {MAX_SITES} sites already",
                        hint="start another `micro registry`, e.g. one per network",
                    )
                registry = self._open_registry(*key)
                try:
                    await registry.start()
                except BaseException:
                    await registry.close()
                    raise
                self._registries[key] = registry
            return registry

    async def close(self) -> None:
        """Close every registry."""
        registries, self._registries = self._registries, {}
        await asyncio.gather(*(registry.close() for registry in registries.values()), return_exceptions=True)

    async def register(self, request: RegisterRequest) -> dict[str, Any]:
        """Create, replace or renew a record. The answer contains the incarnation of this registry."""
        registry = await self.of(request.network, request.site)
        await registry.register(instance_from_dict(request.instance), lease_s=request.lease_s)
        return {"incarnation": self._incarnation}

    async def deregister(self, request: DeregisterRequest) -> dict[str, Any]:
        """Remove a record. Unknown records are ignored."""
        registry = await self.of(request.network, request.site)
        instance = instance_from_dict(request.instance)
        if not request.if_equal or instance in await registry.instances(instance.service):
            await registry.deregister(instance)
        return {"incarnation": self._incarnation}

    async def instances(self, request: RecordsRequest) -> AsyncIterator[dict[str, Any]]:
        """Send the current records in batches: {records}."""
        registry = await self.of(request.network, request.site)
        for batch in batches(await registry.instances(request.service or None)):
            yield {"records": batch}

    async def watch(self, request: RecordsRequest) -> AsyncIterator[dict[str, Any]]:
        """Send the current records, then each change.

        The items are {incarnation}, {records} in batches, {synced}, then {kind, record} for each change. The stream ends
        if the watcher falls behind; it then watches again to read all records.

        Raises:
            Overloaded: MAX_WATCHERS watches are open.
        """
        if self._watcher_count >= MAX_WATCHERS:
            raise Overloaded(f"cannot watch the registry: {MAX_WATCHERS} watches are open")
        self._watcher_count += 1
        try:
            registry = await self.of(request.network, request.site)
            # The watch is opened before the records are read, so that no change between the two is lost.
            watch = await registry.watch(request.service or None)
            try:
                yield {"incarnation": self._incarnation}
                initial = {i.id: i for i in await registry.instances(request.service or None)}
                for batch in batches(initial.values()):
                    yield {"records": batch}
                yield {"synced": True}
                async for event in watch:
                    if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                        return
                    # A watch begins with the current records, which have been sent already.
                    sent = initial.pop(event.instance.id, None)
                    if event.kind is RegistryEventKind.CREATED and sent == event.instance:
                        continue
                    yield {"kind": event.kind.value, "record": instance_to_dict(event.instance)}
            finally:
                await watch.close()
        finally:
            self._watcher_count -= 1
