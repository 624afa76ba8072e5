"""Options of the DNS resolver."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsOptions:
    """Options of `resolver:dns`."""

    name: str = option("", "DNS name to look up, e.g. net.example.org. Empty: the name of the network.")
    nameservers: str = option(
        "", "DNS servers, comma separated, e.g. 127.0.0.1:5353, [::1]. Empty: the servers that the system uses."
    )
    timeout_s: float = option(5.0, "Time limit of one query in seconds, including all servers and retries.")
    default_port: int = option(8085, "Port of nodes found by A or AAAA records, which contain no port.")
    mode: str = option(
        "auto", "srv: SRV records only. address: A and AAAA records only. auto: SRV records, then A and AAAA records."
    )
