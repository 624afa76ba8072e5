"""The QUIC connections of one UDP socket: which datagram is whose, and who may begin (RFC 9000 sections 5.2 and 8)."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # its public name, not marked for export
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)

from micro_core.contract import Closed, Counters, LinkLost, Unreachable
from micro_core.contract.names import join_host_port
from micro_quic_tunnel.connection import LaneConnection
from micro_quic_tunnel.datagrams import Control, Datagram, DatagramSocket, reply_control
from micro_quic_tunnel.link import QuicLink
from micro_quic_tunnel.retry import check_token, make_token

SMALLEST_INITIAL_BYTES = 1_200
CID_BYTES = 8
HANDSHAKE_S = 5.0
"""A handshake that takes longer is given up."""

VERSIONS = QuicConfiguration().supported_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """How a listener takes links."""

    make_configuration: Callable[[int], QuicConfiguration]
    """Given the bytes of the dialler's first datagram, which was padded to the size it wishes for."""
    accept: Callable[[QuicLink], None]
    binding: bytes
    max_half_open: int
    """Handshakes under way; more are not begun."""
    retry_above: int
    """Handshakes under way beyond which a dialler has to prove its address first."""


class QuicEndpoint:
    """Owns `sock`. With an `acceptance` it listens; without, it dials, and `peer` is the one it speaks with."""

    def __init__(
        self,
        sock: sockets.socket,
        *,
        counters: Counters,
        logger: logging.Logger,
        buffer_bytes: int,
        ack_delay_s: float,
        acceptance: Acceptance | None = None,
        peer: Any = None,
        on_empty: Callable[[QuicEndpoint], None],
    ) -> None:
        self.links: set[QuicLink] = set()
        self._counters = counters
        self._log = logger
        self._ack_delay_s = ack_delay_s
        self._acceptance = acceptance
        self._peer = peer
        self._on_empty = on_empty
        self._half_open: dict[QuicLink, asyncio.TimerHandle] = {}
        self._by_cid: dict[bytes, QuicLink] = {}
        self._retry_key = secrets.token_bytes(32)
        self._loop = asyncio.get_running_loop()
        self._datagrams = DatagramSocket(
            sock,
            buffer_bytes=buffer_bytes,
            counters=counters,
            received=self._received,
            refused=self._refused if peer is not None else None,
            peer=peer,
        )
        self.local = _address(self._datagrams.address)

    def dial(self, configuration: QuicConfiguration) -> QuicLink:
        """Begin a connection to the peer; `on_ready` of the link tells when it stands."""
        quic = LaneConnection(configuration=configuration, ack_delay_s=self._ack_delay_s)
        link = self._add(quic, dialed=True, address=self._peer, control=())
        quic.connect(self._peer, now=self._loop.time())
        link.open_lanes()
        return link

    def stop_accepting(self) -> None:
        """Take no new links; the socket closes with the last of those that stand, for it carries them."""
        self._acceptance = None
        for link in list(self._half_open):
            link.abandon(Closed("the listener was closed"), "listener closed")
        self._close_if_empty()

    async def close(self) -> None:
        """Close every link, then the socket."""
        self._acceptance = None
        await asyncio.gather(*(link.close() for link in list(self.links)))
        self._close_if_empty()

    # ------------------------------------------------------------- datagrams

    def _received(self, batch: list[Datagram]) -> None:
        touched: dict[QuicLink, None] = {}
        broken: set[QuicLink] = set()
        now = self._loop.time()
        for data, address, control in batch:
            link = self._link_for(data, address, control)
            if link is None or link in broken:
                continue
            try:
                link.quic.receive_datagram(data, address, now=now)
            except Exception:  # noqa: BLE001 - the root: logged and counted
                broken.add(link)
                self._broke(link)
            touched[link] = None
        for link in touched.keys() - broken:
            try:
                self._process(link)
            except Exception:  # noqa: BLE001 - the root: logged and counted
                self._broke(link)

    def _process(self, link: QuicLink) -> None:
        if link.ended.done():
            return
        if link in self._half_open and link.quic.has_understood_nothing():
            self._counters.add("quic_datagrams_malformed")
            link.end(Unreachable("no handshake"))
            return
        link.process()

    def _broke(self, link: QuicLink) -> None:
        """The root of what a datagram sets off: one peer's bytes may end one link."""
        self._counters.add("quic_internal_errors")
        self._log.exception("a link broke on what it received", extra={"remote": link.remote})
        # In a turn of its own: should this raise too, it stops no other link.
        self._loop.call_soon(link.abandon, LinkLost(f"the link to {link.remote} broke on what it received"), "broken")

    def _refused(self) -> None:
        """The peer's host has no such port. Believed while dialling only: such an answer is easily forged."""
        self._counters.add("quic_socket_refusals")
        for link in list(self.links):
            if not link.quic.has_understood_nothing():
                continue
            link.end(Unreachable("nobody listens on that UDP port"))

    def _link_for(self, data: bytes, address: Any, control: Control) -> QuicLink | None:
        # The common case, a short header: the first bit is 0, and our connection ids have 8 bytes.
        if data and not data[0] & 0x80:
            link = self._by_cid.get(data[1 : 1 + CID_BYTES])
            if link is None:
                self._counters.add("quic_datagrams_unknown")
            return link
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
        except ValueError:
            self._counters.add("quic_datagrams_malformed")
            return None
        link = self._by_cid.get(header.destination_cid)
        if link is not None or self._acceptance is None:
            return link
        return self._stranger(self._acceptance, header, len(data), address, control)

    # ------------------------------------------------------------- accepting

    def _stranger(
        self, acceptance: Acceptance, header: QuicHeader, size: int, address: Any, control: Control
    ) -> QuicLink | None:
        """A long header that belongs to no link: the beginning of one, if all is well."""
        if size < SMALLEST_INITIAL_BYTES or header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            self._counters.add("quic_datagrams_unknown")
            return None
        if header.version not in VERSIONS:
            self._negotiate_version(header, address, control)
            return None
        if header.packet_type != QuicPacketType.INITIAL:
            self._counters.add("quic_datagrams_unknown")
            return None
        if len(self._half_open) >= acceptance.max_half_open:
            self._counters.add("quic_handshakes_refused")
            return None
        original_cid: bytes | None = header.destination_cid
        retry_cid = None
        if header.token:
            retry_cid = header.destination_cid
            original_cid = check_token(
                self._retry_key, header.token, address=str(address), retry_cid=retry_cid, now=self._loop.time()
            )
            if original_cid is None:
                self._counters.add("quic_tokens_refused")
                return None
        elif len(self._half_open) >= acceptance.retry_above:
            self._retry(header, address, control)
            return None
        quic = LaneConnection(
            configuration=acceptance.make_configuration(size),
            ack_delay_s=self._ack_delay_s,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        return self._accept(acceptance, quic, header.destination_cid, address, control)

    def _accept(
        self, acceptance: Acceptance, quic: LaneConnection, cid: bytes, address: Any, control: Control
    ) -> QuicLink:
        link = self._add(quic, dialed=False, address=address, control=reply_control(control))
        link.channel_binding = acceptance.binding
        link.on_ready = self._ready
        self._by_cid[cid] = link
        self._half_open[link] = self._loop.call_later(HANDSHAKE_S, self._handshake_expired, link)
        return link

    def _ready(self, link: QuicLink) -> None:
        timer = self._half_open.pop(link, None)
        if timer is not None:
            timer.cancel()
        if self._acceptance is not None:
            self._acceptance.accept(link)

    def _handshake_expired(self, link: QuicLink) -> None:
        self._counters.add("quic_handshakes_expired")
        link.abandon(Unreachable("no handshake in time"), "no handshake in time")

    def _negotiate_version(self, header: QuicHeader, address: Any, control: Control) -> None:
        self._counters.add("quic_versions_unknown")
        answer = encode_quic_version_negotiation(
            source_cid=header.destination_cid, destination_cid=header.source_cid, supported_versions=VERSIONS
        )
        self._datagrams.send(answer, address, reply_control(control))

    def _retry(self, header: QuicHeader, address: Any, control: Control) -> None:
        assert header.version is not None
        self._counters.add("quic_retries")
        retry_cid = secrets.token_bytes(CID_BYTES)
        token = make_token(
            self._retry_key,
            address=str(address),
            original_cid=header.destination_cid,
            retry_cid=retry_cid,
            now=self._loop.time(),
        )
        answer = encode_quic_retry(
            version=header.version,
            source_cid=retry_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self._datagrams.send(answer, address, reply_control(control))

    # ----------------------------------------------------------------- links

    def _add(self, quic: LaneConnection, *, dialed: bool, address: Any, control: Control) -> QuicLink:
        send = functools.partial(self._datagrams.send, control=control) if control else self._datagrams.send
        link = QuicLink(
            quic, dialed=dialed, local=self.local, remote=_address(address), send=send, counters=self._counters
        )
        link.on_end = self._link_ended
        link.on_cid = self._cid_issued
        link.on_cid_retired = self._cid_retired
        self._by_cid[quic.host_cid] = link
        self.links.add(link)
        return link

    def _cid_issued(self, link: QuicLink, cid: bytes) -> None:
        self._by_cid[cid] = link

    def _cid_retired(self, link: QuicLink, cid: bytes) -> None:
        if self._by_cid.get(cid) is link:
            del self._by_cid[cid]

    def _link_ended(self, link: QuicLink) -> None:
        self.links.discard(link)
        timer = self._half_open.pop(link, None)
        if timer is not None:
            timer.cancel()
        for cid in [cid for cid, known in self._by_cid.items() if known is link]:
            del self._by_cid[cid]
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._acceptance is None and not self.links and not self._datagrams.is_closed:
            self._datagrams.close()
            self._on_empty(self)


def _address(sockaddr: Any) -> str:
    # An IPv4 dialler at a socket of both families shows as ::ffff:192.0.2.1 (RFC 4291 section 2.5.5.2).
    host: str = sockaddr[0]
    return f"quic://{join_host_port(host.removeprefix('::ffff:'), sockaddr[1])}"
