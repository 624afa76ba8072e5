"""Options of the QUIC tunnel."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicOptions:
    """Options of `tunnel:quic`: table `[plugins.quic]`, `--set quic.NAME=VALUE`, or `MICRO_QUIC__NAME`."""

    port: int = option(8085, "UDP port for addresses without a port.")
    max_datagram_bytes: int = option(
        0,
        "UDP payload size of a datagram, 1200 to 16383. 0: as large as the MTU of the route allows if the handshake "
        "succeeds with that size, otherwise 1200. Larger datagrams reduce the CPU load.",
    )
    congestion: str = option("cubic", "Congestion control algorithm: cubic or reno.")
    idle_timeout_s: float = option(
        10.0, "Seconds without packets after which QUIC closes a link. Nodes notice a dead peer after 3 s."
    )
    socket_buffer_bytes: int = option(
        4 * 1024 * 1024, "Size of the kernel's send and receive buffer of the UDP socket, as far as the system allows."
    )
    ack_delay_s: float = option(
        0.004, "Maximum seconds by which an acknowledgement is delayed to be sent with data; at most 0.025."
    )
    max_half_open: int = option(
        256, "Maximum number of handshakes in progress on a listener; further ones are dropped and counted."
    )
    retry_above: int = option(
        64, "Number of handshakes in progress above which a dialling node must first prove its address."
    )
    certificate_file: str = option(
        "", "PEM file with the listener's certificate. Empty: a new one at each start, which is safer."
    )
    key_file: str = option("", "PEM file with the unencrypted private key of certificate_file.")
