"""The export filter: which routes are advertised to a neighbour, and how they are withdrawn. Pure."""

from __future__ import annotations

from micro_core.routing.events import Announce, Withdraw
from micro_core.routing.neighbour import Key, Neighbour
from micro_core.routing.origin import Origin
from micro_core.routing.policy import ExportScope
from micro_core.routing.rib import Rib
from micro_core.routing.rib_entry import RibEntry


class ExportFilter:
    """Selects what is advertised from the services of this site (`origin`) and the learned routes (`rib`).

    Both are only read.
    """

    def __init__(self, origin: Origin, rib: Rib) -> None:
        self._origin = origin
        self._rib = rib

    def announcement(self, neighbour: Neighbour, key: Key) -> Announce | None:
        """Return the announcement of `key` for `neighbour`, None if nothing is to be advertised."""
        if self._origin.is_draining:
            return None
        origin, service = key
        is_own = origin == self._origin.router
        found = self._origin.announcement(service) if is_own else self._learned(key)
        # Split horizon: a route is not advertised to the routers on its path. The last of them is the next hop.
        if found is None or neighbour.peer in found.path or not neighbour.policy.permits_export(found, is_own=is_own):
            return None
        if neighbour.policy.export is ExportScope.BEST and not self._is_best(key, found):
            return None
        return found

    def withdrawal(self, key: Key) -> Withdraw:
        """Return the withdrawal of `key`. It is final only if the origin itself withdrew the service."""
        origin, service = key
        if origin == self._origin.router:
            seqno, is_final = (self._origin.incarnation, self._origin.sequence_of(service)), True
        else:
            entry = self._rib.entries.get(key, RibEntry())
            seqno, is_final = entry.newest_seqno, entry.is_withdrawn
        incarnation, sequence = seqno
        return Withdraw(origin=origin, incarnation=incarnation, sequence=sequence, service=service, is_final=is_final)

    def _learned(self, key: Key) -> Announce | None:
        entry = self._rib.entries.get(key)
        return entry.export(self._origin.router) if entry is not None else None

    def _is_best(self, key: Key, found: Announce) -> bool:
        """Return whether the origin of `key` has the lowest cost of all origins. This site precedes all others."""
        origin, service = key
        if origin == self._origin.router:
            return True
        if self._origin.announcement(service) is not None:
            return False
        others = [self._learned((other, service)) for other in self._rib.origins_of(service) if other != origin]
        return all((found.metric_us, origin) < (other.metric_us, other.origin) for other in others if other is not None)
