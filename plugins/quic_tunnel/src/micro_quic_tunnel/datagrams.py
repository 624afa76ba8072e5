"""A UDP socket in the event loop, and what the kernel knows of the way.

Not asyncio's datagram transport: that wakes up once a datagram. Here up to `BATCH` datagrams are read per wake-up and
handed over together. Sending never waits: what the kernel does not take is queued, up to a bound, and then lost, which
is QUIC's business to repair. Segmentation offload was measured and left out: a send costs 1-2 µs beside 65 µs of QUIC.
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

BATCH = 64
"""Datagrams read before anything else gets its turn: a few milliseconds of work at the most."""

MAX_UDP_BYTES = 65_535
MAX_UNSENT = 1_024
"""Datagrams queued while the kernel's buffer is full."""

IPV4_HEADER_BYTES = 28
IPV6_HEADER_BYTES = 48
"""IP and UDP headers together."""

SMALLEST_IPV6_MTU = 1_280

# Linux; not every system has them, and not every Python names them.
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
"""Data, the other end's socket address, and what `reply_control` makes a reply's control of."""


class DatagramSocket:
    """Owns `sock`. `received` is called with each batch; `refused` when the other end's host says nobody listens."""

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
            _ask_for_destinations(sock)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes, address: Any, control: Control = ()) -> None:
        """Hand a datagram to the kernel, or queue it."""
        if self.is_closed:
            return
        if self._unsent or not self._send_now(data, address, control):
            self._queue(data, address, control)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if not self.is_closed:
            self.is_closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._unsent.clear()
            self._sock.close()

    # ----------------------------------------------------------------- inside

    def _readable(self) -> None:
        batch: list[Datagram] = []
        try:
            for _ in range(BATCH):
                batch.append(self._receive())  # noqa: PERF401 - what came before an error stays
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            # The ICMP answer to an earlier datagram; once a link stands, QUIC's own timers judge the path.
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
        """False where the kernel has no room."""
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
            # Sending may have told somebody who closed this socket.
            if self._unsent:
                self._unsent.popleft()
        if not self._unsent and not self.is_closed:
            self._loop.remove_writer(self._sock.fileno())

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self._refused is not None:
            self._refused()
        elif error.errno == errno.EMSGSIZE:
            self._counters.add("quic_datagrams_too_large")
        else:
            self._counters.add("quic_socket_errors")


def open_connected(family: int, address: Any) -> sockets.socket:
    """A socket that speaks with `address` alone; raises OSError."""
    sock = sockets.socket(family, sockets.SOCK_DGRAM)
    try:
        forbid_fragments(sock)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def open_listening(family: int, address: Any) -> sockets.socket:
    """A socket bound to `address`; on `::` it takes IPv4 too, where the system can. Raises OSError."""
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
    """UDP payload that the route to `address` takes in one piece, as far as the kernel knows. Sends nothing."""
    header = IPV6_HEADER_BYTES if family == sockets.AF_INET6 else IPV4_HEADER_BYTES
    try:
        with open_connected(family, address) as probe:
            if family == sockets.AF_INET6:
                return probe.getsockopt(sockets.IPPROTO_IPV6, _IPV6_MTU) - header
            return probe.getsockopt(sockets.IPPROTO_IP, _IP_MTU) - header
    except OSError:
        return SMALLEST_IPV6_MTU - header


def forbid_fragments(sock: sockets.socket) -> None:
    """Oversized datagrams are dropped, not cut (RFC 9000 section 14), so that the handshake proves the path's size."""
    if _IS_LINUX:
        _set(sock, sockets.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        if sock.family == sockets.AF_INET6:
            _set(sock, sockets.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)


def reply_control(control: Control) -> Control:
    """What makes a reply leave from the address that was dialled: a dialler hears no other (RFC 9000 section 9)."""
    for level, kind, data in control:
        if (level, kind) == (sockets.IPPROTO_IPV6, _IPV6_PKTINFO) and len(data) >= 20:
            # The interface is left open but for link-local addresses, which mean nothing without it.
            interface = data[16:20] if data[0] == 0xFE and data[1] & 0xC0 == 0x80 else bytes(4)
            return [(level, kind, data[:16] + interface)]
        if (level, kind) == (sockets.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _IN_PKTINFO.size:
            _, local, _ = _IN_PKTINFO.unpack_from(data)
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
    return ()


def _ask_for_destinations(sock: sockets.socket) -> None:
    if _IS_LINUX and sock.family == sockets.AF_INET6:
        _set(sock, sockets.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    elif _IS_LINUX:
        _set(sock, sockets.IPPROTO_IP, _IP_PKTINFO, 1)


def _set(sock: sockets.socket, level: int, name: int, value: int) -> None:
    with contextlib.suppress(OSError):
        # As far as the kernel allows: less costs speed, not correctness.
        sock.setsockopt(level, name, value)
