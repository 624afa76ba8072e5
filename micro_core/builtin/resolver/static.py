"""The driver `resolver:static`: a list of addresses, e.g. `nodes = ["10.0.0.5:8085", "quic://b.example:8085"]`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from micro_core.contract import Candidate, Driver, DriverContext, OptionError, Resolver, hookimpl, option

MAX_ADDRESS_LENGTH = 1_024
"""Characters in one address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticOptions:
    """Options of `resolver:static`."""

    nodes: tuple[str, ...] = option(
        (), "Addresses of nodes in the order in which they are tried, as a list or separated by commas."
    )
    ttl_s: float = option(60.0, "Seconds until the network resolves again.")


def split_addresses(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return the addresses in `value`, a list or a comma-separated string, without empty entries and duplicates.

    Raises:
        OptionError: An address is too long, or contains spaces or unprintable characters.
    """
    parts = value.split(",") if isinstance(value, str) else [part for text in value for part in str(text).split(",")]
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for address in addresses:
        if len(address) > MAX_ADDRESS_LENGTH or not address.isprintable() or " " in address:
            raise OptionError(f"invalid address {address!r:.60}", hint="write host:port or quic://host:port")
    return addresses


class StaticResolver:
    """Implements `micro_core.contract.resolver.Resolver` with the same answer for every network."""

    def __init__(self, options: StaticOptions) -> None:
        self._candidates = [
            Candidate(address=address, priority=position, ttl_s=options.ttl_s)
            for position, address in enumerate(split_addresses(options.nodes))
        ]

    async def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    async def resolve(self, network: str) -> list[Candidate]:  # noqa: ARG002 - the role's argument
        """Return the nodes in the configured order, which is also the order of their priorities."""
        return list(self._candidates)


def create(options: StaticOptions, _context: DriverContext) -> StaticResolver:
    """Return the resolver. Raises OptionError."""
    return StaticResolver(options)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    """Return the description of the driver."""
    return Driver(
        name="static", summary="A list of addresses from the configuration.", options=StaticOptions, create=create
    )
