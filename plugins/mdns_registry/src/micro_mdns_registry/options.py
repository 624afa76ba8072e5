"""What can be set about the mDNS registry."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class MdnsOptions:
    """Options of `registry:mdns`."""

    domain: str = option(
        "", "Registries see each other when network and domain are equal. Empty: the site's name, so sites stay apart."
    )
    interfaces: str = option(
        "", "Addresses of the interfaces to use, comma separated, as in 127.0.0.1. Empty: every interface."
    )
    ip_version: str = option("4", "Internet protocol to use: 4, 6 or both.")
    ttl_s: int = option(
        0, "Seconds for which other mDNS caches keep a record. 0: the record's lease, rounded up to a second."
    )
    browse_s: float = option(
        0.6,
        "Longest wait in seconds for first answers, paid once, by the first reader. Ends early once answers settle.",
    )
