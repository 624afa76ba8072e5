"""The multicast side: sockets, announcements and questions, by the zeroconf library.

Knows names and TXT data, not what they mean. Shell: one object per registry, in one event loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import ifaddr
from zeroconf import (  # type: ignore[attr-defined]  # offered "for backwards compatibility", so not re-exported
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
"""Names a question lists as known: what fits one packet of ordinary size."""

MAX_QUESTIONS = 20
"""Names asked for in one packet, for the same reason."""

REPEAT_S = 1.0
"""Seconds between the two announcements of a name."""

_KNOWN_TTL_S = 4_500
_IP_VERSIONS = {"4": IPVersion.V4Only, "6": IPVersion.V6Only, "both": IPVersion.All}
_HINT = "check that the interface is up and allows multicast, or set interfaces=127.0.0.1 for this host alone"

TextReceiver = Callable[[str, bytes], None]
"""Called with (the label before the service type, TXT data), in the event loop."""


class Multicast:
    """All that is said and heard about one service type."""

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
            raise OptionError(f"mdns: ip_version {ip_version!r} is unknown", hint="write 4, 6 or both")
        self._type = service_type
        self._interfaces = _parse_interfaces(interfaces)
        self._ip_version = _IP_VERSIONS[ip_version]
        self._random = random
        self._receive = receive
        self._count = count
        self._zeroconf: AsyncZeroconf | None = None
        self._askers: list[_Asker] = []

    async def open(self) -> None:
        """Join the multicast group. Raises Unreachable."""
        try:
            # First, because a missing interface shows here; the library's constructor would leave a socket behind.
            await self._open_askers()
            self._zeroconf = AsyncZeroconf(
                interfaces=self._interfaces or InterfaceChoice.All, ip_version=self._ip_version
            )
            await self._zeroconf.zeroconf.async_wait_for_start()
        except (OSError, RuntimeError, NotRunningException) as error:
            await self.close()
            raise Unreachable(f"mdns: cannot join multicast: {error}", hint=_HINT) from error
        self._zeroconf.zeroconf.async_add_listener(_Listener(self._heard), None)

    async def say_goodbye(self) -> None:
        """Retract every announcement that stands: three goodbyes within a quarter of a second."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()

    async def close(self) -> None:
        """Leave the multicast group. Safe to call twice."""
        zeroconf, self._zeroconf = self._zeroconf, None
        for asker in self._askers:
            asker.close()
        self._askers.clear()
        if zeroconf is not None:
            await zeroconf.async_close()

    def announce(self, label: str, text: bytes, *, host: str, port: int, ttl_s: int) -> Announcement:
        """Answer for `label` from now on, and tell everybody: now and in a second (RFC 6762 section 8.3).

        Names are never used twice, so the second of probing for conflicts (section 8.1) is left out.
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
        self._opened().registry.async_add(info)
        self._broadcast(info, None)
        return Announcement(info, asyncio.get_running_loop().call_later(REPEAT_S, self._broadcast, info, None))

    def retract(self, announcement: Announcement) -> None:
        """Answer no more, and say goodbye (RFC 6762 section 10.1)."""
        announcement.repeat.cancel()
        self._opened().registry.async_remove(announcement.info)
        self._broadcast(announcement.info, 0)

    def tell(self, label: str, text: bytes, *, ttl_s: int) -> None:
        """Multicast one TXT record, once."""
        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        name = f"{label}.{self._type}"
        out.add_answer_at_time(DNSText(name, _TYPE_TXT, _CLASS_IN | _CLASS_UNIQUE, ttl_s, text, 0.0), 0)
        if self._zeroconf is not None:
            self._zeroconf.zeroconf.async_send(out)

    def ask_all(self, known: Iterable[str]) -> None:
        """Ask for every record but the known ones (RFC 6762 section 7.1)."""
        self._ask([DNSQuestion(self._type, _TYPE_PTR, _CLASS_IN)], list(known)[:MAX_KNOWN_ANSWERS])

    def ask_for(self, labels: Iterable[str]) -> None:
        """Ask for the records of some names, `MAX_QUESTIONS` at most."""
        names = list(labels)[:MAX_QUESTIONS]
        self._ask([DNSQuestion(f"{label}.{self._type}", _TYPE_TXT, _CLASS_IN) for label in names], [])

    def _ask(self, questions: list[DNSQuestion], known: list[str]) -> None:
        # Asked from a port of our own, every responder answers at once and to us alone (RFC 6762 section 6.7); from
        # port 5353, which all processes of a host share, an answer may be late by a second or reach another process.
        for asker in self._askers:
            asker.ask(self._query(questions, known, self._random.randrange(1, 65_536)))
        if self._zeroconf is not None and (self._ip_version is not IPVersion.V4Only or not self._askers):
            self._zeroconf.zeroconf.async_send(self._query(questions, known, 0))

    def _query(self, questions: list[DNSQuestion], known: list[str], message_id: int) -> DNSOutgoing:
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
            # Address records are shared by all names of an owner: no goodbye for them.
            zeroconf.async_send(zeroconf.generate_service_broadcast(info, ttl_s, broadcast_addresses=ttl_s is None))

    def _opened(self) -> Zeroconf:
        if self._zeroconf is None:
            raise Unreachable("mdns: the registry is not started", hint="await start() first")
        return self._zeroconf.zeroconf

    async def _open_askers(self) -> None:
        if self._ip_version is IPVersion.V6Only:
            return
        for address in self._interfaces or ipv4_addresses():
            if ":" in address:
                continue
            try:
                self._askers.append(await _Asker.open(address, self._heard))
            except OSError as error:
                if self._interfaces:
                    raise OSError(f"{address}: {error}") from error
                # One interface of many may be down or without multicast; the others serve.
                self._count("mdns_interfaces_failed")

    def _heard(self, name: str, text: bytes) -> None:
        label, dot, rest = name.partition(".")
        if dot and rest.lower() == self._type:
            self._receive(label.lower(), text)


@dataclass(frozen=True, slots=True)
class Announcement:
    """An announced name, and the timer that tells it again."""

    info: ServiceInfo
    repeat: asyncio.TimerHandle


class _Listener(RecordUpdateListener):
    def __init__(self, heard: TextReceiver) -> None:
        super().__init__()
        self._heard = heard

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:  # noqa: ARG002 - the library's signature
        for update in records:
            record = update.new
            # The library's cache tells its own expiry through the same door; that is not the owner speaking.
            if isinstance(record, DNSText) and not record.is_expired(now):
                self._heard(record.name, record.text)


class _Asker(asyncio.DatagramProtocol):
    """A socket of our own on one interface, for questions and the answers to them."""

    def __init__(self, heard: TextReceiver) -> None:
        self._heard = heard
        self._transport: asyncio.DatagramTransport | None = None
        self._asked: list[int] = []

    @classmethod
    async def open(cls, address: str, heard: TextReceiver) -> _Asker:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            opened.bind((address, 0))
            loop = asyncio.get_running_loop()
            _, asker = await loop.create_datagram_endpoint(lambda: cls(heard), sock=opened)
        except OSError:
            opened.close()
            raise
        return asker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport is a DatagramTransport in name only before 3.12.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def ask(self, query: DNSOutgoing) -> None:
        # Answers to the last few questions are still taken, no others.
        self._asked = [*self._asked[-7:], query.id]
        if self._transport is not None:
            for packet in query.packets():
                self._transport.sendto(packet, (_MDNS_ADDR, _MDNS_PORT))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > _MAX_MSG_ABSOLUTE or addr[1] != _MDNS_PORT:
            return
        message = DNSIncoming(data, addr)
        if message.valid and message.is_response() and message.id in self._asked:
            for record in message.answers():
                if isinstance(record, DNSText):
                    self._heard(record.name, record.text)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def ipv4_addresses() -> list[str]:
    """Every IPv4 address of this machine."""
    return [str(one.ip) for adapter in ifaddr.get_adapters() for one in adapter.ips if one.is_IPv4]


def _parse_interfaces(words: str) -> list[str]:
    addresses: list[str] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        try:
            ipaddress.ip_address(word)
        except ValueError as error:
            raise OptionError(f"mdns: interfaces: {word!r} is not an IP address", hint="as in 127.0.0.1") from error
        addresses.append(word)
    return addresses


def _addresses(host: str) -> list[str]:
    """The address records of an instance: its host if that is an address others can use."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return []
    return [] if parsed.is_unspecified else [host]
