"""What can be set about the HTTP resolver."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options of `resolver:http`."""

    url: str = option("", "Where the list of nodes is, as in https://example.org/nodes.json. {network} is filled in.")
    token: str = option("", "Sent as `Authorization: Bearer`, to the host of url alone.", secret=True)
    timeout_s: float = option(10.0, "Longest wait in seconds for the document: all redirects and addresses together.")
    max_bytes: int = option(262_144, "Longest document in bytes; reading stops there.")
    max_redirects: int = option(3, "Redirects followed.")
    allow_private: bool = option(
        False,
        "Follow redirects from a public host into private, loopback and link-local networks.",
    )
    ttl_s: float = option(60.0, "Seconds for which a document is kept that names no max-age.")
    ca_file: str = option("", "PEM file of certificate authorities to trust for https. Empty: those of this machine.")
