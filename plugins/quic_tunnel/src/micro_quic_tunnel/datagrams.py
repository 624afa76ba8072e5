"""A UDP socket in the event loop, and the datagram size that the kernel knows for a route.

asyncio's datagram transport is not used because it wakes up once per datagram. Here up to `BATCH` datagrams are read per
wake-up and delivered together. Sending never waits: datagrams that the kernel does not accept are queued up to a limit
and dropped above it, and QUIC repairs the loss. Segmentation offload is not used, because measurements showed no benefit:
a send takes 1 to 2 µs, and QUIC needs 65 µs per packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket as sockets
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from micro_core.contract import Counters
from micro_core.contract.names import join_host_port

BATCH = 64
"""Maximum number of datagrams read per wake-up, which limits one wake-up to a few milliseconds."""

MAX_UDP_BYTES = 65_535
MAX_UNSENT = 1_024
"""Maximum number of datagrams that are queued while the kernel's buffer is full."""

IPV4_HEADER_BYTES = 28
"""Size of the IPv4 and UDP headers together."""
IPV6_HEADER_BYTES = 48
"""Size of the IPv6 and UDP headers together."""

MIN_IPV6_MTU = 1_280

# Socket options of Linux. Not every Python version has names for them.
_IS_LINUX = sys.platform == "linux"
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IP_MTU = 14
_IPV6_MTU_DISCOVER = 23
_IPV6_MTU = 24
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_PMTUDISC_DO = 2
_IN_PKTINFO = struct.Struct("=I4s4s")
_CONTROL_BYTES = 128

Control = Sequence[tuple[int, int, bytes]]
"""Ancillary data of a datagram (RFC 3542)."""

Datagram = tuple[bytes, Any, Control]
"""Data, socket address of the sender, and the ancillary data from which `reply_control` derives that of a reply."""


class DatagramSocket:
    """Owns the UDP socket `sock` and reads it in the event loop.

    `received` is called with each batch of datagrams, `refused` when the host of the peer reports that the port is closed.
    """

    def __init__(
        self,
        sock: sockets.socket,
        *,
        buffer_bytes: int,
        counters: Counters,
        received: Callable[[list[Datagram]], None],
        refused: Callable[[], None] | None = None,
        peer: Any = None,
    ) -> None:
        self.is_closed = False
        self._is_too_large = False
        self.address = sock.getsockname()
        self._sock = sock
        self._counters = counters
        self._received = received
        self._refused = refused
        self._peer = peer
        self._is_wildcard = peer is None and self.address[0] in ("0.0.0.0", "::")  # noqa: S104 - compared
        self._unsent: deque[tuple[bytes, Any, Control]] = deque()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _set(sock, sockets.SOL_SOCKET, sockets.SO_RCVBUF, buffer_bytes)
        _set(sock, sockets.SOL_SOCKET, sockets.SO_SNDBUF, buffer_bytes)
        if self._is_wildcard:
            _enable_destination_info(sock)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes, address: Any, control: Control = ()) -> bool:
        """Send a datagram, or queue it if the kernel's buffer is full. Does nothing after `close`.

        Returns False if the kernel refused it as too large for the path.
        """
        if self.is_closed:
            return True
        self._is_too_large = False
        if self._unsent or not self._send_now(data, address, control):
            self._queue(data, address, control)
        return not self._is_too_large

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        if not self.is_closed:
            self.is_closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._unsent.clear()
            self._sock.close()

    # ---------------------------------------------------------------- internal

    def _readable(self) -> None:
        batch: list[Datagram] = []
        try:
            for _ in range(BATCH):
                batch.append(self._receive())  # noqa: PERF401 - datagrams before an error are kept
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            # An ICMP error caused by an earlier datagram. The timers of QUIC decide whether an established link is lost.
            self._failed(error)
        if batch:
            self._received(batch)

    def _receive(self) -> Datagram:
        if self._peer is not None:
            return self._sock.recv(MAX_UDP_BYTES), self._peer, ()
        if self._is_wildcard:
            data, control, _, address = self._sock.recvmsg(MAX_UDP_BYTES, _CONTROL_BYTES)
            return data, address, control
        data, address = self._sock.recvfrom(MAX_UDP_BYTES)
        return data, address, ()

    def _send_now(self, data: bytes, address: Any, control: Control) -> bool:
        """Return False if the kernel's buffer is full."""
        try:
            if self._peer is not None:
                self._sock.send(data)
            elif control:
                self._sock.sendmsg([data], control, 0, address)
            else:
                self._sock.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failed(error)
        return True

    def _queue(self, data: bytes, address: Any, control: Control) -> None:
        if len(self._unsent) >= MAX_UNSENT:
            self._counters.add("quic_datagrams_unsent")
            return
        if not self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._unsent.append((data, address, control))

    def _writable(self) -> None:
        while self._unsent and self._send_now(*self._unsent[0]):
            # An error of the send may have led to a call of close(), which empties the queue.
            if self._unsent:
                self._unsent.popleft()
        if not self._unsent and not self.is_closed:
            self._loop.remove_writer(self._sock.fileno())

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self._refused is not None:
            self._refused()
        elif error.errno == errno.EMSGSIZE:
            self._is_too_large = True
            self._counters.add("quic_datagrams_too_large")
        else:
            self._counters.add("quic_socket_errors")


def open_connected(family: int, address: Any) -> sockets.socket:
    """Return a UDP socket that is connected to `address`. Raises OSError if the system refuses."""
    sock = sockets.socket(family, sockets.SOCK_DGRAM)
    try:
        forbid_fragments(sock)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def open_listening(family: int, address: Any) -> sockets.socket:
    """Return a UDP socket bound to `address`; on `::` it also accepts IPv4 if the system supports that.

    Raises OSError if the system refuses, e.g. because the port is in use.
    """
    sock = sockets.socket(family, sockets.SOCK_DGRAM)
    try:
        if family == sockets.AF_INET6 and address[0] == "::":
            _set(sock, sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 0)
        forbid_fragments(sock)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def route_datagram_bytes(family: int, address: Any) -> int:
    """Return the largest UDP payload for the route to `address` according to the kernel. Sends no packets."""
    header = IPV6_HEADER_BYTES if family == sockets.AF_INET6 else IPV4_HEADER_BYTES
    try:
        with open_connected(family, address) as probe:
            if family == sockets.AF_INET6:
                return probe.getsockopt(sockets.IPPROTO_IPV6, _IPV6_MTU) - header
            return probe.getsockopt(sockets.IPPROTO_IP, _IP_MTU) - header
    except OSError:
        return MIN_IPV6_MTU - header


def forbid_fragments(sock: sockets.socket) -> None:
    """Forbid fragmentation of datagrams (RFC 9000 section 14), so that a handshake proves the datagram size of the path."""
    if _IS_LINUX:
        _set(sock, sockets.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        if sock.family == sockets.AF_INET6:
            _set(sock, sockets.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)


def reply_control(control: Control) -> Control:
    """Return ancillary data that sends a reply from the address that was dialled.

    A dialling node accepts replies from no other address (RFC 9000 section 9).
    """
    for level, kind, data in control:
        if (level, kind) == (sockets.IPPROTO_IPV6, _IPV6_PKTINFO) and len(data) >= 20:
            # The kernel chooses the interface, except for link-local addresses, which are ambiguous without it.
            interface = data[16:20] if data[0] == 0xFE and data[1] & 0xC0 == 0x80 else bytes(4)
            return [(level, kind, data[:16] + interface)]
        if (level, kind) == (sockets.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _IN_PKTINFO.size:
            _, local, _ = _IN_PKTINFO.unpack_from(data)
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
    return ()


def _enable_destination_info(sock: sockets.socket) -> None:
    if _IS_LINUX and sock.family == sockets.AF_INET6:
        _set(sock, sockets.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    elif _IS_LINUX:
        _set(sock, sockets.IPPROTO_IP, _IP_PKTINFO, 1)


def _set(sock: sockets.socket, level: int, name: int, value: int) -> None:
    with contextlib.suppress(OSError):
        # If the kernel refuses, QUIC is slower but still correct.
        sock.setsockopt(level, name, value)


def socket_address(sockaddr: Any) -> str:
    """Return a socket address of the system as `quic://host:port`."""
    # On a dual-stack socket, IPv4 addresses appear as ::ffff:192.0.2.1 (RFC 4291 section 2.5.5.2).
    host: str = sockaddr[0]
    return f"quic://{join_host_port(host.removeprefix('::ffff:'), sockaddr[1])}"
