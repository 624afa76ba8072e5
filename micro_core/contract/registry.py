"""The registry role: the instances on one site, as records with a lease."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class EndpointKind(enum.Enum):
    """How messages are exchanged with an endpoint."""

    UNARY = "unary"
    """One request, one response."""
    SERVER_STREAM = "server-stream"
    """One request, any number of responses."""
    CLIENT_STREAM = "client-stream"
    """Any number of requests, one response."""
    BIDIRECTIONAL = "bidirectional"
    """Any number of requests and responses, independent of each other."""
    SUBSCRIBER = "subscriber"
    """Receives the messages of a topic; not called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One operation of an instance, or one subscription."""

    name: str
    """E.g. `Say.Hello`, or the topic of a SUBSCRIBER."""
    kind: EndpointKind = EndpointKind.UNARY
    """How messages are exchanged with the endpoint."""
    request: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the request; empty if not known."""
    response: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the response; empty if not known."""
    idempotent: bool = False
    """Permits clients and hops to send a failed call again."""
    queue: str = ""
    """Queue group of a SUBSCRIBER; empty if it receives every message."""
    description: str = ""
    """Description for display, at most 2,000 characters."""


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
    """Version of the service, at most 128 characters."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """At most 64 short strings by key, e.g. labels. Keys that begin with `micro-` are reserved for micro itself."""
    endpoints: tuple[Endpoint, ...] = ()
    """At most 512 endpoints and subscriptions."""


class RegistryEventKind(enum.Enum):
    """The kind of change of a registry."""

    CREATED = "created"
    """A record was registered, or existed when the watch was opened."""
    UPDATED = "updated"
    """A record was replaced by a different one with the same id."""
    DELETED = "deleted"
    """A record was deregistered, or its lease expired."""
    RESYNC = "resync"
    """Events were dropped because the watcher was too slow. It must read `instances()` again. `instance` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEvent:
    """A change of a record, as a watch reports it."""

    kind: RegistryEventKind
    """The kind of change."""
    instance: Instance | None
    """The record after the change; for DELETED, the last known record; for RESYNC, None."""


class RegistryWatch(Protocol):
    """An open watch: an asynchronous iterator of events."""

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        """Return the iterator over the events. It ends when the watch or the registry is closed.

        A consumer can be cancelled while it waits for an event; no event is lost. Only one consumer may iterate.
        """
        ...

    async def close(self) -> None:
        """End the iteration, also in a consumer that is waiting. Safe to call twice."""
        ...


class Registry(Protocol):
    """Records of instances, each with a lease that its owner renews.

    If the owner of a record stops renewing it, for example because the process was killed, the record is removed within
    its lease plus one second, and watchers receive DELETED.

    No method blocks the event loop. Callers may cancel every method; a cancelled `register` or `deregister` may or may not
    have taken effect. After `close`, all methods raise `Unreachable`.
    """

    async def start(self) -> None:
        """Connect to the back end. Called once, before all other methods.

        Raises:
            Unreachable: The back end cannot be reached, and the driver does not retry in the background.
            ConfigError: The back end refuses the credentials or the options of the driver.
        """
        ...

    async def close(self) -> None:
        """Remove the records that this object registered, end its watches, and disconnect. Safe to call twice.

        A record that another object has registered since then is kept. If the back end cannot be reached, `close` returns
        without an exception, and the records remain until their leases expire.
        """
        ...

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew the record of `instance.id`.

        Callers renew a record about three times per lease. If the record is equal to the current one, only its lease is
        renewed, and watchers receive no event. A record is replaced atomically: readers see the old or the new one. The
        driver calls `check_instance` first.

        Args:
            instance: The record, of at most 64 KiB.
            lease_s: Time in seconds, greater than 0, after which the record is removed unless it is renewed.

        Raises:
            BadRequest: A field of the record is invalid.
            TooLarge: The record exceeds a limit of the contract or of the back end; the detail contains the limit.
            Unreachable: The back end cannot be reached.
        """
        ...

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of `instance.id` immediately. An unknown id is ignored, so the call can be repeated.

        Raises:
            Unreachable: The back end cannot be reached. The record remains until its lease expires.
        """
        ...

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the records whose lease has not expired.

        Invalid data in the back end is left out and counted.

        Args:
            service: Name of a service; None for all services.

        Raises:
            Unreachable: The back end cannot be reached.
        """
        ...

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Open a watch that reports the changes of one service, or of all services.

        The watch first reports CREATED for each existing record. The events of one instance arrive in order. If a watcher
        is too slow, queued events are replaced by one RESYNC, so that the memory of a watch is bounded. After an outage of
        the back end, the watch continues and reports the difference.

        Args:
            service: Name of a service; None for all services.

        Raises:
            Unreachable: The back end cannot be reached.
        """
        ...
