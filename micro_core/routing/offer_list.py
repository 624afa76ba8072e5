"""The versioned list of what an origin offers: services, interests in topics, and the default route. Pure.

The origin increments the version of its list with every change, and each entry has the version at which it changed last. A
router merges what its neighbours send: an entry never replaces one of a later version. So the order in which the changes
arrive over different neighbours does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from micro_core.contract.table import Offer
from micro_core.routing.entries import OfferChanges, OfferEntry, RemovedOffer, list_checksum
from micro_core.wire import limits

MAX_REMOVALS = 256
"""Number of removals that a list remembers. A neighbour that needs earlier ones gets the whole list."""

OFFERS_PER_ENTRY = limits.MAX_EVENTS_PER_ADVERT // 4
MAX_OFFERS_BYTES = limits.MAX_ADVERT_BYTES - 4_096
"""Bounds of one entry of an advert. Offers with long version texts reach the second one first."""


class OfferList:
    """The offers of one incarnation of an origin.

    `version` is the version up to which the list is complete: an unknown entry of at most this version was removed.
    Entries of later versions were received over neighbours that see only a part of the list.
    """

    __slots__ = (
        "_checksum",
        "_checksum_version",
        "_forgotten",
        "_is_ordered",
        "_last",
        "_removed",
        "_sent",
        "_sent_base",
        "entries",
        "incarnation",
        "is_settled",
        "version",
    )

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.version = 0
        self.is_settled = False
        """A neighbour has sent all that it sees of the list."""
        self.entries: dict[str, OfferEntry] = {}
        """By service, in the order of the versions unless `_is_ordered` is False."""
        self._removed: dict[str, int] | None = None
        self._forgotten = 0
        """Removals up to this version may have been forgotten."""
        self._sent: Sequence[OfferChanges] = ()
        self._sent_base = 0
        """The changes since this version as they were sent last, for other neighbours."""
        self._last = 0
        self._is_ordered = True
        self._checksum, self._checksum_version = 0, -1

    def checksum(self, origin: str, version: int) -> int:
        """Return the hash of a version of the list of `origin`, for digests."""
        if self._checksum_version != version:
            self._checksum, self._checksum_version = list_checksum(origin, self.incarnation, version), version
        return self._checksum

    def put(self, entry: OfferEntry) -> Offer | None:
        """Add or replace an offer, whatever its version. Returns the offer before."""
        offer, version = entry
        service = offer.service
        before = self.entries.pop(service, None)
        self.entries[service] = entry
        self._sent = ()
        if version >= self._last:
            self._last = version
        else:
            self._is_ordered = False
        if self._removed:
            self._removed.pop(service, None)
        return before.offer if before is not None else None

    def remove(self, service: str, version: int) -> None:
        """Remove an offer at this version."""
        self.entries.pop(service, None)
        self._sent = ()
        if self._removed is None:
            self._removed = {}
        self._removed.pop(service, None)
        self._removed[service] = version
        if len(self._removed) > MAX_REMOVALS:
            self._forgotten = max(self._forgotten, self._removed.pop(next(iter(self._removed))))

    def release(self) -> None:
        """Release the memory of the encoded changes. They are encoded again when they are needed."""
        self._sent = ()

    def forget_removals(self, version: int) -> None:
        """Record that removals up to this version are unknown: a neighbour has sent the whole list instead."""
        self._forgotten = max(self._forgotten, version)

    def knows(self, service: str, version: int) -> bool:
        """Return whether the list contains the state of a service at this version, or a later one."""
        entry = self.entries.get(service)
        if entry is not None:
            return entry.version >= version
        return version <= self.version or (self._removed is not None and self._removed.get(service, -1) >= version)

    def changes_since(self, origin: str, base: int) -> Sequence[OfferChanges]:
        """Return the changes from version `base` to `version`, or the whole list if earlier removals were forgotten."""
        if base < self._forgotten:
            base = 0
        if self._sent and self._sent[-1].version == self.version and self._sent_base == base:
            return self._sent
        removed: list[RemovedOffer] = []
        if base > 0 and self._removed:
            found = [RemovedOffer(service, version) for service, version in self._removed.items() if version > base]
            removed = [one for one in found if one.version <= self.version]
        changed = list(itertools.takewhile(lambda entry: entry.version > base, self._newest_first()))
        changed.reverse()
        changed = [entry for entry in changed if entry.version <= self.version]
        changes = list(self._in_parts(origin, base, self.version, changed, removed))
        self._sent, self._sent_base = changes, base
        return changes

    def view_changes(
        self, origin: str, advertised: dict[str, int], is_visible: Callable[[str], bool], *, is_whole: bool
    ) -> list[OfferChanges]:
        """Return the changes of the part of the list that a neighbour sees, and update `advertised` (service to version).

        Args:
            origin: Node id of the origin.
            advertised: The version of each service that was advertised to the neighbour.
            is_visible: Whether the neighbour may see a service.
            is_whole: Send the whole part: the neighbour knows nothing.
        """
        if is_whole:
            advertised.clear()
        changed = [
            entry
            for service, entry in self.entries.items()
            if advertised.get(service) != entry.version and is_visible(service)
        ]
        gone = [service for service in advertised if service not in self.entries or not is_visible(service)]
        removed = []
        for service in gone:
            del advertised[service]
            is_removed = service not in self.entries
            version = (self._removed or {}).get(service, self.version) if is_removed else 0
            removed.append(RemovedOffer(service, version))
        advertised.update((entry.offer.service, entry.version) for entry in changed)
        if not is_whole and not changed and not removed:
            return []
        version = max(1, self.version)
        return list(self._in_parts(origin, 0 if is_whole else version, version, changed, removed))

    def _newest_first(self) -> Iterator[OfferEntry]:
        if not self._is_ordered:
            ordered = sorted(self.entries.values(), key=lambda entry: entry.version)
            self.entries = {entry.offer.service: entry for entry in ordered}
            self._is_ordered = True
        return reversed(self.entries.values())

    def _in_parts(
        self, origin: str, base: int, version: int, changed: list[OfferEntry], removed: list[RemovedOffer]
    ) -> Iterator[OfferChanges]:
        """Split the changes into entries that fit into one advert each."""
        parts = list(_split(changed)) or [[]]
        rest = [removed[start : start + OFFERS_PER_ENTRY] for start in range(0, len(removed), OFFERS_PER_ENTRY)]
        if len(rest) == 1 and len(rest[0]) + len(parts[0]) <= OFFERS_PER_ENTRY:
            pairs = [(parts[0], rest[0]), *((part, list[RemovedOffer]()) for part in parts[1:])]
        else:
            pairs = [*((list[OfferEntry](), one) for one in rest), *((part, list[RemovedOffer]()) for part in parts)]
        yield from self._numbered(origin, base, version, pairs)

    def _numbered(
        self, origin: str, base: int, version: int, parts: list[tuple[list[OfferEntry], list[RemovedOffer]]]
    ) -> Iterator[OfferChanges]:
        for index, (changed, removed) in enumerate(parts):
            is_end = index == len(parts) - 1
            # The entries are ordered by version. Several entries may have the same version, so all parts but the last end
            # one version before that of their last entry.
            end = version if is_end else min(version, max(base, changed[-1].version - 1 if changed else base))
            yield OfferChanges(origin, self.incarnation, base, end, tuple(changed), tuple(removed), is_end)
            base = end


@dataclass(slots=True)
class Merged:
    """What a merge has changed."""

    changed: list[Offer] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    is_only_load: bool = True
    """Nothing but the load and the capacity of known services has changed."""

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def merge(
    offers: OfferList, changed: Iterable[OfferEntry], removed: Iterable[RemovedOffer], *, max_added: int
) -> tuple[Merged, int]:
    """Merge entries of a neighbour into a list.

    `max_added` is the number of services that may be added. Returns the changes, and the number of refused services.
    """
    merged, refused = Merged(), 0
    for entry in changed:
        offer, version = entry
        if offers.knows(offer.service, version):
            continue
        if offer.service not in offers.entries:
            if max_added <= 0:
                refused += 1
                continue
            max_added -= 1
        before = offers.put(entry)
        if before == offer:
            continue
        merged.changed.append(offer)
        if before is None or before.versions != offer.versions:
            merged.is_only_load = False
    for service, version in removed:
        if version == 0 or offers.knows(service, version):
            continue
        if service in offers.entries:
            merged.removed.append(service)
            merged.is_only_load = False
        # Recorded in any case: a neighbour may have learned the service from someone else.
        offers.remove(service, version)
    return merged, refused


def _split(entries: list[OfferEntry]) -> Iterator[list[OfferEntry]]:
    part: list[OfferEntry] = []
    size = 0
    for entry in entries:
        offer = entry.offer
        max_bytes = 64 + len(offer.service) + sum(4 * len(version) + 3 for version in offer.versions)
        if part and (len(part) >= OFFERS_PER_ENTRY or size + max_bytes > MAX_OFFERS_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += max_bytes
    if part:
        yield part
