"""How the components of one node find and query each other through the registry of the site."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from micro_core.contract.errors import MicroError, Unreachable
from micro_core.contract.names import (
    NAME_KEY,
    NODE_KEY,
    SCOPE_KEY,
    SITE_KEY,
    SITE_SCOPE,
)
from micro_core.contract.registry import Instance, Registry
from micro_core.drivers.runtime import Runtime
from micro_core.node.assembly import node_name
from micro_core.rpc.client import Client
from micro_core.rpc.server import Server

FIND_TIMEOUT_S = 5.0
"""Timeout in seconds of a query for the instances of a component."""

RELAY_TIMEOUT_S = 3.0
"""Timeout in seconds of a request that is forwarded to another component."""

Report = Callable[[str], None]
"""Called with a sentence for the operator when another component becomes available or unavailable."""


async def find_component(registry: Registry, service: str, name: str) -> Instance:
    """Return the instance of `service` that belongs to the node `name`. Raises Unreachable if there is none."""
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            found = await registry.instances(service)
    except TimeoutError:
        raise Unreachable(f"cannot find {service}: the registry did not answer within {FIND_TIMEOUT_S:g} s") from None
    own = [instance for instance in found if instance.metadata.get(NAME_KEY) == name]
    if not own:
        others = ", ".join(sorted({instance.metadata.get(NAME_KEY, "?") for instance in found})[:5])
        raise Unreachable(
            f"no {service} of node {name} is registered on this site"
            + (f" (it is registered for: {others})" if others else ""),
            hint=f"start micro {_command(service)} with the same node.name and node.site",
        )
    return min(own, key=lambda instance: instance.id)


def component_metadata(node_id: str, name: str, site: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the metadata of a component. Its scope is the site, so that it is not advertised to other sites."""
    return {NODE_KEY: node_id, NAME_KEY: name, SITE_KEY: site, SCOPE_KEY: SITE_SCOPE, **(more or {})}


def availability_reporter(component: str, report: Report) -> Callable[[MicroError | None], None]:
    """Return an availability handler that reports a sentence about `component`, e.g. `tunnel`."""

    def changed(error: MicroError | None) -> None:
        report(f"the {component} is available" if error is None else f"waiting for the {component}: {error}")

    return changed


class Relay:
    """Forwards requests for endpoints that another component of the node provides. It finds it for each request."""

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
        """Call an endpoint of another component and return the result.

        Raises:
            Unreachable: the component is not registered or does not answer.
            MicroError: the error that the component returns.
        """
        component = await find_component(self._registry, service, self._name)
        try:
            return await self._client.call(
                service, endpoint, request, address=component.address, timeout_s=RELAY_TIMEOUT_S, retries=0
            )
        except Unreachable as error:
            # After a crash, the record remains until its lease expires.
            command = _command(service)
            raise Unreachable(
                f"the {command} of node {self._name} does not answer: {error.detail}",
                at=f"node {self._name}",
                hint=f"is `micro {command}` running?",
            ) from error

    def add_to(self, server: Server, service: str, endpoint: str, *, idempotent: bool) -> None:
        """Serve `endpoint` by forwarding its requests to `service`."""

        async def forward(request: Any) -> Any:
            return await self.ask(service, endpoint, request)

        server.add(endpoint, forward, idempotent=idempotent, description=f"Answered by {service}.")

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        await self._client.close()


def _command(service: str) -> str:
    """Return the subcommand of `micro` that provides a component, e.g. `tunnel` for `go.micro.tunnel`."""
    return service.rpartition(".")[2]
