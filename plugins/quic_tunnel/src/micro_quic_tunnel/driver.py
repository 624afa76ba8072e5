"""The driver `quic`: dials and listens."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import ssl
from collections.abc import Callable
from typing import Any

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration

from micro_core.contract import Conflict, DriverContext, Link, OptionError, Unreachable
from micro_core.contract.names import join_host_port, split_host_port
from micro_core.contract.transport import Listener
from micro_quic_tunnel.certificate import NAME, binding_of, make_certificate, read_certificate
from micro_quic_tunnel.congestion import PREFIX
from micro_quic_tunnel.datagrams import open_connected, open_listening, route_datagram_bytes
from micro_quic_tunnel.endpoint import AcceptOptions, QuicEndpoint
from micro_quic_tunnel.link import QuicLink
from micro_quic_tunnel.options import QuicOptions

ALPN = "micro/1"

MAX_DATAGRAM_BYTES = 16_383
"""aioquic encodes the lengths of frames and packets in 14 bits. Only loopback has a larger MTU."""

LARGE_DATAGRAM_TIMEOUT_S = 1.0
"""Seconds for a handshake with large datagrams before it is retried with the smallest ones."""

WINDOW_BYTES = 8 * 1024 * 1024
"""Initial flow-control windows of QUIC. aioquic doubles a window when half of it is used, so the flow control of core is
what limits an authenticated peer. An unauthenticated peer cannot occupy more memory than this."""


class QuicListener:
    """A `Listener` on one UDP socket."""

    def __init__(self, address: str, endpoint: QuicEndpoint) -> None:
        self.address = address
        self._endpoint = endpoint

    async def close(self) -> None:
        """Stop accepting links. Established links stay open."""
        self._endpoint.stop_accepting()


class QuicTunnel:
    """A `LinkDriver` for QUIC. Creating it raises OptionError if an option is invalid."""

    scheme = "quic"

    def __init__(self, options: QuicOptions, context: DriverContext) -> None:
        _check(options)
        self._options = options
        self._counters = context.counters
        self._log = context.logger
        self._endpoints: set[QuicEndpoint] = set()
        self._logged_fallbacks: set[str] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Allow `dial` and `listen`."""
        self._is_closed = False

    async def close(self) -> None:
        """Close all links and listeners."""
        self._is_closed = True
        await asyncio.gather(*(endpoint.close() for endpoint in list(self._endpoints)))

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Connect to `host:port`, with or without `quic://`. A host name is tried at each of its addresses.

        Raises Unreachable if no address answers within `timeout_s`. A cancelled dial leaves no socket behind.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        found = await self._resolve(address, timeout_s)
        last = Unreachable(f"{address} has no addresses")
        for index, (family, sockaddr) in enumerate(found):
            # Divide the remaining time evenly, so that an address that does not answer leaves time for the next one.
            share_s = max(0.0, deadline - loop.time()) / (len(found) - index)
            try:
                return await self._dial_one(family, sockaddr, share_s, address)
            except Unreachable as error:
                last = error
        raise last

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Listen at `host:port`; an empty host means all interfaces, port 0 any free port.

        Raises Conflict if the system refuses the address, OptionError if the certificate files cannot be used.
        """
        host, port = split_host_port(address.removeprefix("quic://"), self._options.port)
        options = self._options
        if options.certificate_file:
            certificate, key = read_certificate(options.certificate_file, options.key_file)
        else:
            certificate, key = make_certificate()
        try:
            sock = await _bind(host, port)
        except OSError as error:
            raise Conflict(
                f"cannot listen on UDP {join_host_port(host or '*', port)}: {error.strerror or error}",
                hint="choose another port: --listen :8086",
            ) from error

        def configuration(initial_bytes: int) -> QuicConfiguration:
            # The first datagram has the size that the dialling node wants to use, and the path carried it.
            size = min(initial_bytes, options.max_datagram_bytes or MAX_DATAGRAM_BYTES)
            server = self._configuration(max(SMALLEST_MAX_DATAGRAM_SIZE, size), is_client=False)
            server.certificate, server.private_key = certificate, key
            return server

        accept_options = AcceptOptions(
            make_configuration=configuration,
            accept=accept,
            binding=binding_of(certificate),
            max_half_open=options.max_half_open,
            retry_above=options.retry_above,
        )
        bound_host, bound_port = sock.getsockname()[:2]
        endpoint = self._endpoint(sock, accept_options=accept_options)
        advertised = _primary_address() if bound_host in ("0.0.0.0", "::") else bound_host  # noqa: S104 - compared
        return QuicListener(f"quic://{join_host_port(advertised, bound_port)}", endpoint)

    # ---------------------------------------------------------------- dialling

    async def _resolve(self, address: str, timeout_s: float) -> list[tuple[int, Any]]:
        host, port = split_host_port(address.removeprefix("quic://"), self._options.port)
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(host or "localhost", port, type=sockets.SOCK_DGRAM)
        except UnicodeError as error:
            # The name violates the rules of IDNA. No resolver was queried.
            raise Unreachable(f"invalid host name {host!r:.80}", hint="check the name") from error
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or f"no answer within {timeout_s:.3g} s"
            raise Unreachable(f"cannot resolve {host!r:.80}: {reason}", hint="check the name") from error
        return list(dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found))

    async def _dial_one(self, family: int, sockaddr: Any, timeout_s: float, address: str) -> QuicLink:
        """Dial one socket address, first with the largest datagrams that the route allows, then with the smallest."""
        chosen = self._options.max_datagram_bytes
        size = chosen or max(
            SMALLEST_MAX_DATAGRAM_SIZE, min(MAX_DATAGRAM_BYTES, route_datagram_bytes(family, sockaddr))
        )
        may_fall_back = not chosen and size > SMALLEST_MAX_DATAGRAM_SIZE
        attempt_s = min(LARGE_DATAGRAM_TIMEOUT_S, timeout_s / 2) if may_fall_back else timeout_s
        link = await self._attempt(family, sockaddr, size, attempt_s, address)
        if link is None and may_fall_back:
            link = await self._attempt(family, sockaddr, SMALLEST_MAX_DATAGRAM_SIZE, timeout_s - attempt_s, address)
            if link is not None:
                self._report_fallback(address, size)
        if link is None:
            port = sockaddr[1]
            raise Unreachable(
                f"no answer from {address} within {timeout_s:.3g} s", hint=f"check that UDP port {port} is open"
            )
        return link

    async def _attempt(self, family: int, sockaddr: Any, size: int, timeout_s: float, address: str) -> QuicLink | None:
        """Return a link, or None on a timeout. Raises Unreachable if the attempt fails with a reason."""
        if self._is_closed:
            raise Unreachable(f"cannot reach {address}: the tunnel is closed")
        try:
            sock = open_connected(family, sockaddr)
        except OSError as error:
            raise Unreachable(f"cannot reach {address}: {error.strerror or error}") from error
        endpoint = self._endpoint(sock, peer=sockaddr)
        link = endpoint.dial(self._configuration(size, is_client=True))
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.on_ready = lambda _: ready.set_result(None)
        try:
            waiting: list[asyncio.Future[Any]] = [ready, link.ended]
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            link.abandon(Unreachable("the dial was cancelled"))
            raise
        if link.ended.done():
            raise Unreachable(
                f"{address}: {link.ended.result().detail}", hint="check the address, and that the node is running"
            )
        certificate = link.quic.peer_certificate()
        if not ready.done() or certificate is None:
            link.abandon(Unreachable("the dial timed out"))
            return None
        link.channel_binding = binding_of(certificate)
        return link

    def _endpoint(
        self, sock: sockets.socket, *, accept_options: AcceptOptions | None = None, peer: Any = None
    ) -> QuicEndpoint:
        endpoint = QuicEndpoint(
            sock,
            counters=self._counters,
            logger=self._log,
            buffer_bytes=self._options.socket_buffer_bytes,
            ack_delay_s=self._options.ack_delay_s,
            accept_options=accept_options,
            peer=peer,
            on_empty=self._endpoints.discard,
        )
        self._endpoints.add(endpoint)
        return endpoint

    def _configuration(self, datagram_bytes: int, *, is_client: bool) -> QuicConfiguration:
        # Session tickets are not stored, so there is no 0-RTT.
        return QuicConfiguration(
            alpn_protocols=[ALPN],
            is_client=is_client,
            congestion_control_algorithm=f"{PREFIX}{self._options.congestion}",
            idle_timeout=self._options.idle_timeout_s,
            max_datagram_size=datagram_bytes,
            max_data=WINDOW_BYTES,
            max_stream_data=WINDOW_BYTES,
            server_name=NAME if is_client else None,
            # The handshake of core authenticates the nodes with the channel binding, see certificate.py.
            verify_mode=ssl.CERT_NONE if is_client else None,
        )

    def _report_fallback(self, address: str, size: int) -> None:
        self._counters.add("quic_datagram_fallbacks")
        if address not in self._logged_fallbacks:
            self._logged_fallbacks.add(address)
            self._log.warning("path does not carry large datagrams", extra={"address": address, "bytes": size})


def _check(options: QuicOptions) -> None:
    if options.congestion not in ("cubic", "reno"):
        raise OptionError(f"unknown quic.congestion {options.congestion!r}", hint="use cubic or reno")
    minimum, size = SMALLEST_MAX_DATAGRAM_SIZE, options.max_datagram_bytes
    if size and not minimum <= size <= MAX_DATAGRAM_BYTES:
        raise OptionError(f"quic.max_datagram_bytes is out of range: {size} (0, or {minimum} to {MAX_DATAGRAM_BYTES})")
    if not 0 < options.ack_delay_s <= 0.025:
        # Peers expect acknowledgements within 25 ms (RFC 9000 section 18.2).
        raise OptionError(f"quic.ack_delay_s is out of range: {options.ack_delay_s} (above 0, at most 0.025)")
    if options.idle_timeout_s <= 0:
        raise OptionError(f"quic.idle_timeout_s is out of range: {options.idle_timeout_s} (above 0)")
    if bool(options.certificate_file) != bool(options.key_file):
        raise OptionError("only one of quic.certificate_file and quic.key_file is set", hint="set both or neither")


async def _bind(host: str, port: int) -> sockets.socket:
    """Return a bound socket; an empty host means all interfaces, if possible with IPv6 and IPv4 on the same socket.

    Raises OSError if the host cannot be resolved or the port is in use.
    """
    if not host:
        if sockets.has_dualstack_ipv6():
            return open_listening(sockets.AF_INET6, ("::", port))
        return open_listening(sockets.AF_INET, ("0.0.0.0", port))  # noqa: S104 - requested by the user
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=sockets.SOCK_DGRAM, flags=sockets.AI_PASSIVE)
    family, _, _, _, sockaddr = found[0]
    return open_listening(family, sockaddr)


def _primary_address() -> str:
    """Return the address of the interface with the default route, or of loopback if there is no default route."""
    # Connecting a UDP socket sends no packets, but makes the kernel choose a local address. The remote addresses are
    # reserved for documentation (RFC 5737, RFC 3849).
    for family, remote in ((sockets.AF_INET, "192.0.2.1"), (sockets.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), sockets.socket(family, sockets.SOCK_DGRAM) as sock:
            sock.connect((remote, 9))
            return str(sock.getsockname()[0])
    return "127.0.0.1"
