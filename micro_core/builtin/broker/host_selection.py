"""Which broker hosts a client connects to, and on which of them it publishes. Pure: callers pass `now`.

Clients subscribe on several hosts of their site and publish on one: the smallest id that answers. When that host dies, every
client publishes on the next one, where all subscribers are connected already. A host that has just been connected is
not published on for a while if there is another one, since other clients may connect to it later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_HOSTS = 3
"""Number of hosts that a client keeps connected. Hosts that do not answer are not counted."""

SETTLE_S = 6.0
"""Seconds after which all clients of the site have connected to a new host, even if they tried in vain shortly before."""


@dataclass(slots=True)
class HostState:
    """What a client knows about one host."""

    id: str
    address: str
    is_registered: bool = True
    """Whether the registry contains the host. A host that stops withdraws its record first."""
    is_connected: bool = False
    """Whether there is a session with all subscriptions."""
    settled_at: float = 0.0
    """When all clients of the site are expected to be connected to it, too."""
    has_failed: bool = False
    """Whether the last attempt to connect has failed."""

    @property
    def was_tried(self) -> bool:
        """Whether an attempt to connect has ended."""
        return self.is_connected or self.has_failed


def hosts_to_connect(hosts: Iterable[HostState]) -> list[HostState]:
    """Return the registered hosts that the client keeps connected, or tries to connect to."""
    found: list[HostState] = []
    alive = 0
    for host in sorted(hosts, key=lambda host: host.id):
        if not host.is_registered:
            continue
        if alive >= MAX_HOSTS:
            break
        found.append(host)
        alive += not host.has_failed
    return found


def host_to_publish_on(hosts: Iterable[HostState], now: float) -> HostState | None:
    """Return the connected host on which messages are published now, or None."""
    connected = [host for host in hosts if host.is_connected]
    return min(connected, key=lambda host: (not host.is_registered, now < host.settled_at, host.id), default=None)
