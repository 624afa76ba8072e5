"""The registry role: who is here, on *this* network, as records with a lease."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class EndpointKind(enum.Enum):
    """How an endpoint exchanges messages."""

    UNARY = "unary"
    SERVER_STREAM = "server-stream"
    CLIENT_STREAM = "client-stream"
    BIDIRECTIONAL = "bidirectional"
    SUBSCRIBER = "subscriber"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One thing an instance answers to.

    `name` is `Say.Hello`, or the topic of a SUBSCRIBER. `request` and `response` are JSON Schemas (empty when
    unknown). `queue` is a subscriber's queue group. `idempotent` allows a client to send a call again.
    """

    name: str
    kind: EndpointKind = EndpointKind.UNARY
    request: Mapping[str, object] = field(default_factory=dict)
    response: Mapping[str, object] = field(default_factory=dict)
    idempotent: bool = False
    queue: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running copy of a service.

    `id` is unique within the network and stable for the life of the process. `address` is
    `transport://host:port` (or `unix:///path`), as a transport's listener gave it. `metadata` holds short
    strings (labels, site, protocol).
    """

    service: str
    id: str
    address: str
    version: str = "latest"
    metadata: Mapping[str, str] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()


class RegistryEventKind(enum.Enum):
    """What became of an instance."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    RESYNC = "resync"
    """The watcher fell behind and events were dropped: read `instances()` again. `instance` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEvent:
    """A change seen by a watch; DELETED carries the last known record."""

    kind: RegistryEventKind
    instance: Instance | None


class RegistryWatch(Protocol):
    """A running watch. Iterate it; `close` ends the iteration."""

    def __aiter__(self) -> AsyncIterator[RegistryEvent]: ...

    async def close(self) -> None: ...


class Registry(Protocol):
    """Records of instances, each with a lease that its owner renews.

    A record whose owner stops renewing (crash, `kill -9`) disappears within its lease plus one second, and
    watchers see DELETED. Methods raise `Unreachable` when the back end is away.
    """

    async def start(self) -> None:
        """Connect. Called once, before anything else."""
        ...

    async def close(self) -> None:
        """Withdraw what this object registered, end its watches, disconnect. Safe to call twice."""
        ...

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew the record of `instance.id`. Callers renew at about a third of `lease_s`.

        A record equal to the one that stands renews silently: no event. Raises TooLarge when the record does
        not fit the back end, naming the bound.
        """
        ...

    async def deregister(self, instance: Instance) -> None:
        """Remove the record now. Unknown ids are ignored."""
        ...

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The live records of one service, or of all; empty when there are none."""
        ...

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow changes, beginning with one CREATED for each record that stands.

        Per instance, events arrive in order; a watcher that does not keep up gets RESYNC instead of
        unbounded memory.
        """
        ...
