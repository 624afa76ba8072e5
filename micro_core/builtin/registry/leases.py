"""Records with leases: who stands, until when, and what changed. Pure: callers pass `now` in seconds."""

from __future__ import annotations

from typing import NamedTuple

from micro_core.contract.errors import BadRequest
from micro_core.contract.registry import Instance, RegistryEvent
from micro_core.contract.watching import changes

MAX_LEASE_S = 86_400.0
"""The longest lease believed, one day: a record nobody renews must go while somebody still remembers it."""


def check_lease(lease_s: float) -> float:
    """Return `lease_s`, or raise BadRequest unless 0 < lease_s <= MAX_LEASE_S."""
    if not 0 < lease_s <= MAX_LEASE_S:
        raise BadRequest(f"{lease_s!r:.40} is not a lease", hint=f"seconds above 0, at most {MAX_LEASE_S:g}")
    return lease_s


class Lease(NamedTuple):
    """A record that stands until `expires_at`; `owner` is whoever registered it last."""

    instance: Instance
    expires_at: float
    owner: object


class LeaseBook:
    """Records by id. Each change returns the events that tell of it, none for a renewal.

    Invariant: `wake_at` is never later than the earliest expiry. Renewals leave it alone, so it may be earlier:
    a wake that finds nothing due costs one pass over the book, at most once a lease.
    """

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self.wake_at: float | None = None

    def put(self, instance: Instance, *, expires_at: float, owner: object) -> list[RegistryEvent]:
        """Create, replace or renew the record of `instance.id`."""
        before = self._leases.get(instance.id)
        self._leases[instance.id] = Lease(instance, expires_at, owner)
        if self.wake_at is None or expires_at < self.wake_at:
            self.wake_at = expires_at
        return changes(before.instance if before is not None else None, instance)

    def remove(self, instance_id: str) -> list[RegistryEvent]:
        """Remove a record, if there is one."""
        lease = self._leases.pop(instance_id, None)
        return changes(lease.instance, None) if lease is not None else []

    def remove_owned(self, owner: object) -> list[RegistryEvent]:
        """Remove every record that `owner` registered last."""
        ids = [instance_id for instance_id, lease in self._leases.items() if lease.owner is owner]
        return [event for instance_id in ids for event in self.remove(instance_id)]

    def wake(self, now: float) -> list[RegistryEvent]:
        """Remove the records whose lease has run out."""
        if self.wake_at is None or now < self.wake_at:
            return []
        due = [instance_id for instance_id, lease in self._leases.items() if lease.expires_at <= now]
        events = [event for instance_id in due for event in self.remove(instance_id)]
        self.wake_at = min((lease.expires_at for lease in self._leases.values()), default=None)
        return events

    def instances(self, service: str | None = None) -> list[Instance]:
        """The records of a service, or of all, in the order they first came."""
        return [
            lease.instance for lease in self._leases.values() if service is None or lease.instance.service == service
        ]
