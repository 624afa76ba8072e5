"""Options of the QUIC tunnel."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicOptions:
    """Set them in [plugins.quic], as --set quic.NAME=VALUE or MICRO_QUIC__NAME."""

    port: int = option(8085, "UDP port where the address to listen on names none.")
    max_datagram_bytes: int = option(
        0,
        "UDP payload of a datagram, 1200 to 16383; 0: what the route's MTU allows, proved by the handshake, else 1200. "
        "The cost of QUIC is per packet.",
    )
    congestion: str = option("cubic", "Congestion control: cubic or reno.")
    idle_timeout_s: float = option(10.0, "Seconds of silence after which QUIC gives a link up; nodes notice in 3.")
    socket_buffer_bytes: int = option(4 * 1024 * 1024, "Kernel buffer of the UDP socket, each way, as far as allowed.")
    ack_delay_s: float = option(0.004, "How long an acknowledgement may wait for data to travel with; at most 0.025.")
    max_half_open: int = option(256, "Handshakes under way on a listener; more are dropped and counted.")
    retry_above: int = option(64, "Handshakes under way beyond which a dialler must first prove its address.")
    certificate_file: str = option(
        "", "Certificate to listen with, PEM; empty: a fresh one at each start, which is safer."
    )
    key_file: str = option("", "Private key of certificate_file, PEM, not encrypted.")
