"""Options of the HTTP resolver."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options of `resolver:http`."""

    url: str = option(
        "",
        "URL of the list of nodes, e.g. https://example.org/nodes.json. {network} is replaced by the name of the network.",
    )
    token: str = option("", "Bearer token, sent only to the host of url.", secret=True)
    timeout_s: float = option(10.0, "Time limit of a request in seconds, including all redirects and addresses.")
    max_bytes: int = option(262_144, "Largest accepted document in bytes.")
    max_redirects: int = option(3, "Maximum number of redirects.")
    allow_private: bool = option(
        False,
        "Follow redirects from a public host into private, loopback and link-local networks.",
    )
    ttl_s: float = option(60.0, "Seconds for which a document without max-age is cached.")
    ca_file: str = option(
        "", "PEM file of trusted certificate authorities for https. Empty: the certificate authorities of the system."
    )
