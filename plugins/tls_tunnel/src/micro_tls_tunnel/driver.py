"""The driver `tls`: dials and listens."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket as sockets
import ssl
from collections.abc import Callable
from typing import Any

from micro_core.contract import BadRequest, Closed, Conflict, Counters, DriverContext, Link, OptionError, Unreachable
from micro_core.contract.names import join_host_port, split_host_port
from micro_core.contract.transport import Listener
from micro_tls_tunnel.certificate import NAME, binding_of, dialling_context, listening_context
from micro_tls_tunnel.half_open import HalfOpen
from micro_tls_tunnel.link import SCHEME, TlsLink
from micro_tls_tunnel.options import TlsOptions
from micro_tls_tunnel.pipe import TlsPipe

BACKLOG = 1_024
"""Maximum number of connections that the system queues until they are accepted."""

ATTEMPT_DELAY_S = 0.25
"""Seconds before the next address of a host name is dialled in parallel (RFC 8305 section 5)."""

MIN_UNSENT_BYTES = 4_096

_LISTEN_HINTS = {
    errno.EADDRINUSE: "choose another port: --listen :8086",
    errno.EACCES: "ports below 1024 require privileges; choose a higher port",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
}


class TlsListener:
    """A `Listener` on one TCP socket. `close` keeps accepted links open and ends handshakes in progress."""

    def __init__(
        self,
        sock: sockets.socket,
        *,
        context: ssl.SSLContext,
        binding: bytes,
        options: TlsOptions,
        counters: Counters,
        accept: Callable[[Link], None],
        links: dict[TlsLink, None],
    ) -> None:
        host, port = sock.getsockname()[:2]
        advertised = _primary_address() if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
        self.address = f"{SCHEME}://{join_host_port(advertised, port)}"
        self._context = context
        self._binding = binding
        self._options = options
        self._counters = counters
        self._accept = accept
        self._links = links
        self._half_open: HalfOpen[TlsLink] = HalfOpen(options.max_half_open)
        self._server: asyncio.Server | None = None
        self._sock = sock

    async def open(self) -> TlsListener:
        """Start to accept connections, and return this listener."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make_link, sock=self._sock, backlog=BACKLOG)
        return self

    async def close(self) -> None:
        """Stop accepting connections and end handshakes in progress. Accepted links stay open."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for link in self._half_open.take_all():
                link.abandon(Closed("the listener was closed"))

    def _make_link(self) -> TlsLink:
        link = TlsLink(
            TlsPipe(self._context, dialed=False),
            unsent_bytes=self._options.unsent_bytes,
            counters=self._counters,
            on_connected=self._connected,
            on_ready=self._ready,
        )
        link.channel_binding = self._binding
        return link

    def _connected(self, link: TlsLink) -> bool:
        if self._server is None:
            # The system accepted the connection while the listener was being closed.
            link.abandon(Closed("the listener was closed"))
            return False
        self._links[link] = None
        link.ended.add_done_callback(functools.partial(self._ended, link))
        removed = self._half_open.add(link, link.source)
        if removed is not None:
            self._counters.add("tls_handshakes_displaced")
            removed.abandon(Unreachable("too many handshakes in progress"))
        timeout_s = self._options.handshake_timeout_s
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expired, link)
        link.ready.add_done_callback(lambda _: timer.cancel())
        link.ended.add_done_callback(lambda _: timer.cancel())
        return True

    def _ready(self, link: TlsLink) -> None:
        self._half_open.discard(link)
        self._accept(link)

    def _expired(self, link: TlsLink) -> None:
        self._counters.add("tls_handshakes_expired")
        link.abandon(Unreachable(f"the handshake took more than {self._options.handshake_timeout_s:.3g} s"))

    def _ended(self, link: TlsLink, _: object) -> None:
        self._half_open.discard(link)
        self._links.pop(link, None)


class TlsTunnel:
    """A `LinkDriver` for TLS over TCP. Creating it raises OptionError if an option is invalid."""

    scheme = SCHEME

    def __init__(self, options: TlsOptions, context: DriverContext) -> None:
        _check(options)
        self._options = options
        self._counters = context.counters
        self._links: dict[TlsLink, None] = {}
        self._listeners: list[TlsListener] = []
        self._dialling: ssl.SSLContext | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Allow `dial` and `listen`."""
        self._is_closed = False

    async def close(self) -> None:
        """Close all links and listeners."""
        self._is_closed = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.close()
        await asyncio.gather(*(link.close() for link in list(self._links)))

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Connect to `host:port`, with or without `tls://`, racing the addresses of a host name (RFC 8305).

        Raises Unreachable if the connection and the TLS handshake are not complete within `timeout_s`. A cancelled dial
        leaves no socket behind.
        """
        if self._is_closed:
            raise Unreachable(f"cannot reach {address}: the tunnel is closed")
        try:
            host, port = split_host_port(address.removeprefix(f"{SCHEME}://"), self._options.port)
        except BadRequest as error:
            raise Unreachable(f"cannot reach {address:.300}: {error.detail}", hint=error.hint) from error
        if self._dialling is None:
            self._dialling = dialling_context()
        link = TlsLink(
            TlsPipe(self._dialling, dialed=True, server_name=NAME),
            unsent_bytes=self._options.unsent_bytes,
            counters=self._counters,
        )
        try:
            async with asyncio.timeout(timeout_s):
                await self._connect(link, host or "localhost", port, address)
                waiting: list[asyncio.Future[Any]] = [link.ready, link.ended]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            link.abandon(Unreachable("the dial failed"))
            what = (
                "accepted the connection, but did not complete the TLS handshake" if link.source else "did not answer"
            )
            raise Unreachable(
                f"{address} {what} within {timeout_s:.3g} s",
                hint=f"check that TCP port {port} is open and that a node listens on it",
            ) from error
        except BaseException:
            link.abandon(Unreachable("the dial failed"))
            raise
        certificate = link.pipe.peer_certificate() if link.ready.done() else None
        if link.ended.done() or certificate is None:
            link.abandon(Unreachable("the dial failed"))
            raise Unreachable(
                f"{address}: {link.ended.result().detail}", hint="check that a node with the plugin tls listens there"
            )
        if self._is_closed:
            link.abandon(Closed("the tunnel was closed"))
            raise Unreachable(f"cannot reach {address}: the tunnel is closed")
        link.channel_binding = binding_of(certificate)
        self._links[link] = None
        link.ended.add_done_callback(lambda _: self._links.pop(link, None))
        return link

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen at `host:port`; an empty host means all interfaces, port 0 any free port.

        Raises Conflict if the system refuses the address, OptionError if the certificate files cannot be used, BadRequest
        if the address has no valid form.
        """
        options = self._options
        host, port = split_host_port(address.removeprefix(f"{SCHEME}://"), options.port)
        context, binding = listening_context(options.certificate_file, options.key_file)
        try:
            sock = await _bind(host or options.host, port)
        except OSError as error:
            raise Conflict(
                f"cannot listen on TCP {join_host_port(host or options.host or '*', port)}: {_reason(error)}",
                hint=_LISTEN_HINTS.get(error.errno or 0, "check the host name"),
            ) from error
        if options.max_segment_bytes and hasattr(sockets, "TCP_MAXSEG"):
            # Announced to the dialling end, and applied to this one (RFC 9293 section 3.7.1). If the MTU of the path shrinks and
            # the routers report nothing, Linux would send segments that are too large until the link is lost.
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_MAXSEG, options.max_segment_bytes)
        listener = TlsListener(
            sock,
            context=context,
            binding=binding,
            options=options,
            counters=self._counters,
            accept=accept,
            links=self._links,
        )
        await listener.open()
        self._listeners.append(listener)
        return listener

    async def _connect(self, link: TlsLink, host: str, port: int, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: link, host, port, happy_eyeballs_delay=ATTEMPT_DELAY_S)
        except sockets.gaierror as error:
            raise Unreachable(f"cannot resolve {host!r}: {_reason(error)}", hint="check the name") from error
        except OSError as error:
            hint = f"check that a node listens there and that TCP port {port} is open"
            raise Unreachable(f"cannot reach {address}: {_reason(error)}", hint=hint) from error
        except ValueError as error:
            # The name has an empty or too long label, or a zero byte. No resolver was queried.
            raise Unreachable(f"invalid host name {host!r:.300}: {error}", hint="check the name") from error
        if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):
            # If no process listens on an ephemeral port, the system may choose this same port for the local end. The
            # simultaneous open of TCP (RFC 9293 section 3.5) then connects the socket to itself.
            raise Unreachable(f"no process listens at {address}", hint="check that the node is running")


def _check(options: TlsOptions) -> None:
    if bool(options.certificate_file) != bool(options.key_file):
        raise OptionError("only one of tls.certificate_file and tls.key_file is set", hint="set both or neither")
    if options.max_half_open < 1:
        raise OptionError(f"tls.max_half_open is out of range: {options.max_half_open} (at least 1)")
    if options.handshake_timeout_s <= 0:
        raise OptionError(f"tls.handshake_timeout_s is out of range: {options.handshake_timeout_s} (above 0)")
    if options.unsent_bytes < MIN_UNSENT_BYTES:
        raise OptionError(f"tls.unsent_bytes is out of range: {options.unsent_bytes} (at least {MIN_UNSENT_BYTES})")
    if options.max_segment_bytes and not 536 <= options.max_segment_bytes <= 65_495:
        raise OptionError(f"tls.max_segment_bytes is out of range: {options.max_segment_bytes} (0, or 536 to 65495)")
    if not 0 <= options.port <= 65_535:
        raise OptionError(f"tls.port is out of range: {options.port} (0 to 65535)")


async def _bind(host: str, port: int) -> sockets.socket:
    """Return a listening socket; an empty host means all interfaces, if possible with IPv6 and IPv4 on the same socket.

    Raises OSError if the host cannot be resolved or the port is in use.
    """
    if not host:
        if sockets.has_dualstack_ipv6():
            return _listening(sockets.AF_INET6, ("::", port), dualstack=True)
        return _listening(sockets.AF_INET, ("0.0.0.0", port))  # noqa: S104 - requested by the user
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE)
    family, _, _, _, sockaddr = found[0]
    return _listening(family, sockaddr)


def _listening(family: int, address: Any, *, dualstack: bool = False) -> sockets.socket:
    sock = sockets.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dualstack)
    sock.setblocking(False)
    return sock


def _reason(error: OSError) -> str:
    """Return the error text of the system, without the address that Python adds to it."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, sockets.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _primary_address() -> str:
    """Return the address of the interface with the default route, or of loopback if there is no default route."""
    # Connecting a UDP socket sends no packets, but makes the kernel choose a local address. The remote addresses are
    # reserved for documentation (RFC 5737, RFC 3849).
    for family, remote in ((sockets.AF_INET, "192.0.2.1"), (sockets.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), sockets.socket(family, sockets.SOCK_DGRAM) as sock:
            sock.connect((remote, 9))
            return str(sock.getsockname()[0])
    return "127.0.0.1"
