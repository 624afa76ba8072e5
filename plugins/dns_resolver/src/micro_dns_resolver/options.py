"""What can be set about the DNS resolver."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsOptions:
    """Options of `resolver:dns`."""

    name: str = option("", "DNS name that stands for the network, as in net.example.org. Empty: the network's name.")
    nameservers: str = option(
        "", "Servers to ask, comma separated, as in 127.0.0.1:5353, [::1]. Empty: those of this machine."
    )
    timeout_s: float = option(5.0, "Longest wait in seconds for one question, all servers and retries together.")
    default_port: int = option(8085, "Port of nodes that are found by A or AAAA, which carry none.")
    mode: str = option("auto", "srv: SRV records only. address: A and AAAA only. auto: SRV, then A and AAAA.")
