"""The resolver role: finds addresses of nodes of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that may be dialled."""

    address: str
    """`quic://host:port` for one driver, or `host:port` for every driver in use.

    Several addresses of the same node are joined by `|`, e.g. `quic://host:8085|tls://host:443`. They are paths to one
    link.
    """
    priority: int = 0
    """Candidates with a lower value are dialled first (RFC 2782). From 0 to 65,535."""
    weight: int = 0
    """Relative probability of being dialled first among candidates of the same priority (RFC 2782). From 0 to 65,535."""
    ttl_s: float = 60.0
    """Time in seconds, not negative, after which the network should be resolved again."""
    node_id: str = ""
    """Id of the node, if the source knows it. Several candidates with the same id are addresses of one node."""


class Resolver(Protocol):
    """Looks up the nodes of a network."""

    async def start(self) -> None:
        """Acquire resources, e.g. open a connection. Called once, before `resolve`."""
        ...

    async def close(self) -> None:
        """Release all resources. Safe to call twice."""
        ...

    async def resolve(self, network: str) -> list[Candidate]:
        """Return the candidates of `network` in the order in which to dial them; the list may be empty.

        Each result replaces the previous one. The caller may cancel the lookup at any time, and resolves again after
        `Candidate.ttl_s` seconds or after an exception. The call does not block the event loop.

        Args:
            network: Name of the network, e.g. `go.micro`.

        Raises:
            Unreachable: The source does not respond. An empty list would remove all earlier candidates.
            MicroError: The source returns invalid data, e.g. `Malformed`.
        """
        ...
