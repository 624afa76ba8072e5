"""The QUIC connections of one UDP socket: assignment of datagrams to links, and admission of new links.

See RFC 9000 sections 5.2 and 8.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]# public, but not marked for export
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)

from micro_core.contract import Closed, Counters, LinkLost, Unreachable
from micro_quic_tunnel.connection import LaneConnection
from micro_quic_tunnel.datagrams import Control, Datagram, DatagramSocket, reply_control, socket_address
from micro_quic_tunnel.link import QuicLink
from micro_quic_tunnel.retry import check_token, make_token

MIN_INITIAL_BYTES = 1_200
CID_BYTES = 8
HANDSHAKE_TIMEOUT_S = 5.0

VERSIONS = QuicConfiguration().supported_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptOptions:
    """How a listener accepts links."""

    make_configuration: Callable[[int], QuicConfiguration]
    """Called with the size of the first datagram, which the dialling node padded to the size that it wants to use."""
    accept: Callable[[QuicLink], None]
    binding: bytes
    max_half_open: int
    """Maximum number of handshakes in progress. Further ones are dropped."""
    retry_above: int
    """Number of handshakes in progress above which a dialling node must first prove its address."""


class QuicEndpoint:
    """Owns the UDP socket `sock` and its links.

    An endpoint with `accept_options` listens. One without them dials, and `peer` is the socket address of the other end.
    `on_empty` is called when the socket is closed.
    """

    def __init__(
        self,
        sock: sockets.socket,
        *,
        counters: Counters,
        logger: logging.Logger,
        buffer_bytes: int,
        ack_delay_s: float,
        accept_options: AcceptOptions | None = None,
        peer: Any = None,
        on_empty: Callable[[QuicEndpoint], None],
    ) -> None:
        self.links: set[QuicLink] = set()
        self._counters = counters
        self._log = logger
        self._ack_delay_s = ack_delay_s
        self._accept_options = accept_options
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
        self.local = socket_address(self._datagrams.address)

    def dial(self, configuration: QuicConfiguration) -> QuicLink:
        """Start a connection to the peer. `on_ready` of the link is called when it is established."""
        quic = LaneConnection(configuration=configuration, ack_delay_s=self._ack_delay_s)
        link = self._add(quic, dialed=True, address=self._peer, control=())
        quic.connect(self._peer, now=self._loop.time())
        link.open_lanes()
        return link

    def stop_accepting(self) -> None:
        """Accept no more links. The socket is closed together with the last established link, which still uses it."""
        self._accept_options = None
        for link in list(self._half_open):
            link.abandon(Closed("the listener was closed"), "listener closed")
        self._close_if_empty()

    async def close(self) -> None:
        """Close all links, then the socket."""
        self._accept_options = None
        await asyncio.gather(*(link.close() for link in list(self.links)))
        self._close_if_empty()

    # ------------------------------------------------------------- datagrams

    def _received(self, batch: list[Datagram]) -> None:
        touched: dict[QuicLink, None] = {}
        failed: set[QuicLink] = set()
        now = self._loop.time()
        for data, address, control in batch:
            link = self._link_for(data, address, control)
            if link is None or link in failed:
                continue
            try:
                link.quic.receive_datagram(data, address, now=now)
            except Exception:  # noqa: BLE001 - the outermost handler: logs and counts
                failed.add(link)
                self._fail(link)
            touched[link] = None
        for link in touched.keys() - failed:
            try:
                self._process(link)
            except Exception:  # noqa: BLE001 - the outermost handler: logs and counts
                self._fail(link)

    def _process(self, link: QuicLink) -> None:
        if link.ended.done():
            return
        if link in self._half_open and link.quic.has_decrypted_nothing():
            self._counters.add("quic_datagrams_malformed")
            link.end(Unreachable("the first datagram is not a valid handshake"))
            return
        link.process()

    def _fail(self, link: QuicLink) -> None:
        """Abandon a link after an exception, so that the bytes of one peer end at most one link."""
        self._counters.add("quic_internal_errors")
        self._log.exception("link failed on received data", extra={"remote": link.remote})
        # In a separate callback, so that an exception of `abandon` does not affect other links.
        error = LinkLost(f"internal error of the link to {link.remote} while it processed received data")
        self._loop.call_soon(link.abandon, error, "internal error")

    def _refused(self) -> None:
        """End links that are being dialled: the host of the peer reports that the port is closed.

        Established links ignore the report, because it is easily forged.
        """
        self._counters.add("quic_socket_refusals")
        for link in list(self.links):
            if not link.quic.has_decrypted_nothing():
                continue
            link.end(Unreachable("no process listens on that UDP port"))

    def _link_for(self, data: bytes, address: Any, control: Control) -> QuicLink | None:
        # The common case, a short header: its first bit is 0, and connection ids chosen by this end have 8 bytes.
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
        if link is not None or self._accept_options is None:
            return link
        return self._admit(self._accept_options, header, len(data), address, control)

    # ------------------------------------------------------------- accepting

    def _admit(
        self, accept_options: AcceptOptions, header: QuicHeader, size: int, address: Any, control: Control
    ) -> QuicLink | None:
        """Return a new link for a long header that belongs to no link, or None if it starts no valid handshake."""
        if size < MIN_INITIAL_BYTES or header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            self._counters.add("quic_datagrams_unknown")
            return None
        if header.version not in VERSIONS:
            self._negotiate_version(header, address, control)
            return None
        if header.packet_type != QuicPacketType.INITIAL:
            self._counters.add("quic_datagrams_unknown")
            return None
        if len(self._half_open) >= accept_options.max_half_open:
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
        elif len(self._half_open) >= accept_options.retry_above:
            self._retry(header, address, control)
            return None
        quic = LaneConnection(
            configuration=accept_options.make_configuration(size),
            ack_delay_s=self._ack_delay_s,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        return self._accept(accept_options, quic, header.destination_cid, address, control)

    def _accept(
        self, accept_options: AcceptOptions, quic: LaneConnection, cid: bytes, address: Any, control: Control
    ) -> QuicLink:
        link = self._add(quic, dialed=False, address=address, control=reply_control(control))
        link.channel_binding = accept_options.binding
        link.on_ready = self._ready
        self._by_cid[cid] = link
        self._half_open[link] = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_expired, link)
        return link

    def _ready(self, link: QuicLink) -> None:
        timer = self._half_open.pop(link, None)
        if timer is not None:
            timer.cancel()
        if self._accept_options is not None:
            self._accept_options.accept(link)

    def _handshake_expired(self, link: QuicLink) -> None:
        self._counters.add("quic_handshakes_expired")
        link.abandon(Unreachable(f"the handshake took more than {HANDSHAKE_TIMEOUT_S:.3g} s"), "handshake timeout")

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
            quic, dialed=dialed, local=self.local, remote=socket_address(address), send=send, counters=self._counters
        )
        link.on_end = self._link_ended
        link.on_fallback = self._link_fell_back
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
        for cid in [cid for cid, owner in self._by_cid.items() if owner is link]:
            del self._by_cid[cid]
        self._close_if_empty()

    def _link_fell_back(self, link: QuicLink) -> None:
        self._counters.add("quic_datagram_fallbacks")
        self._log.warning("path no longer carries large datagrams, using smaller ones", extra={"remote": link.remote})

    def _close_if_empty(self) -> None:
        if self._accept_options is None and not self.links and not self._datagrams.is_closed:
            self._datagrams.close()
            self._on_empty(self)
