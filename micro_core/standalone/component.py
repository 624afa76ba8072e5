"""What a component is to whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from micro_core.config import Settings
from micro_core.contract.errors import BadRequest
from micro_core.standalone.hosts import BrokerComponent, RegistryComponent
from micro_core.standalone.proxy.process import ProxyComponent
from micro_core.standalone.router.process import RouterComponent
from micro_core.standalone.tunnel.process import TunnelComponent


class Component(Protocol):
    """`start` raises what went wrong, and may wait for other components; `stop` is safe at any point after."""

    address: str
    """Where it takes calls, once started."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def introduction(self) -> list[str]:
        """What it says of itself, once started."""
        ...


def make_component(
    name: str, settings: Settings, *, address: str = "", door: str = "", say: Callable[[str], None]
) -> Component:
    """registry, broker, tunnel, router or proxy. Raises BadRequest, ConfigError."""
    match name:
        case "registry":
            return RegistryComponent(settings, address=address, say=say)
        case "broker":
            return BrokerComponent(settings, address=address, say=say)
        case "tunnel":
            return TunnelComponent(settings, address=address, door=door, say=say)
        case "router":
            return RouterComponent(settings, address=address, say=say)
        case "proxy":
            return ProxyComponent(settings, address=address, say=say)
    raise BadRequest(f"there is no component {name!r:.40}")
