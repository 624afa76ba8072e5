"""The driver `transport:tcp`: the default transport between processes of one site."""

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
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """Options of `transport:tcp`."""

    host: str = option("127.0.0.1", "Host to listen on if an address contains no host.")
    advertise: str = option(
        "", "host or host:port that other processes dial, if it differs from the listen address (containers, NAT)."
    )
    max_connections: int = option(
        10_000, "Maximum number of accepted connections; further ones are refused and counted."
    )
    high_water_bytes: int = option(HIGH_WATER_BYTES, "Unsent bytes of one connection above which its writer is paused.")
    low_water_bytes: int = option(LOW_WATER_BYTES, "Unsent bytes below which the writer is resumed.")


class TcpTransport:
    """Implements `micro_core.contract.transport.Transport`. asyncio itself sets TCP_NODELAY on every socket."""

    scheme = SCHEME

    def __init__(self, options: TcpOptions, context: DriverContext) -> None:
        self._options = options
        self._marks = WaterMarks(options.high_water_bytes, options.low_water_bytes)
        self._sockets = StreamSockets(options.max_connections, context.counters, "tcp_connections_refused")

    async def start(self) -> None:
        """Do nothing: there is nothing to prepare."""

    async def close(self) -> None:
        """Close all listeners and sockets. Safe to call twice."""
        await self._sockets.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to `host:port`, with or without `tcp://`. Raises Closed.

        Raises:
            Unreachable: The address is invalid, or has no listener, or does not answer within `timeout_s` seconds.
        """
        self._sockets.check_open()
        try:
            host, port = split_host_port(address.removeprefix("tcp://"))
        except BadRequest as error:
            raise Unreachable(f"cannot connect to {address:.300}: {error.detail}", hint=error.hint) from error
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(lambda: StreamSocket(self._marks), host or "127.0.0.1", port)
        socket = await connect(connecting, address, timeout_s)
        if socket.endpoint("sockname") == socket.endpoint("peername"):
            # If an ephemeral port has no listener, the system may choose the same port for this end. The simultaneous open
            # of TCP (RFC 9293, section 3.5) then connects the socket to itself.
            socket.abort()
            raise Unreachable(f"no listener at {address}", hint="is it running?")
        socket.remote, socket.local = address, _name(socket.endpoint("sockname"))
        self._sockets.add_dialled(socket)
        return socket

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at `host:port`, with or without `tcp://`; an empty address means an unused port. Raises Closed.

        Raises:
            Conflict: The system refuses to listen at the address.
            BadRequest: The host or the port is invalid.
        """
        self._sockets.check_open()
        host, port = split_host_port(address.removeprefix("tcp://") or ":0", 0)
        host = host or self._options.host

        def connected(socket: StreamSocket) -> None:
            socket.remote, socket.local = _name(socket.endpoint("peername")), _name(socket.endpoint("sockname"))
            if self._sockets.admit(socket):
                accept(socket)

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: StreamSocket(self._marks, connected), host, port, backlog=BACKLOG, start_serving=False
            )
            bound_host, bound_port = server.sockets[0].getsockname()[:2]
            listener = StreamListener(
                f"tcp://{self._advertised(bound_host, bound_port)}", server, on_close=self._sockets.remove_listener
            )
            self._sockets.add_listener(listener)
            await listener.start()
        except OSError as error:
            raise Conflict(
                f"cannot listen on {join_host_port(host, port)}: {reason(error)}",
                hint=_LISTEN_HINTS.get(error.errno or 0, "check the host name"),
            ) from error
        except ValueError as error:
            raise BadRequest(f"invalid host {host!r:.300}: {error}", hint="check the host name") from error
        return listener

    def _advertised(self, bound_host: str, bound_port: int) -> str:
        advertise = self._options.advertise.removeprefix("tcp://")
        if not advertise:
            return join_host_port(_reachable(bound_host), bound_port)
        host, port = split_host_port(advertise, bound_port)
        return join_host_port(host or _reachable(bound_host), port or bound_port)


def _name(endpoint: object) -> str:
    return f"tcp://{join_host_port(endpoint[0], endpoint[1])}" if isinstance(endpoint, tuple) else "tcp://"


def _reachable(host: str) -> str:
    """Return an address that other machines can dial: for a wildcard, that of the interface of the default route."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return host
    family, probe = (sockets.AF_INET6, "2001:db8::1") if host == "::" else (sockets.AF_INET, "192.0.2.1")
    with sockets.socket(family, sockets.SOCK_DGRAM) as choice:
        try:
            # Connecting a UDP socket sends no packet, but selects the interface. The addresses are from RFC 5737 and RFC 3849.
            choice.connect((probe, 9))
        except OSError:
            return "::1" if family == sockets.AF_INET6 else "127.0.0.1"
        return str(choice.getsockname()[0])


def create(options: TcpOptions, context: DriverContext) -> Transport:
    """Return the transport. Raises OptionError."""
    return TcpTransport(options, context)


@hookimpl
def micro_transport() -> Driver[Transport]:
    """Return the description of the driver."""
    return Driver(name="tcp", summary="Sockets over TCP.", options=TcpOptions, create=create)
