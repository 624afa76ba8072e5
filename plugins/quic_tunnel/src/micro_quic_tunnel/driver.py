"""The driver: dial and listen."""

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
from micro_quic_tunnel.datagrams import open_connected, open_listening, route_datagram_bytes
from micro_quic_tunnel.endpoint import Acceptance, QuicEndpoint
from micro_quic_tunnel.link import QuicLink
from micro_quic_tunnel.options import QuicOptions

ALPN = "micro/1"

LARGEST_DATAGRAM_BYTES = 16_383
"""aioquic writes lengths of frames and packets in 14 bits. Only loopback has an MTU beyond."""

SIZE_PROOF_S = 1.0
"""How long a handshake of large datagrams is tried before one of the smallest."""

WINDOW_BYTES = 8 * 1024 * 1024
"""QUIC's first windows. aioquic doubles them whenever half is used, so that what is ahead never falls below half of
this and grows with what has passed: core's credit is the bound, and strangers cannot claim more memory than this."""


class QuicListener:
    """Implements `Listener`."""

    def __init__(self, address: str, endpoint: QuicEndpoint) -> None:
        self.address = address
        self._endpoint = endpoint

    async def close(self) -> None:
        self._endpoint.stop_accepting()


class QuicTunnel:
    """Implements `LinkDriver`."""

    scheme = "quic"

    def __init__(self, options: QuicOptions, context: DriverContext) -> None:
        _check(options)
        self._options = options
        self._counters = context.counters
        self._log = context.logger
        self._endpoints: set[QuicEndpoint] = set()
        self._said_fallback: set[str] = set()
        self._is_closed = False

    async def start(self) -> None:
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(endpoint.close() for endpoint in list(self._endpoints)))

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        found = await self._resolve(address, timeout_s)
        last = Unreachable(f"no address for {address}")
        for place, (family, sockaddr) in enumerate(found):
            # Each address gets its share of the time, so that a dead one leaves some to the next.
            share_s = max(0.0, deadline - loop.time()) / (len(found) - place)
            try:
                return await self._dial_one(family, sockaddr, share_s, address)
            except Unreachable as error:
                last = error
        raise last

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
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
            # The dialler's first datagram was padded to its size, and has come through.
            size = min(initial_bytes, options.max_datagram_bytes or LARGEST_DATAGRAM_BYTES)
            made = self._configuration(max(SMALLEST_MAX_DATAGRAM_SIZE, size), is_client=False)
            made.certificate, made.private_key = certificate, key
            return made

        acceptance = Acceptance(
            make_configuration=configuration,
            accept=accept,
            binding=binding_of(certificate),
            max_half_open=options.max_half_open,
            retry_above=options.retry_above,
        )
        bound_host, bound_port = sock.getsockname()[:2]
        endpoint = self._endpoint(sock, acceptance=acceptance)
        shown = _primary_address() if bound_host in ("0.0.0.0", "::") else bound_host  # noqa: S104 - compared
        return QuicListener(f"quic://{join_host_port(shown, bound_port)}", endpoint)

    # ---------------------------------------------------------------- dialling

    async def _resolve(self, address: str, timeout_s: float) -> list[tuple[int, Any]]:
        host, port = split_host_port(address.removeprefix("quic://"), self._options.port)
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(host or "localhost", port, type=sockets.SOCK_DGRAM)
        except UnicodeError as error:
            # Before anybody is asked: a name that the rules of IDNA do not allow.
            raise Unreachable(f"{host!r:.80} cannot be a host's name", hint="check the name") from error
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or f"no answer in {timeout_s:.3g} s"
            raise Unreachable(f"cannot find {host!r:.80}: {reason}", hint="check the name") from error
        return list(dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found))

    async def _dial_one(self, family: int, sockaddr: Any, patience_s: float, address: str) -> QuicLink:
        """One socket address, with datagrams as large as the path may carry, then with the smallest."""
        chosen = self._options.max_datagram_bytes
        size = chosen or max(
            SMALLEST_MAX_DATAGRAM_SIZE, min(LARGEST_DATAGRAM_BYTES, route_datagram_bytes(family, sockaddr))
        )
        is_proof = not chosen and size > SMALLEST_MAX_DATAGRAM_SIZE
        proof_s = min(SIZE_PROOF_S, patience_s / 2) if is_proof else patience_s
        link = await self._attempt(family, sockaddr, size, proof_s, address)
        if link is None and is_proof:
            link = await self._attempt(family, sockaddr, SMALLEST_MAX_DATAGRAM_SIZE, patience_s - proof_s, address)
            if link is not None:
                self._say_fallback(address, size)
        if link is None:
            port = sockaddr[1]
            raise Unreachable(f"no answer from {address} in {patience_s:.3g} s", hint=f"is UDP port {port} open?")
        return link

    async def _attempt(self, family: int, sockaddr: Any, size: int, patience_s: float, address: str) -> QuicLink | None:
        """A link, or None when nothing came of it in time; raises Unreachable when something says why."""
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
            await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            link.abandon(Unreachable("the dial was cancelled"))
            raise
        if link.ended.done():
            raise Unreachable(
                f"{address}: {link.ended.result().detail}", hint="is the node up, and is this its address?"
            )
        certificate = link.quic.peer_certificate()
        if not ready.done() or certificate is None:
            link.abandon(Unreachable("the dial was given up"))
            return None
        link.channel_binding = binding_of(certificate)
        return link

    def _endpoint(
        self, sock: sockets.socket, *, acceptance: Acceptance | None = None, peer: Any = None
    ) -> QuicEndpoint:
        endpoint = QuicEndpoint(
            sock,
            counters=self._counters,
            logger=self._log,
            buffer_bytes=self._options.socket_buffer_bytes,
            ack_delay_s=self._options.ack_delay_s,
            acceptance=acceptance,
            peer=peer,
            on_empty=self._endpoints.discard,
        )
        self._endpoints.add(endpoint)
        return endpoint

    def _configuration(self, datagram_bytes: int, *, is_client: bool) -> QuicConfiguration:
        # No session tickets are kept, hence no 0-RTT.
        return QuicConfiguration(
            alpn_protocols=[ALPN],
            is_client=is_client,
            congestion_control_algorithm=self._options.congestion,
            idle_timeout=self._options.idle_timeout_s,
            max_datagram_size=datagram_bytes,
            max_data=WINDOW_BYTES,
            max_stream_data=WINDOW_BYTES,
            server_name=NAME if is_client else None,
            # The nodes' handshake authenticates, over the channel binding: see certificate.py.
            verify_mode=ssl.CERT_NONE if is_client else None,
        )

    def _say_fallback(self, address: str, size: int) -> None:
        self._counters.add("quic_datagram_fallbacks")
        if address not in self._said_fallback:
            self._said_fallback.add(address)
            self._log.warning("path does not carry large datagrams", extra={"address": address, "bytes": size})


def _check(options: QuicOptions) -> None:
    if options.congestion not in ("cubic", "reno"):
        raise OptionError(f"quic.congestion: {options.congestion!r} is neither cubic nor reno")
    smallest = SMALLEST_MAX_DATAGRAM_SIZE
    if options.max_datagram_bytes and not smallest <= options.max_datagram_bytes <= LARGEST_DATAGRAM_BYTES:
        raise OptionError(f"quic.max_datagram_bytes: from {smallest} to {LARGEST_DATAGRAM_BYTES}, or 0")
    if not 0 < options.ack_delay_s <= 0.025:
        raise OptionError("quic.ack_delay_s: above 0, and at most 0.025, which the peer is told")
    if options.idle_timeout_s <= 0:
        raise OptionError("quic.idle_timeout_s: above 0")
    if bool(options.certificate_file) != bool(options.key_file):
        raise OptionError("quic.certificate_file and quic.key_file: give both or neither")


async def _bind(host: str, port: int) -> sockets.socket:
    """An empty host is every interface, IPv6 and IPv4 on one socket where the system has both. Raises OSError."""
    if not host:
        if sockets.has_dualstack_ipv6():
            return open_listening(sockets.AF_INET6, ("::", port))
        return open_listening(sockets.AF_INET, ("0.0.0.0", port))  # noqa: S104 - asked for
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=sockets.SOCK_DGRAM, flags=sockets.AI_PASSIVE)
    family, _, _, _, sockaddr = found[0]
    return open_listening(family, sockaddr)


def _primary_address() -> str:
    """The address of the interface of the default route; loopback when there is none."""
    # Connecting a UDP socket sends nothing; it makes the kernel choose (addresses of RFC 5737 and RFC 3849).
    for family, probe in ((sockets.AF_INET, "192.0.2.1"), (sockets.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), sockets.socket(family, sockets.SOCK_DGRAM) as choice:
            choice.connect((probe, 9))
            return str(choice.getsockname()[0])
    return "127.0.0.1"
