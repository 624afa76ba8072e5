"""A directory of the nodes of a lab, as DNS has it, and the resolvers that query it.

Answers may be partial or stale, and addresses are spelled in the different ways that real resolvers use.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from enum import Enum

from micro_core.contract.errors import Unreachable
from micro_core.contract.resolver import Candidate


class Spelling(Enum):
    """How a resolver writes an address."""

    BARE = "bare"
    """`host:port`, as in an A or SRV record. It stands for every driver in use."""
    SCHEME = "scheme"
    """`quic://host:port`, as in the registry, in records of other nodes and in most configurations."""
    MIXED = "mixed"
    """One or the other, at random for each answer."""


class Directory:
    """The addresses that the resolvers of a lab return: those of all nodes that ever started, and stale ones."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        """Address by the name of the node, in the order of the first start."""
        self.stale: list[str] = []
        """Addresses at which no node is any more."""
        self.is_available = True
        """Whether queries are answered."""


class LabResolver:
    """Implements `Resolver`: returns all entries of a directory in random order, or a part of them.

    Args:
        directory: The entries.
        own: Name of the node that asks. Real directories list it, too.
        scheme: The scheme for `Spelling.SCHEME`.
        spelling: How addresses are written.
        only: Names of the nodes that this resolver knows. None means all.
        source: Random numbers for the order.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        own: str,
        scheme: str,
        source: random.Random,
        spelling: Spelling = Spelling.BARE,
        only: Iterable[str] | None = None,
    ) -> None:
        self._directory = directory
        self._own = own
        self._scheme = scheme
        self._source = source
        self._spelling = spelling
        self._only = None if only is None else frozenset(only)

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def resolve(self, network: str) -> list[Candidate]:  # noqa: ARG002 - one directory serves one network
        """Return the entries. Raises Unreachable while the directory is not available."""
        if not self._directory.is_available:
            raise Unreachable("the directory does not answer")
        found = self._listed()
        self._source.shuffle(found)
        return [Candidate(address=self._spelled(address)) for address in found]

    def _listed(self) -> list[str]:
        known = self._directory.addresses.items()
        return [
            *(address for name, address in known if self._only is None or name in self._only),
            *self._directory.stale,
        ]

    def _spelled(self, address: str) -> str:
        is_bare = self._spelling is Spelling.BARE
        if self._spelling is Spelling.MIXED:
            is_bare = self._source.random() < 0.5
        return address if is_bare else f"{self._scheme}://{address}"


def stale_addresses(count: int) -> Sequence[str]:
    """Return addresses of a documentation network (RFC 5737) at which no node ever was."""
    return [f"192.0.2.{number}:8085" for number in range(1, count + 1)]
