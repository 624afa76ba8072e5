"""Creates the client of a tunnel process from the settings of its node."""

from __future__ import annotations

from micro_core.contract.names import IPC_KEY, TUNNEL_SERVICE
from micro_core.drivers.runtime import Runtime
from micro_core.lifecycle.environment import Environment
from micro_core.node.assembly import network_token, node_name
from micro_core.standalone.discovery import Report, availability_reporter, find_component
from micro_core.standalone.tunnel.client import RemoteTunnel


def remote_tunnel(runtime: Runtime, report: Report) -> RemoteTunnel:
    """Create a client of the tunnel process of the node that the settings name. It is not connected yet."""
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
        environment=Environment.from_context(context),
    )
    tunnel.set_availability_handler(availability_reporter("tunnel", report))
    return tunnel
