"""The registry role: the instances on one site, as records with a lease."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class EndpointKind(enum.Enum):
    """How messages are exchanged with an endpoint."""

    UNARY = "unary"
    SERVER_STREAM = "server-stream"
    CLIENT_STREAM = "client-stream"
    BIDIRECTIONAL = "bidirectional"
    SUBSCRIBER = "subscriber"
    """Receives the messages of a topic; not called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One operation of an instance, or one subscription."""

    name: str
    """E.g. `Say.Hello`, or the topic of a SUBSCRIBER."""
    kind: EndpointKind = EndpointKind.UNARY
    request: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the request; empty if not known."""
    response: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the response; empty if not known."""
    idempotent: bool = False
    """Permits clients and hops to send a failed call again."""
    queue: str = ""
    """Queue group of a SUBSCRIBER; empty if it receives every message."""
    description: str = ""
    """Text for people, at most 2,000 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running copy of a service."""

    service: str
    """Name of the service, e.g. `go.micro.srv.greeter`."""
    id: str
    """Unique in the network, and constant while the process runs."""
    address: str
    """The `address` of the listener of a transport, e.g. `tcp://host:port` or `unix:///path`."""
    version: str = "latest"
    metadata: Mapping[str, str] = field(default_factory=dict)
    """At most 64 short texts by key, e.g. labels. Keys that begin with `micro-` are reserved for micro itself."""
    endpoints: tuple[Endpoint, ...] = ()


class RegistryEventKind(enum.Enum):
    """The kind of change of a registry."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    RESYNC = "resync"
    """Events were dropped because the watcher was too slow. It must read `instances()` again. `instance` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEvent:
    """A change, as a watch reports it. DELETED contains the last known record."""

    kind: RegistryEventKind
    instance: Instance | None


class RegistryWatch(Protocol):
    """An open watch: an asynchronous iterator of events."""

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        """Return the iterator. It ends when the watch or the registry is closed.

        A consumer can be cancelled while it waits for an event; no event is lost.
        """
        ...

    async def close(self) -> None:
        """End the iteration, also in a consumer that is waiting. Safe to call twice."""
        ...


class Registry(Protocol):
    """Records of instances, each with a lease that its owner renews.

    If the owner of a record stops renewing it, for example because the process was killed, the record is removed within
    its lease plus one second, and watchers receive DELETED. All methods except `close` raise `Unreachable` if the back end
    cannot be reached. Callers may cancel them; a cancelled `register` may or may not have taken effect.
    """

    async def start(self) -> None:
        """Connect to the back end. Called once, before all other methods."""
        ...

    async def close(self) -> None:
        """Remove the records that this object registered, end its watches, and disconnect. Safe to call twice."""
        ...

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew the record of `instance.id`.

        Callers renew a record about three times per lease. If the record is equal to the current one, only its lease is
        renewed, and watchers receive no event. Call `check_instance` first.

        Args:
            instance: The record.
            lease_s: Time in seconds after which the record is removed unless it is renewed.

        Raises:
            BadRequest: A field of the record is invalid.
            TooLarge: The record exceeds a limit of the contract or of the back end; the detail contains the limit.
            Unreachable: The back end cannot be reached.
        """
        ...

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of `instance.id` now. An unknown id is ignored."""
        ...

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the records of one service, or of all services, whose lease has not expired."""
        ...

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Report the changes of one service, or of all services.

        The watch first reports CREATED for each existing record. The events of one instance arrive in order. If a watcher
        is too slow, queued events are replaced by one RESYNC, so that the memory of a watch is bounded.
        """
        ...
