"""What a neighbour should hold of us, and how we say that it should hold it no more. Pure."""

from __future__ import annotations

from micro_core.routing.events import Announce, Withdraw
from micro_core.routing.neighbour import Key, Neighbour
from micro_core.routing.origin import Origin
from micro_core.routing.policy import Export
from micro_core.routing.rib import Known
from micro_core.routing.rib_entry import Learned


class Exports:
    """Over what this router offers (`origin`) and what is `known`; it changes neither."""

    def __init__(self, origin: Origin, known: Known) -> None:
        self._origin = origin
        self._known = known

    def to(self, neighbour: Neighbour, key: Key) -> Announce | None:
        """What `neighbour` should hold for `key`; None for nothing."""
        if self._origin.is_withdrawn:
            return None
        origin, service = key
        is_own = origin == self._origin.router
        found = self._origin.announce(service) if is_own else self._onward(key)
        # Split horizon: whom the way leads through is on its path, the next hop as its last.
        if found is None or neighbour.peer in found.path or not neighbour.policy.tells(found, is_own=is_own):
            return None
        if neighbour.policy.export is Export.BEST and not self._is_best(key, found):
            return None
        return found

    def withdrawal(self, key: Key) -> Withdraw:
        """Final when the origin itself withdrew; otherwise only our own way is gone, and others may have one."""
        origin, service = key
        if origin == self._origin.router:
            version, is_final = (self._origin.incarnation, self._origin.sequence_of(service)), True
        else:
            learned = self._known.ways.get(key, Learned())
            version, is_final = learned.newest, learned.is_withdrawn
        incarnation, sequence = version
        return Withdraw(origin=origin, incarnation=incarnation, sequence=sequence, service=service, is_final=is_final)

    def _onward(self, key: Key) -> Announce | None:
        learned = self._known.ways.get(key)
        return learned.announce_onward(self._origin.router) if learned is not None else None

    def _is_best(self, key: Key, found: Announce) -> bool:
        """Of all origins of the service, the one that costs least from here; our own before all others."""
        origin, service = key
        if origin == self._origin.router:
            return True
        if self._origin.announce(service) is not None:
            return False
        rivals = [self._onward((rival, service)) for rival in self._known.origins_of(service) if rival != origin]
        return all((found.metric_us, origin) < (rival.metric_us, rival.origin) for rival in rivals if rival is not None)
