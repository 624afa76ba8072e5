"""The resolver role: from a network's name to addresses of nodes to dial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that might be dialled: `address` as a link driver takes it (`quic://host:port` or `host:port`).

    Several addresses of one node are joined by `|` (`quic://host:8085|tls://host:443`): they are ways to one link. With
    `host:port` alone every driver in use is tried there.

    Lower `priority` is tried first; among equals, `weight` sets the odds (RFC 2782). `ttl_s` tells how long the
    answer is good for.
    """

    address: str
    priority: int = 0
    weight: int = 0
    ttl_s: float = 60.0


class Resolver(Protocol):
    """Looks a network up. The whole answer replaces the earlier one."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def resolve(self, network: str) -> list[Candidate]:
        """Candidates in the order to try, possibly none. Raises Unreachable when the source is away."""
        ...
