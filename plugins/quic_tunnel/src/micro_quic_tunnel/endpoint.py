"""A UDP socket and the QUIC connections on it.

Not asyncio's datagram transport: that wakes up once a datagram. Here up to `BATCH` datagrams are read per wake-up, handed
to their connections, and only then do the connections answer: fewer acknowledgements, fuller packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from collections.abc import Callable
from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # its public name, not marked for export
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, encode_quic_version_negotiation, pull_quic_header

from micro_core.spec import Counters, Unreachable
from micro_core.spec.names import join_host_port
from micro_quic_tunnel.link import QuicLink

BATCH = 64
MAX_UDP_BYTES = 65_535
SMALLEST_INITIAL_BYTES = 1_200
HANDSHAKE_S = 5.0

_IP_MTU_DISCOVER = getattr(sockets, "IP_MTU_DISCOVER", 10)
_IP_PMTUDISC_DO = getattr(sockets, "IP_PMTUDISC_DO", 2)
_IP_MTU = 14
_IPV6_MTU = 24


class QuicEndpoint:
    """Connections over one socket. `make_configuration(datagram size)` for accepted ones; None where none are."""

    def __init__(
        self,
        sock: sockets.socket,
        *,
        counters: Counters,
        buffer_bytes: int,
        make_configuration: Callable[[int], QuicConfiguration] | None = None,
        accepted: Callable[[QuicLink], None] | None = None,
        binding: bytes = b"",
        ack_delay_s: float,
        max_half_open: int = 256,
    ) -> None:
        self.sock = sock
        self.links: set[QuicLink] = set()
        self._counters = counters
        self._make_configuration = make_configuration
        self._accepted = accepted
        self._binding = binding
        self._ack_delay_s = ack_delay_s
        self._max_half_open = max_half_open
        self._half_open: set[QuicLink] = set()
        self._by_cid: dict[bytes, QuicLink] = {}
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            # As far as the kernel allows: less costs speed, not correctness.
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, buffer_bytes)
            sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, buffer_bytes)
        self._loop.add_reader(sock.fileno(), self._readable)

    def dial(self, configuration: QuicConfiguration, address: Any, remote: str) -> QuicLink:
        """Begin a connection; `on_ready` of the link tells when it stands."""
        quic = QuicConnection(configuration=configuration)
        link = self._add(quic, dialed=True, remote=remote)
        quic.connect(address, now=self._loop.time())
        link.open_lanes()
        link.process()
        return link

    async def close(self) -> None:
        """Close every link, then the socket."""
        await asyncio.gather(*(link.close() for link in list(self.links)))
        for link in list(self.links):
            link.end(Unreachable("the endpoint was closed"))
        self.close_socket()

    def close_socket(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()

    @property
    def local(self) -> str:
        host, port = self.sock.getsockname()[:2]
        return f"quic://{join_host_port(host, port)}"

    # ----------------------------------------------------------------- inside

    def _readable(self) -> None:
        touched: dict[QuicLink, None] = {}
        now = self._loop.time()
        receive = self.sock.recvfrom
        for _ in range(BATCH):
            try:
                data, address = receive(MAX_UDP_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error of an earlier datagram; QUIC's own timers judge the path.
                self._counters.add("quic_socket_errors")
                break
            link = self._link_for(data, address)
            if link is not None:
                link.quic.receive_datagram(data, address, now=now)
                touched[link] = None
        for link in touched:
            link.process()

    def _link_for(self, data: bytes, address: Any) -> QuicLink | None:
        # The common case, a short header: the first bit is 0, and our connection ids have 8 bytes.
        if data and not data[0] & 0x80:
            link = self._by_cid.get(data[1:9])
            if link is None:
                self._counters.add("quic_datagrams_unknown")
            return link
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        except ValueError:
            self._counters.add("quic_datagrams_malformed")
            return None
        link = self._by_cid.get(header.destination_cid)
        if link is not None or self._make_configuration is None:
            return link
        configuration = self._make_configuration(len(data))
        if header.version is not None and header.version not in configuration.supported_versions:
            if header.packet_type != QuicPacketType.VERSION_NEGOTIATION:
                answer = encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=configuration.supported_versions,
                )
                self._send(answer, address)
            return None
        if header.packet_type != QuicPacketType.INITIAL or len(data) < SMALLEST_INITIAL_BYTES:
            self._counters.add("quic_datagrams_unknown")
            return None
        if len(self._half_open) >= self._max_half_open:
            self._counters.add("quic_handshakes_refused")
            return None
        return self._accept(configuration, header.destination_cid, address)

    def _accept(self, configuration: QuicConfiguration, original_cid: bytes, address: Any) -> QuicLink:
        quic = QuicConnection(configuration=configuration, original_destination_connection_id=original_cid)
        link = self._add(quic, dialed=False, remote=f"quic://{join_host_port(address[0], address[1])}")
        link.channel_binding = self._binding
        link.on_ready = self._ready
        self._by_cid[original_cid] = link
        self._half_open.add(link)
        self._loop.call_later(HANDSHAKE_S, self._handshake_expired, link)
        return link

    def _ready(self, link: QuicLink) -> None:
        self._half_open.discard(link)
        if self._accepted is not None:
            self._accepted(link)

    def _handshake_expired(self, link: QuicLink) -> None:
        if link in self._half_open:
            self._counters.add("quic_handshakes_expired")
            link.quic.close(reason_phrase="no handshake in time")
            link.end(Unreachable("no handshake in time"))

    def _add(self, quic: QuicConnection, *, dialed: bool, remote: str) -> QuicLink:
        # Acknowledgements may wait for data to travel with: 25 ms are announced to the peer (RFC 9000 section 13.2.1).
        quic._ack_delay = self._ack_delay_s
        link = QuicLink(
            quic,
            dialed=dialed,
            local=self.local,
            remote=remote,
            send=self._send,
            counters=self._counters,
            forget=self._forget,
        )
        link.on_cid = lambda cid: self._by_cid.__setitem__(cid, link)
        link.on_cid_retired = self._retire
        self._by_cid[quic.host_cid] = link
        self.links.add(link)
        return link

    def _retire(self, cid: bytes) -> None:
        self._by_cid.pop(cid, None)

    def _forget(self, link: QuicLink) -> None:
        self.links.discard(link)
        self._half_open.discard(link)
        for cid in [cid for cid, known in self._by_cid.items() if known is link]:
            del self._by_cid[cid]

    def _send(self, data: bytes, address: Any) -> None:
        try:
            self.sock.sendto(data, address)
        except (BlockingIOError, PermissionError):
            # A full buffer or a firewall: to QUIC both are loss.
            self._counters.add("quic_datagrams_unsent")
        except OSError:
            self._counters.add("quic_socket_errors")


def route_mtu(family: int, address: Any) -> int:
    """The kernel's MTU for the route to `address`, in bytes; 1280 when it does not say (the least of IPv6)."""
    with sockets.socket(family, sockets.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
            if family == sockets.AF_INET6:
                return probe.getsockopt(sockets.IPPROTO_IPV6, _IPV6_MTU)
            return probe.getsockopt(sockets.IPPROTO_IP, _IP_MTU)
        except OSError:
            return 1280


def forbid_fragments(sock: sockets.socket, family: int) -> None:
    """Oversized datagrams are dropped, not cut (RFC 9000 section 14), so that the handshake proves the path's size."""
    if family == sockets.AF_INET:
        with contextlib.suppress(OSError):
            # Not on every system; there, fragments cost speed.
            sock.setsockopt(sockets.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
