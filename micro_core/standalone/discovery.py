"""What the parts of one node share: how they find each other in the site's registry, and what they stand on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from micro_core.contract.errors import MicroError, Unreachable
from micro_core.contract.names import SCOPE_KEY, SITE_SCOPE
from micro_core.contract.registry import Instance, Registry
from micro_core.drivers.runtime import Runtime
from micro_core.node.assembly import network_token, node_name
from micro_core.rpc.client import Client
from micro_core.rpc.server import Server
from micro_core.standalone.tunnel.client import RemoteTunnel

log = logging.getLogger("micro.components")

TUNNEL_SERVICE = "go.micro.tunnel"
ROUTER_SERVICE = "go.micro.router"
PROXY_SERVICE = "go.micro.proxy"
BROKER_SERVICE = "go.micro.broker"

IPC_KEY = "ipc"
"""Metadata of a tunnel: the address at which it takes the sessions of the node's other processes."""

NAME_KEY = "name"
"""Metadata of every part: the name of the node that it is a part of."""

END_TIMEOUT_S = 15.0
"""How long one part of a process may take to end; a service gives the calls that run ten seconds."""

FIND_TIMEOUT_S = 5.0
RELAY_TIMEOUT_S = 3.0

Report = Callable[[str], None]
"""Told a sentence whenever another part is found, or cannot be had."""


async def find_component(registry: Registry, service: str, name: str) -> Instance:
    """The part of the node `name` that is this service. Raises Unreachable."""
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            found = await registry.instances(service)
    except TimeoutError:
        raise Unreachable(f"the registry did not say within {FIND_TIMEOUT_S:g} s where {service} is") from None
    own = [instance for instance in found if instance.metadata.get(NAME_KEY) == name]
    if not own:
        command = service.rpartition(".")[2]
        others = ", ".join(sorted({instance.metadata.get(NAME_KEY, "?") for instance in found})[:5])
        beside = f"; there is one of {others}" if others else ""
        raise Unreachable(
            f"no {service} of node {name} is registered on this site{beside}",
            hint=f"micro {command}, with the same node.name and node.site",
        )
    return min(own, key=lambda instance: instance.id)


def component_metadata(node_id: str, name: str, site: str, **more: str) -> dict[str, str]:
    """What every part says of itself; none of them is offered to other sites."""
    return {"node": node_id, NAME_KEY: name, "site": site, SCOPE_KEY: SITE_SCOPE, **more}


def remote_tunnel(runtime: Runtime, say: Report) -> RemoteTunnel:
    """The tunnel of the node that the settings name, in whatever process it runs. Not connected yet."""
    name = node_name(runtime.settings)

    async def find() -> str:
        instance = await find_component(runtime.registry, TUNNEL_SERVICE, name)
        return instance.metadata.get(IPC_KEY, "")

    context = runtime.context
    tunnel = RemoteTunnel(
        find=find,
        transport=runtime.transport,
        network=context.network,
        token=network_token(runtime.settings),
        clock=context.clock,
        random=context.random,
        logger=context.logger,
        counters=context.counters,
    )
    tunnel.add_availability_handler(lambda error: say(_sentence("tunnel", error)))
    return tunnel


def _sentence(part: str, error: MicroError | None) -> str:
    return f"the {part} is here" if error is None else f"waiting for the {part}: {error}"


def availability_reporter(part: str, say: Report) -> Callable[[MicroError | None], None]:
    """What `say` is told of a part that comes and goes."""
    return lambda error: say(_sentence(part, error))


class Standing:
    """What has been brought up, to be taken down in the reverse order; one that fails to end keeps no other up."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], Awaitable[Any]]] = []

    def add(self, *ends: Callable[[], Awaitable[Any]]) -> None:
        self._ends += ends

    async def end(self) -> None:
        """End all of it. Safe to call twice."""
        while self._ends:
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._ends.pop()()
            except (MicroError, TimeoutError, OSError) as error:
                log.warning("a part did not stop cleanly", extra={"reason": str(error) or "timeout"})


class Relay:
    """Endpoints that another part answers: asked there, for each request anew."""

    def __init__(self, runtime: Runtime) -> None:
        self._registry = runtime.registry
        self._name = node_name(runtime.settings)
        self._client = Client(
            registry=runtime.registry,
            transport=runtime.transport,
            proxy="",
            name=f"node {self._name}",
            counters=runtime.context.counters,
        )

    async def ask(self, service: str, endpoint: str, request: Any = None) -> Any:
        """The other part's answer. Raises Unreachable where it is away, and what it raises."""
        part = await find_component(self._registry, service, self._name)
        try:
            return await self._client.call(
                service, endpoint, request, address=part.address, timeout_s=RELAY_TIMEOUT_S, retries=0
            )
        except Unreachable as error:
            # Its record stands until the lease runs out, or it is back.
            command = service.rpartition(".")[2]
            raise Unreachable(
                f"the {command} of node {self._name} does not answer: {error.detail}",
                at=f"node {self._name}",
                hint=f"is it running? micro {command}",
            ) from error

    def add_to(self, server: Server, service: str, endpoint: str, *, idempotent: bool) -> None:
        """Serve `endpoint` by asking `service` for it."""
        server.add(
            endpoint, self._handler(service, endpoint), idempotent=idempotent, description=f"Asked of {service}."
        )

    async def close(self) -> None:
        await self._client.close()

    def _handler(self, service: str, endpoint: str) -> Callable[[Any], Awaitable[Any]]:
        async def handle(request: Any) -> Any:
            return await self.ask(service, endpoint, request)

        return handle
