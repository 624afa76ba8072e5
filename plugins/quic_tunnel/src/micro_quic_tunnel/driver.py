"""The driver: dial and listen."""

from __future__ import annotations

import asyncio
import socket as sockets
import ssl
from collections.abc import Callable
from typing import Any

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration

from micro_core.spec import Conflict, DriverContext, Link, MicroError, OptionError, Unreachable
from micro_core.spec.names import join_host_port, split_host_port
from micro_core.spec.transport import Listener
from micro_quic_tunnel.certificate import NAME, binding_of, make_certificate
from micro_quic_tunnel.endpoint import QuicEndpoint, forbid_fragments, route_mtu
from micro_quic_tunnel.link import QuicLink
from micro_quic_tunnel.options import QuicOptions

ALPN = "micro/1"

LARGEST_DATAGRAM_BYTES = 8_192
"""More per datagram stops paying: measured on loopback, where the MTU would allow 65,507."""

IPV4_HEADER_BYTES = 28
IPV6_HEADER_BYTES = 48
"""IP and UDP headers together."""

SIZE_PROOF_S = 1.0
"""How long a handshake of large datagrams is tried before one of the smallest."""

WINDOW_BYTES = 64 * 1024 * 1024
"""QUIC's own windows stand wide open: core's credit bounds what is under way, in both directions."""


class QuicListener:
    """Implements `Listener`."""

    def __init__(self, address: str, endpoint: QuicEndpoint) -> None:
        self.address = address
        self._endpoint = endpoint

    async def close(self) -> None:
        # The socket carries the accepted links, which live on; no new ones are taken.
        self._endpoint._make_configuration = None
        if not self._endpoint.links:
            self._endpoint.close_socket()


class QuicTunnel:
    """Implements `LinkDriver`."""

    scheme = "quic"

    def __init__(self, options: QuicOptions, context: DriverContext) -> None:
        if options.congestion not in ("cubic", "reno"):
            raise OptionError(f"quic.congestion: {options.congestion!r} is neither cubic nor reno")
        if options.max_datagram_bytes and not SMALLEST_MAX_DATAGRAM_SIZE <= options.max_datagram_bytes <= 65_507:
            raise OptionError(f"quic.max_datagram_bytes: from {SMALLEST_MAX_DATAGRAM_SIZE} to 65507, or 0")
        self._options = options
        self._counters = context.counters
        self._log = context.logger
        self._endpoints: list[QuicEndpoint] = []
        self._said_fallback: set[str] = set()

    async def start(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints))
        self._endpoints.clear()

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        host, port = split_host_port(address.removeprefix("quic://"), self._options.port)
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                found = await loop.getaddrinfo(host or "localhost", port, type=sockets.SOCK_DGRAM)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"cannot find {host!r}: {error or 'no answer'}", hint="check the name") from error
        last: MicroError = Unreachable(f"no address for {host!r}")
        for family, _, _, _, sockaddr in found:
            size = self._datagram_bytes(family, sockaddr)
            sizes = [size] if size == SMALLEST_MAX_DATAGRAM_SIZE else [size, SMALLEST_MAX_DATAGRAM_SIZE]
            for place, tried in enumerate(sizes):
                left = timeout_s - (loop.time() - started)
                patience = left if place == len(sizes) - 1 else min(SIZE_PROOF_S, left / 2)
                try:
                    link = await self._dial_one(family, sockaddr, tried, patience, address)
                except Unreachable as error:
                    last = error
                    continue
                if place:
                    self._say_fallback(address, size)
                return link
        raise last

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        host, port = split_host_port(address.removeprefix("quic://"), self._options.port)
        family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
        sock = sockets.socket(family, sockets.SOCK_DGRAM)
        try:
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise Conflict(
                f"cannot listen on UDP {join_host_port(host or '*', port)}: {error.strerror or error}",
                hint="choose another port: --listen :8086",
            ) from error
        forbid_fragments(sock, family)
        certificate, key = make_certificate()

        def configuration(initial_bytes: int) -> QuicConfiguration:
            # The dialler's first datagram was padded to its size, and has come through.
            bound = self._options.max_datagram_bytes or LARGEST_DATAGRAM_BYTES
            made = self._configuration(max(SMALLEST_MAX_DATAGRAM_SIZE, min(initial_bytes, bound)), is_client=False)
            made.certificate, made.private_key = certificate, key
            return made

        endpoint = QuicEndpoint(
            sock,
            counters=self._counters,
            buffer_bytes=self._options.socket_buffer_bytes,
            make_configuration=configuration,
            accepted=accept,
            binding=binding_of(certificate),
            ack_delay_s=self._options.ack_delay_s,
            max_half_open=self._options.max_half_open,
        )
        self._endpoints.append(endpoint)
        bound_host, bound_port = sock.getsockname()[:2]
        shown = _primary_address(family) if bound_host in ("0.0.0.0", "::") else bound_host  # noqa: S104 - compared
        return QuicListener(f"quic://{join_host_port(shown, bound_port)}", endpoint)

    async def _dial_one(self, family: int, sockaddr: Any, size: int, patience_s: float, address: str) -> QuicLink:
        sock = sockets.socket(family, sockets.SOCK_DGRAM)
        endpoint: QuicEndpoint | None = None
        ready: asyncio.Future[QuicLink] = asyncio.get_running_loop().create_future()
        try:
            sock.bind(("::" if family == sockets.AF_INET6 else "", 0))
            forbid_fragments(sock, family)
            endpoint = QuicEndpoint(
                sock,
                counters=self._counters,
                buffer_bytes=self._options.socket_buffer_bytes,
                ack_delay_s=self._options.ack_delay_s,
            )
            remote = f"quic://{join_host_port(sockaddr[0], sockaddr[1])}"
            link = endpoint.dial(self._configuration(size, is_client=True), sockaddr, remote)
            link.on_ready = ready.set_result
            async with asyncio.timeout(patience_s):
                waiting: list[asyncio.Future[Any]] = [ready, link.ended]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if link.ended.done():
                error = link.ended.result()
                raise Unreachable(f"{address} refused the link: {error.detail}", hint="is it a micro node?")
            certificate = link.quic.tls._peer_certificate
            if certificate is None:
                raise Unreachable(f"{address} showed no certificate")
            link.channel_binding = binding_of(certificate)
        except TimeoutError:
            await self._give_up(endpoint, sock)
            raise Unreachable(
                f"{address} did not answer within {patience_s:.3g} s", hint="is the node up, and its UDP port open?"
            ) from None
        except OSError as error:
            await self._give_up(endpoint, sock)
            raise Unreachable(f"cannot reach {address}: {error.strerror or error}") from error
        except BaseException:
            await self._give_up(endpoint, sock)
            raise
        self._endpoints.append(endpoint)
        link.ended.add_done_callback(lambda _: self._link_ended(endpoint))
        return link

    async def _give_up(self, endpoint: QuicEndpoint | None, sock: sockets.socket) -> None:
        if endpoint is None:
            sock.close()
            return
        for link in list(endpoint.links):
            link.end(Unreachable("the dial was given up"))
        endpoint.close_socket()

    def _link_ended(self, endpoint: QuicEndpoint) -> None:
        """A dialled link has its socket for itself."""
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            asyncio.get_running_loop().call_soon(endpoint.close_socket)

    def _datagram_bytes(self, family: int, sockaddr: Any) -> int:
        if self._options.max_datagram_bytes:
            return self._options.max_datagram_bytes
        header = IPV4_HEADER_BYTES if family == sockets.AF_INET else IPV6_HEADER_BYTES
        payload: int = route_mtu(family, sockaddr) - header
        return max(SMALLEST_MAX_DATAGRAM_SIZE, min(LARGEST_DATAGRAM_BYTES, payload))

    def _configuration(self, datagram_bytes: int, *, is_client: bool) -> QuicConfiguration:
        return QuicConfiguration(
            alpn_protocols=[ALPN],
            is_client=is_client,
            congestion_control_algorithm=self._options.congestion,
            idle_timeout=self._options.idle_timeout_s,
            max_datagram_size=datagram_bytes,
            max_data=WINDOW_BYTES,
            max_stream_data=WINDOW_BYTES,
            server_name=NAME if is_client else None,
            # The node's handshake authenticates, over the channel binding: see certificate.py.
            verify_mode=ssl.CERT_NONE if is_client else None,
        )

    def _say_fallback(self, address: str, size: int) -> None:
        self._counters.add("quic_datagram_fallbacks")
        if address not in self._said_fallback:
            self._said_fallback.add(address)
            self._log.warning("path does not carry large datagrams", extra={"address": address, "bytes": size})


def _primary_address(family: int) -> str:
    """The address of the interface of the default route; loopback when there is none."""
    probe, fallback = ("2001:db8::1", "::1") if family == sockets.AF_INET6 else ("192.0.2.1", "127.0.0.1")
    with sockets.socket(family, sockets.SOCK_DGRAM) as choice:
        try:
            # Connecting a UDP socket sends nothing; it makes the kernel choose (RFC 5737 and 3849 addresses).
            choice.connect((probe, 9))
        except OSError:
            return fallback
        return str(choice.getsockname()[0])
