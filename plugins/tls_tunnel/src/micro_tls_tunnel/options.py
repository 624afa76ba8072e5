"""Options of the TLS tunnel."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Set them in [plugins.tls], as --set tls.NAME=VALUE or MICRO_TLS__NAME."""

    host: str = option("", "Host to listen on where the address to listen on names none; empty: every interface.")
    port: int = option(8085, "TCP port where an address names none. QUIC may have the same number: that one is UDP.")
    certificate_file: str = option(
        "", "Certificate (with its chain) to listen with, PEM; empty: a fresh one at each start, which is safer."
    )
    key_file: str = option("", "Private key of certificate_file, PEM, not encrypted.")
    max_half_open: int = option(
        256, "TLS handshakes under way on a listener; beyond them the oldest of the busiest address gives way."
    )
    handshake_timeout_s: float = option(5.0, "Seconds a stranger may take for the TLS handshake.")
    unsent_bytes: int = option(
        65536, "What the kernel may hold unsent of a link: small calls wait behind it. At least 4096."
    )
