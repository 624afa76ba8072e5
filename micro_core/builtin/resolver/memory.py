"""The resolver role for one process: whoever announces a candidate here is found by every node of the process."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract import Candidate, Driver, DriverContext, NoOptions, Resolver, hookimpl

_announced: dict[str, dict[object, Candidate]] = {}


def announce(network: str, candidate: Candidate) -> Callable[[], None]:
    """Make `candidate` part of the answer for `network`; returns the function that withdraws it."""
    token = object()
    _announced.setdefault(network, {})[token] = candidate

    def withdraw() -> None:
        candidates = _announced.get(network, {})
        candidates.pop(token, None)
        if not candidates:
            _announced.pop(network, None)

    return withdraw


class MemoryResolver:
    """Implements `micro_core.contract.resolver.Resolver`."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to leave."""

    async def resolve(self, network: str) -> list[Candidate]:
        """What was announced, lowest priority first, then in the order of the announcements."""
        return sorted(_announced.get(network, {}).values(), key=lambda candidate: candidate.priority)


def create(_options: NoOptions, _context: DriverContext) -> MemoryResolver:
    """Build the resolver."""
    return MemoryResolver()


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    return Driver(
        name="memory",
        summary="Nodes of this very process.",
        options=NoOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
