"""Records with leases: which are valid, until when, and which events a change causes. Pure: callers pass `now`."""

from __future__ import annotations

from typing import NamedTuple

from micro_core.contract.errors import BadRequest
from micro_core.contract.registry import Instance, RegistryEvent
from micro_core.contract.watching import changes

MAX_LEASE_S = 86_400.0
"""The longest lease, one day. It limits how long a record that is no longer renewed can mislead callers."""


def check_lease(lease_s: float) -> float:
    """Return `lease_s`.

    Raises:
        BadRequest: The value is not in 0 < lease_s <= MAX_LEASE_S.
    """
    if not 0 < lease_s <= MAX_LEASE_S:
        raise BadRequest(f"invalid lease {lease_s!r:.40}", hint=f"seconds above 0, at most {MAX_LEASE_S:g}")
    return lease_s


class Lease(NamedTuple):
    """A record that is valid until `expires_at`. `owner` is the object that registered it last."""

    instance: Instance
    expires_at: float
    owner: object


class LeaseBook:
    """Records by the id of the instance. Each method that changes a record returns the events; a renewal has none.

    Invariant: `wake_at` is not later than the earliest expiry. Renewals do not update it, so it may be too early. A call of
    `wake` that removes nothing costs one pass over all records, at most once per lease.
    """

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self.wake_at: float | None = None
        """When to call `wake`; None without records."""

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
        """Remove the records whose lease has expired."""
        if self.wake_at is None or now < self.wake_at:
            return []
        expired = [instance_id for instance_id, lease in self._leases.items() if lease.expires_at <= now]
        events = [event for instance_id in expired for event in self.remove(instance_id)]
        self.wake_at = min((lease.expires_at for lease in self._leases.values()), default=None)
        return events

    def instances(self, service: str | None = None) -> list[Instance]:
        """Return the records of one service, or of all, in the order in which they were created."""
        return [
            lease.instance for lease in self._leases.values() if service is None or lease.instance.service == service
        ]
