"""The resolver role from a list: `nodes = ["10.0.0.5:8085", "quic://b.example:8085"]`, tried in that order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from micro_core.contract import Candidate, Driver, DriverContext, OptionError, Resolver, hookimpl, option

MAX_ADDRESS_CHARS = 1_024
"""Longest address taken from a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticOptions:
    """Options of the static resolver."""

    nodes: tuple[str, ...] = option(
        (), "Addresses of nodes, in the order to try; one text separated by commas will do."
    )
    ttl_s: float = option(60.0, "Seconds until the network asks again.")


def split_addresses(value: str | Iterable[str]) -> tuple[str, ...]:
    """Addresses of a list, or of a text separated by commas: stripped, without empty ones and repetitions.

    Raises OptionError for something that cannot be an address.
    """
    parts = value.split(",") if isinstance(value, str) else [part for text in value for part in str(text).split(",")]
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for address in addresses:
        if len(address) > MAX_ADDRESS_CHARS or not address.isprintable() or " " in address:
            raise OptionError(f"{address!r:.60} is not an address", hint="write host:port or quic://host:port")
    return addresses


class StaticResolver:
    """Implements `micro_core.contract.resolver.Resolver`; every network has the same answer."""

    def __init__(self, options: StaticOptions) -> None:
        self._candidates = [
            Candidate(address=address, priority=position, ttl_s=options.ttl_s)
            for position, address in enumerate(split_addresses(options.nodes))
        ]

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to leave."""

    async def resolve(self, network: str) -> list[Candidate]:  # noqa: ARG002 - the role's argument
        """The nodes in the order they were given: each has a lower priority number than the next."""
        return list(self._candidates)


def create(options: StaticOptions, _context: DriverContext) -> StaticResolver:
    """Build the resolver; raises OptionError."""
    return StaticResolver(options)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    return Driver(
        name="static", summary="A list of addresses from the configuration.", options=StaticOptions, create=create
    )
