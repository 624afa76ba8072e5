"""The transport role over TCP: the default between processes of one site."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.builtin.stream_socket import StreamListener, StreamSocket, StreamSockets
from micro_core.spec import Conflict, Driver, DriverContext, Socket, Transport, Unreachable, hookimpl, option
from micro_core.spec.names import join_host_port, split_host_port
from micro_core.spec.transport import Listener

SCHEME = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """Options of the TCP transport."""

    host: str = option("127.0.0.1", "Host to listen on where an address names none.")
    advertise: str = option("", "host:port that others dial, when it is not the one listened on (containers, NAT).")
    max_connections: int = option(10_000, "Accepted connections at once; more are refused and counted.")


class TcpTransport:
    """Implements `micro_core.spec.transport.Transport`."""

    scheme = SCHEME

    def __init__(self, options: TcpOptions, context: DriverContext) -> None:
        self._options = options
        self._sockets = StreamSockets(options.max_connections, context.counters, "tcp_connections_refused")

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        host, port = split_host_port(address.removeprefix("tcp://"))
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, socket = await loop.create_connection(StreamSocket, host or "127.0.0.1", port)
        except TimeoutError as error:
            raise Unreachable(f"{address} did not answer within {timeout_s:.3g} s", hint="is it running?") from error
        except OSError as error:
            raise Unreachable(
                f"cannot connect to {address}: {error.strerror or error}", hint="is it running?"
            ) from error
        socket.remote, socket.local = address, _name(socket.endpoint("sockname"))
        self._sockets.add(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        host, port = split_host_port(address.removeprefix("tcp://") or ":0", 0)
        host = host or self._options.host

        def connected(socket: StreamSocket) -> None:
            socket.remote, socket.local = _name(socket.endpoint("peername")), _name(socket.endpoint("sockname"))
            if self._sockets.admit(socket):
                accept(socket)

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: StreamSocket(connected), host, port)
        except OSError as error:
            raise Conflict(
                f"cannot listen on {join_host_port(host, port)}: {error.strerror or error}",
                hint="choose another port, or 0 for any free one",
            ) from error
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        shown = self._options.advertise or join_host_port(_reachable(bound_host), bound_port)
        listener = StreamListener(f"tcp://{shown}", server)
        self._sockets.add_listener(listener)
        return listener


def _name(endpoint: object) -> str:
    return f"tcp://{join_host_port(endpoint[0], endpoint[1])}" if isinstance(endpoint, tuple) else "tcp://"


def _reachable(host: str) -> str:
    """The address others can dial, where the wildcard is listened on: that of the interface of the default route."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return host
    family, probe = (sockets.AF_INET6, "2001:db8::1") if host == "::" else (sockets.AF_INET, "192.0.2.1")
    with sockets.socket(family, sockets.SOCK_DGRAM) as choice:
        try:
            # Connecting a UDP socket sends nothing; it makes the kernel choose the interface (RFC 5737 addresses).
            choice.connect((probe, 9))
        except OSError:
            return "::1" if family == sockets.AF_INET6 else "127.0.0.1"
        return str(choice.getsockname()[0])


def create(options: TcpOptions, context: DriverContext) -> Transport:
    return TcpTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="tcp", summary="Sockets over TCP.", options=TcpOptions, create=create)
