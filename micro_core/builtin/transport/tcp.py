"""The transport role over TCP: the default between processes of one site."""

from __future__ import annotations

import asyncio
import errno
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.builtin.transport.stream_socket import (
    BACKLOG,
    HIGH_WATER_BYTES,
    LOW_WATER_BYTES,
    StreamListener,
    StreamSocket,
    StreamSockets,
    WaterMarks,
    connect,
    reason,
)
from micro_core.contract import (
    BadRequest,
    Conflict,
    Driver,
    DriverContext,
    Socket,
    Transport,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.contract.names import join_host_port, split_host_port
from micro_core.contract.transport import Listener

SCHEME = "tcp"

_LISTEN_HINTS = {
    errno.EADDRINUSE: "choose another port, or 0 for any free one",
    errno.EACCES: "ports below 1024 need privileges: choose a higher one",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """Options of the TCP transport."""

    host: str = option("127.0.0.1", "Host to listen on where an address names none.")
    advertise: str = option(
        "", "host or host:port that others dial, when it is not the one listened on (containers, NAT)."
    )
    max_connections: int = option(10_000, "Accepted connections at once; more are refused and counted.")
    high_water_bytes: int = option(HIGH_WATER_BYTES, "Bytes waiting on one connection above which its writer pauses.")
    low_water_bytes: int = option(LOW_WATER_BYTES, "Bytes waiting below which the writer goes on.")


class TcpTransport:
    """Implements `micro_core.contract.transport.Transport`. asyncio itself sets TCP_NODELAY on every socket."""

    scheme = SCHEME

    def __init__(self, options: TcpOptions, context: DriverContext) -> None:
        self._options = options
        self._marks = WaterMarks(options.high_water_bytes, options.low_water_bytes)
        self._sockets = StreamSockets(options.max_connections, context.counters, "tcp_connections_refused")

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """As `Transport.dial`; raises Closed after `close`."""
        self._sockets.check_open()
        try:
            host, port = split_host_port(address.removeprefix("tcp://"))
        except BadRequest as error:
            raise Unreachable(f"cannot connect to {address:.300}: {error.detail}", hint=error.hint) from error
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(lambda: StreamSocket(self._marks), host or "127.0.0.1", port)
        socket = await connect(connecting, address, timeout_s)
        if socket.endpoint("sockname") == socket.endpoint("peername"):
            # Where nobody listens on a port of the ephemeral range, the system may draw that very port for this
            # end, and TCP's simultaneous open (RFC 9293 3.5) then connects the socket to itself.
            socket.abort()
            raise Unreachable(f"nobody listens at {address}", hint="is it running?")
        socket.remote, socket.local = address, _name(socket.endpoint("sockname"))
        self._sockets.add_dialled(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """As `Transport.listen`; raises Closed after `close`."""
        self._sockets.check_open()
        host, port = split_host_port(address.removeprefix("tcp://") or ":0", 0)
        host = host or self._options.host

        def connected(socket: StreamSocket) -> None:
            socket.remote, socket.local = _name(socket.endpoint("peername")), _name(socket.endpoint("sockname"))
            if self._sockets.admit(socket):
                accept(socket)

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: StreamSocket(self._marks, connected), host, port, backlog=BACKLOG)
        except OSError as error:
            raise Conflict(
                f"cannot listen on {join_host_port(host, port)}: {reason(error)}",
                hint=_LISTEN_HINTS.get(error.errno or 0, "check the host's name"),
            ) from error
        except ValueError as error:
            raise BadRequest(f"{host!r:.300} is not a host: {error}", hint="check the host's name") from error
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        listener = StreamListener(
            f"tcp://{self._shown(bound_host, bound_port)}", server, closed=self._sockets.forget_listener
        )
        self._sockets.add_listener(listener)
        return listener

    def _shown(self, bound_host: str, bound_port: int) -> str:
        advertise = self._options.advertise.removeprefix("tcp://")
        if not advertise:
            return join_host_port(_reachable(bound_host), bound_port)
        host, port = split_host_port(advertise, bound_port)
        return join_host_port(host or _reachable(bound_host), port or bound_port)


def _name(endpoint: object) -> str:
    return f"tcp://{join_host_port(endpoint[0], endpoint[1])}" if isinstance(endpoint, tuple) else "tcp://"


def _reachable(host: str) -> str:
    """The address others can dial, where the wildcard is listened on: that of the interface of the default route."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return host
    family, probe = (sockets.AF_INET6, "2001:db8::1") if host == "::" else (sockets.AF_INET, "192.0.2.1")
    with sockets.socket(family, sockets.SOCK_DGRAM) as choice:
        try:
            # Connecting a UDP socket sends nothing; it makes the kernel choose the interface (RFC 5737, RFC 3849).
            choice.connect((probe, 9))
        except OSError:
            return "::1" if family == sockets.AF_INET6 else "127.0.0.1"
        return str(choice.getsockname()[0])


def create(options: TcpOptions, context: DriverContext) -> Transport:
    return TcpTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    return Driver(name="tcp", summary="Sockets over TCP.", options=TcpOptions, create=create)
