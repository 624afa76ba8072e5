"""Multicast DNS: sockets, announcements and queries, based on the zeroconf library.

This module handles names and TXT data without interpreting them. There is one object per registry.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import ifaddr
from zeroconf import (  # type: ignore[attr-defined]  # public, but not marked for export
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSText,
    InterfaceChoice,
    IPVersion,
    NotRunningException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import (
    _CLASS_IN,
    _CLASS_UNIQUE,
    _FLAGS_AA,
    _FLAGS_QR_QUERY,
    _FLAGS_QR_RESPONSE,
    _MAX_MSG_ABSOLUTE,
    _MDNS_ADDR,
    _MDNS_PORT,
    _TYPE_PTR,
    _TYPE_TXT,
)

from micro_core.contract import OptionError, Random, Unreachable

MAX_KNOWN_ANSWERS = 24
"""Maximum number of known names in a query, so that it fits into one packet of ordinary size."""

MAX_QUESTIONS = 20
"""Maximum number of names in a query, for the same reason."""

REPEAT_S = 1.0
"""Seconds between the two announcements of a name."""

_KNOWN_TTL_S = 4_500
_IP_VERSIONS = {"4": IPVersion.V4Only, "6": IPVersion.V6Only, "both": IPVersion.All}
_INTERFACE_HINT = (
    "check that the interface is up and supports multicast, or set interfaces=127.0.0.1 for this host only"
)

TextReceiver = Callable[[str, bytes], None]
"""Called in the event loop with (label before the service type, TXT data)."""


class Multicast:
    """Sends and receives multicast DNS messages for one service type.

    Creating it raises OptionError if an option is invalid.
    """

    def __init__(
        self,
        service_type: str,
        *,
        interfaces: str,
        ip_version: str,
        random: Random,
        receive: TextReceiver,
        count: Callable[[str], None],
    ) -> None:
        if ip_version not in _IP_VERSIONS:
            raise OptionError(f"mdns: unknown ip_version {ip_version!r}", hint="use 4, 6 or both")
        self._type = service_type
        self._interfaces = _parse_interfaces(interfaces)
        self._ip_version = _IP_VERSIONS[ip_version]
        self._random = random
        self._receive = receive
        self._count = count
        self._zeroconf: AsyncZeroconf | None = None
        self._query_sockets: list[_QuerySocket] = []

    async def open(self) -> None:
        """Join the multicast group. Raises Unreachable if no interface allows it."""
        try:
            # These come first, because they detect a missing interface; the constructor of the library would leave a
            # socket open.
            await self._open_query_sockets()
            self._zeroconf = AsyncZeroconf(
                interfaces=self._interfaces or InterfaceChoice.All, ip_version=self._ip_version
            )
            await self._zeroconf.zeroconf.async_wait_for_start()
        except (OSError, RuntimeError, NotRunningException) as error:
            await self.close()
            raise Unreachable(f"mdns: cannot join multicast: {error}", hint=_INTERFACE_HINT) from error
        self._zeroconf.zeroconf.async_add_listener(_Listener(self._text_received), None)

    async def retract_all(self) -> None:
        """Retract all announcements: send them three times with a TTL of 0 within a quarter of a second."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()

    async def close(self) -> None:
        """Leave the multicast group. Safe to call twice."""
        zeroconf, self._zeroconf = self._zeroconf, None
        for query_socket in self._query_sockets:
            query_socket.close()
        self._query_sockets.clear()
        if zeroconf is not None:
            await zeroconf.async_close()

    def announce(self, label: str, text: bytes, *, host: str, port: int, ttl_s: int) -> Announcement:
        """Announce `label` now and after one second (RFC 6762 section 8.3), and answer queries for it.

        Names are never reused, so the probing for conflicts (section 8.1) is omitted. Raises Unreachable if the object is
        not open.
        """
        info = AsyncServiceInfo(
            self._type,
            f"{label}.{self._type}",
            port=port,
            properties=text,
            server=f"{label.partition('-')[0]}.local.",
            host_ttl=ttl_s,
            other_ttl=ttl_s,
            parsed_addresses=_addresses(host),
        )
        self._require_open().registry.async_add(info)
        self._broadcast(info, None)
        return Announcement(info, asyncio.get_running_loop().call_later(REPEAT_S, self._broadcast, info, None))

    def retract(self, announcement: Announcement) -> None:
        """Stop answering queries, and announce the name with a TTL of 0 (RFC 6762 section 10.1).

        Raises Unreachable if the object is not open.
        """
        announcement.repeat.cancel()
        self._require_open().registry.async_remove(announcement.info)
        self._broadcast(announcement.info, 0)

    def send_text(self, label: str, text: bytes, *, ttl_s: int) -> None:
        """Send one TXT record by multicast, once. Does nothing if the object is not open."""
        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        name = f"{label}.{self._type}"
        out.add_answer_at_time(DNSText(name, _TYPE_TXT, _CLASS_IN | _CLASS_UNIQUE, ttl_s, text, 0.0), 0)
        if self._zeroconf is not None:
            self._zeroconf.zeroconf.async_send(out)

    def query_all(self, known: Iterable[str]) -> None:
        """Query all records except the known ones (RFC 6762 section 7.1)."""
        self._send_query([DNSQuestion(self._type, _TYPE_PTR, _CLASS_IN)], list(known)[:MAX_KNOWN_ANSWERS])

    def query(self, labels: Iterable[str]) -> None:
        """Query the TXT records of at most `MAX_QUESTIONS` labels."""
        names = list(labels)[:MAX_QUESTIONS]
        self._send_query([DNSQuestion(f"{label}.{self._type}", _TYPE_TXT, _CLASS_IN) for label in names], [])

    def _send_query(self, questions: list[DNSQuestion], known: list[str]) -> None:
        # Responders answer queries from another port immediately and only to this port (RFC 6762 section 6.7). Answers to
        # port 5353, which the processes of a host share, can be delayed by a second or reach another process.
        for query_socket in self._query_sockets:
            query_socket.send(self._build_query(questions, known, self._random.randrange(1, 65_536)))
        if self._zeroconf is not None and (self._ip_version is not IPVersion.V4Only or not self._query_sockets):
            self._zeroconf.zeroconf.async_send(self._build_query(questions, known, 0))

    def _build_query(self, questions: list[DNSQuestion], known: list[str], message_id: int) -> DNSOutgoing:
        out = DNSOutgoing(_FLAGS_QR_QUERY, multicast=message_id == 0, id_=message_id)
        for question in questions:
            out.add_question(question)
        for label in known:
            pointer = DNSPointer(self._type, _TYPE_PTR, _CLASS_IN, _KNOWN_TTL_S, f"{label}.{self._type}", 0.0)
            out.add_answer_at_time(pointer, 0)
        return out

    def _broadcast(self, info: ServiceInfo, ttl_s: int | None) -> None:
        if self._zeroconf is not None:
            zeroconf = self._zeroconf.zeroconf
            # All names of an owner share the address records, so these are not retracted.
            zeroconf.async_send(zeroconf.generate_service_broadcast(info, ttl_s, broadcast_addresses=ttl_s is None))

    def _require_open(self) -> Zeroconf:
        if self._zeroconf is None:
            raise Unreachable("mdns: the registry is not started", hint="await start() first")
        return self._zeroconf.zeroconf

    async def _open_query_sockets(self) -> None:
        if self._ip_version is IPVersion.V6Only:
            return
        for address in self._interfaces or ipv4_addresses():
            if ":" in address:
                continue
            try:
                self._query_sockets.append(await _QuerySocket.open(address, self._text_received))
            except OSError as error:
                if self._interfaces:
                    raise OSError(f"{address}: {error}") from error
                # One of several interfaces may be down or not support multicast. The others are used.
                self._count("mdns_interfaces_failed")

    def _text_received(self, name: str, text: bytes) -> None:
        label, dot, rest = name.partition(".")
        if dot and rest.lower() == self._type:
            self._receive(label.lower(), text)


@dataclass(frozen=True, slots=True)
class Announcement:
    """An announced name, and the timer that repeats the announcement."""

    info: ServiceInfo
    repeat: asyncio.TimerHandle


class _Listener(RecordUpdateListener):
    def __init__(self, text_received: TextReceiver) -> None:
        super().__init__()
        self._text_received = text_received

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:  # noqa: ARG002 - the signature is given by the library
        for update in records:
            record = update.new
            # The library also reports expired entries of its cache here, which were not received from the owner.
            if isinstance(record, DNSText) and not record.is_expired(now):
                self._text_received(record.name, record.text)


class _QuerySocket(asyncio.DatagramProtocol):
    """A socket with a port of its own on one interface, for queries and their answers."""

    def __init__(self, text_received: TextReceiver) -> None:
        self._text_received = text_received
        self._transport: asyncio.DatagramTransport | None = None
        self._query_ids: list[int] = []

    @classmethod
    async def open(cls, address: str, text_received: TextReceiver) -> _QuerySocket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sock.bind((address, 0))
            loop = asyncio.get_running_loop()
            _, query_socket = await loop.create_datagram_endpoint(lambda: cls(text_received), sock=sock)
        except OSError:
            sock.close()
            raise
        return query_socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.12, asyncio's datagram transport is not a subclass of DatagramTransport.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def send(self, query: DNSOutgoing) -> None:
        # Only answers to the last eight queries are accepted.
        self._query_ids = [*self._query_ids[-7:], query.id]
        if self._transport is not None:
            for packet in query.packets():
                self._transport.sendto(packet, (_MDNS_ADDR, _MDNS_PORT))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > _MAX_MSG_ABSOLUTE or addr[1] != _MDNS_PORT:
            return
        message = DNSIncoming(data, addr)
        if message.valid and message.is_response() and message.id in self._query_ids:
            for record in message.answers():
                if isinstance(record, DNSText):
                    self._text_received(record.name, record.text)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def ipv4_addresses() -> list[str]:
    """Return all IPv4 addresses of this machine."""
    return [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]


def _parse_interfaces(option: str) -> list[str]:
    addresses: list[str] = []
    for address in filter(None, (item.strip() for item in option.split(","))):
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise OptionError(f"mdns: interfaces: {address!r} is not an IP address", hint="e.g. 127.0.0.1") from error
        addresses.append(address)
    return addresses


def _addresses(host: str) -> list[str]:
    """Return the addresses for the address records of an instance: its host, if it is an IP address of an interface."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return []
    return [] if parsed.is_unspecified else [host]
