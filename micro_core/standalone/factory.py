"""Creates a standalone component by its name."""

from __future__ import annotations

from micro_core.config import Settings
from micro_core.contract.errors import BadRequest
from micro_core.standalone.broker.process import BrokerComponent
from micro_core.standalone.component import Component
from micro_core.standalone.discovery import Report
from micro_core.standalone.proxy.process import ProxyComponent
from micro_core.standalone.registry.process import RegistryComponent
from micro_core.standalone.router.process import RouterComponent
from micro_core.standalone.tunnel.process import TunnelComponent


def make_component(
    name: str, settings: Settings, *, address: str = "", ipc_address: str = "", report: Report
) -> Component:
    """Create the component `name`: registry, broker, tunnel, router or proxy. Raises BadRequest for another name.

    `ipc_address` is the address of the IPC server of a tunnel; empty for an unused Unix socket.
    """
    match name:
        case "registry":
            return RegistryComponent(settings, address=address, report=report)
        case "broker":
            return BrokerComponent(settings, address=address, report=report)
        case "tunnel":
            return TunnelComponent(settings, address=address, ipc_address=ipc_address, report=report)
        case "router":
            return RouterComponent(settings, address=address, report=report)
        case "proxy":
            return ProxyComponent(settings, address=address, report=report)
    raise BadRequest(f"unknown component {name!r:.40} (known: registry, broker, tunnel, router, proxy)")
