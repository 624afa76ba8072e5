"""The driver `resolver:memory`: candidates that are announced in a process are found by all nodes of the process."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract import Candidate, Driver, DriverContext, NoOptions, Resolver, hookimpl

_announced: dict[str, dict[object, Candidate]] = {}


def announce(network: str, candidate: Candidate) -> Callable[[], None]:
    """Add `candidate` to the answer for `network`. Return a function that removes it."""
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
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    async def resolve(self, network: str) -> list[Candidate]:
        """Return the announced candidates, lowest priority first, then in the order of the announcements."""
        return sorted(_announced.get(network, {}).values(), key=lambda candidate: candidate.priority)


def create(_options: NoOptions, _context: DriverContext) -> MemoryResolver:
    """Return the resolver."""
    return MemoryResolver()


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    """Return the description of the driver."""
    return Driver(
        name="memory",
        summary="Nodes of this process only.",
        options=NoOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
