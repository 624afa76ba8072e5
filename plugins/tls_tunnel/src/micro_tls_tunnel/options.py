"""Options of the TLS tunnel."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Options of `tunnel:tls`: table `[plugins.tls]`, `--set tls.NAME=VALUE`, or `MICRO_TLS__NAME`."""

    host: str = option("", "Host for listen addresses without a host. Empty: all interfaces.")
    port: int = option(
        8085, "TCP port for addresses without a port. It can be the same number as the UDP port of QUIC."
    )
    certificate_file: str = option(
        "",
        "PEM file with the listener's certificate and its chain. Empty: a new certificate at each start, which is safer.",
    )
    key_file: str = option("", "PEM file with the unencrypted private key of certificate_file.")
    max_half_open: int = option(
        256,
        "Maximum number of TLS handshakes in progress on a listener. Above it, the oldest one of the address with the most is closed.",
    )
    handshake_timeout_s: float = option(5.0, "Maximum duration of a TLS handshake in seconds.")
    unsent_bytes: int = option(
        65536,
        "Maximum number of unsent bytes of a link in the kernel, behind which small calls have to wait. At least 4096.",
    )
    max_segment_bytes: int = option(
        1220,
        "Maximum TCP segment of accepted links in both directions, 536 to 65495. 1220 fits every path that carries IPv6, also "
        "if its MTU shrinks while a link is open. 0: as large as the interface allows.",
    )
