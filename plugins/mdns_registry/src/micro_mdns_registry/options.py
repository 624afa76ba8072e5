"""Options of the mDNS registry."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class MdnsOptions:
    """Options of `registry:mdns`."""

    domain: str = option(
        "", "Registries with the same network and domain share their records. Empty: the name of the site."
    )
    interfaces: str = option(
        "", "Comma-separated addresses of the interfaces to use, e.g. 127.0.0.1. Empty: all interfaces."
    )
    ip_version: str = option("4", "IP version: 4, 6 or both.")
    ttl_s: int = option(
        0, "Seconds for which other mDNS software caches a record. 0: the lease of the record, rounded up."
    )
    browse_s: float = option(
        0.6,
        "Maximum seconds for which the first reader waits for answers. The wait ends early when no more answers arrive.",
    )
