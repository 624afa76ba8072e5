"""Calls of a node to one other node, along a known route."""

from __future__ import annotations

import asyncio

from micro_core.contract.errors import Overloaded
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.table import Route
from micro_core.proxy.forward import REQUIRED_ROUTER_KEY
from micro_core.proxy.proxy import Proxy
from micro_core.rpc.client_call import CallFailed, UnaryCall
from micro_core.rpc.deadlines import Deadlines
from micro_core.wire import codec, limits
from micro_core.wire.header import CallHeader, encode_header


class NodeCaller:
    """Calls endpoints of nodes in the name of the node `node_id`."""

    def __init__(self, *, node_id: str, proxy: Proxy) -> None:
        self._node_id = node_id
        self._proxy = proxy
        self._deadlines = Deadlines()

    async def call(self, route: Route, endpoint: str, body: bytes, *, timeout_s: float) -> bytes:
        """Call an idempotent endpoint of the node `route.router`, and return the encoded answer.

        Args:
            route: A route to the node.
            endpoint: The endpoint, e.g. "Broker.Deliver".
            body: The request, encoded as msgpack.
            timeout_s: Timeout in seconds.

        Cancelling the task cancels the call.

        Raises:
            Overloaded: The send buffer to the next hop is full.
            Unreachable: There is no link to the next hop.
            MicroError: The node answered with an error, the connection was lost, or the timeout has passed.
        """
        connection = self._proxy.peer_connection(route.gateway)
        if connection.is_send_buffer_full:
            raise Overloaded(f"the send buffer to the next hop of node {route.router:.8} is full")
        header = CallHeader(
            NETWORK_SERVICE,
            endpoint,
            timeout_ms=int(timeout_s * 1000),
            content_type=codec.MSGPACK,
            metadata={REQUIRED_ROUTER_KEY: route.router},
            hops_left=limits.MAX_HOPS - 1,
            via=(self._node_id,),
            idempotent=True,
        )
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            answer = await UnaryCall(connection, self._proxy.at).run(
                encode_header(header), body, deadline, self._deadlines
            )
        except CallFailed as failed:
            raise failed.error from failed
        return answer.body
