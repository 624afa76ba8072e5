"""The state of one neighbour: the adverts sent to it, its acknowledgements, and the routes that it advertised. Pure.

Adverts are numbered, acknowledged in order, and sent again until they are acknowledged. A neighbour that misses one
requests the full table. Several changes of a route are advertised as their net effect (coalescing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from micro_core.routing.events import Ack, Advert, Announce, Digest, Effect, SendMessage, Solicit, Withdraw
from micro_core.routing.metric import SteadyCost
from micro_core.routing.policy import Policy
from micro_core.wire import limits

INITIAL_RESEND_S = 1.0
MAX_RESEND_S = 8.0
"""Delay before an unacknowledged advert is sent again, in seconds. It doubles from the initial to the maximum value."""

RESYNC_AFTER_TRIES = 5
"""After this number of transmissions of an advert, the full table is sent instead."""

MAX_IN_FLIGHT = 64
"""Maximum number of unacknowledged adverts to one neighbour. Further changes wait and are combined."""

ENTRIES_PER_ADVERT = limits.MAX_EVENTS_PER_ADVERT // 4
MAX_ENTRIES_BYTES = limits.MAX_ADVERT_BYTES - 1_024
"""Bounds of a sent advert. Entries with long version texts reach the second one first."""

Key = tuple[str, str]
"""(origin, service)"""

ExportFunction = Callable[[Key], Announce | None]
"""Returns the announcement of a key for the neighbour, None if nothing is to be advertised."""


@dataclass(slots=True)
class _InFlight:
    advert: Advert
    sent_at: float
    tries: int = 1

    def due_at(self) -> float:
        return self.sent_at + min(MAX_RESEND_S, INITIAL_RESEND_S * 2.0 ** (self.tries - 1))


@dataclass(slots=True)
class Neighbour:
    """One neighbour. Invariant: the numbers of the adverts in flight are consecutive, and the last one is `number`."""

    peer: str
    """Node id."""
    cost: SteadyCost
    """Cost of the link, including the cost that the policy adds."""
    number: int
    """Number of the last advert sent."""
    policy: Policy = field(default_factory=Policy)
    advertised: dict[Key, Announce] = field(default_factory=dict)
    """The routes that the neighbour has from this router once all adverts in flight have arrived."""
    scheduled: set[Key] = field(default_factory=set)
    """The keys that may have changed and are to be advertised at `flush_at`."""
    flush_at: float | None = None
    next_number: int = 0
    """Number of the next advert expected from the neighbour, 0 until a full table has begun."""
    confirmed: set[Key] | None = None
    """While a full table is received: the routes that it has contained so far."""
    accepted: set[Key] = field(default_factory=set)
    """The routes of the neighbour that are in the routing information base."""
    received: dict[Key, int] = field(default_factory=dict)
    """Checksums of all routes that the neighbour advertises, including rejected ones: its digest covers both."""
    expires_at: float = 0.0
    """Clock seconds at which all routes of the neighbour expire unless a digest renews them."""
    advertised_checksum: int = 0
    received_checksum: int = 0
    _solicited_at: int = 0
    """The highest advert number for which the full table was requested, 0 if no request is pending."""
    _in_flight: deque[_InFlight] = field(default_factory=deque)
    _resend_at: float | None = None
    """No advert in flight is due before this. After an acknowledgement, it may be earlier than necessary."""

    # ------------------------------------------------------------------ sending

    def schedule(self, key: Key, when: float) -> None:
        """Advertise `key` at `when` (clock seconds) if it has changed by then, or earlier with other changes."""
        self.scheduled.add(key)
        if self.flush_at is None or when < self.flush_at:
            self.flush_at = when

    def send_full_table(self, keys: Iterable[Key], export: ExportFunction, now: float) -> list[Effect]:
        """Send the full table. It replaces all adverts in flight."""
        self.advertised.clear()
        self.advertised_checksum = 0
        self.scheduled.clear()
        self.flush_at = None
        self._in_flight.clear()
        self._resend_at = None
        entries: list[Announce | Withdraw] = []
        for key in keys:
            announce = export(key)
            if announce is not None:
                self._update_advertised(key, announce)
                entries.append(announce)
        return self._send(entries, now, is_full=True)

    def flush(self, export: ExportFunction, withdrawal: Callable[[Key], Withdraw], now: float) -> list[Effect]:
        """Advertise the net effect of the scheduled changes if `flush_at` is reached and adverts may be sent."""
        if self.flush_at is None or now < self.flush_at or len(self._in_flight) >= MAX_IN_FLIGHT:
            return []
        self.flush_at = None
        entries: list[Announce | Withdraw] = []
        for key in sorted(self.scheduled):
            wanted, before = export(key), self.advertised.get(key)
            if wanted == before:
                continue
            self._update_advertised(key, wanted)
            entries.append(wanted if wanted is not None else withdrawal(key))
        self.scheduled.clear()
        return self._send(entries, now, is_full=False) if entries else []

    def digest(self) -> Digest:
        """Return the digest of what is advertised to the neighbour, including all adverts in flight."""
        return Digest(self.number, len(self.advertised), self.advertised_checksum)

    def _update_advertised(self, key: Key, wanted: Announce | None) -> None:
        before = self.advertised.pop(key, None)
        if before is not None:
            self.advertised_checksum ^= before.checksum()
        if wanted is not None:
            self.advertised[key] = wanted
            self.advertised_checksum ^= wanted.checksum()

    def acknowledged(self, number: int) -> None:
        """Process the acknowledgement of all adverts up to `number`."""
        while self._in_flight and self._in_flight[0].advert.number <= number:
            self._in_flight.popleft()
        if not self._in_flight:
            self._resend_at = None

    def resend(self, now: float) -> list[Effect] | None:
        """Send overdue adverts again. Returns None if the neighbour needs the full table instead."""
        effects: list[Effect] = []
        if self._resend_at is None or now < self._resend_at:
            return effects
        for entry in self._in_flight:
            if entry.due_at() <= now:
                if entry.tries >= RESYNC_AFTER_TRIES:
                    return None
                entry.tries += 1
                entry.sent_at = now
                effects.append(SendMessage(self.peer, entry.advert))
        self._resend_at = min((entry.due_at() for entry in self._in_flight), default=None)
        return effects

    def wake_at(self) -> float | None:
        """Return when `resend` or `flush` must be called next, in clock seconds. None if nothing is pending."""
        if self.flush_at is None or len(self._in_flight) >= MAX_IN_FLIGHT:
            return self._resend_at
        return self.flush_at if self._resend_at is None else min(self.flush_at, self._resend_at)

    def _send(self, entries: list[Announce | Withdraw], now: float, *, is_full: bool) -> list[Effect]:
        chunks = _chunks(entries)
        effects: list[Effect] = []
        for index, chunk in enumerate(chunks):
            self.number += 1
            advert = Advert(
                number=self.number,
                entries=tuple(chunk),
                begins=is_full and index == 0,
                ends=is_full and index == len(chunks) - 1,
            )
            self._in_flight.append(_InFlight(advert, now))
            if self._resend_at is None:
                self._resend_at = now + INITIAL_RESEND_S
            effects.append(SendMessage(self.peer, advert))
        return effects

    # ---------------------------------------------------------------- receiving

    def record_received(self, key: Key, checksum: int) -> None:
        """Record that the neighbour advertised an entry with this checksum. A withdrawal has the checksum 0."""
        self.received_checksum ^= self.received.pop(key, 0) ^ checksum
        if checksum:
            self.received[key] = checksum

    def forget_received(self) -> None:
        """Delete the record of what the neighbour advertised. Its next digest then differs, unless it is empty."""
        self.received.clear()
        self.received_checksum = 0

    def matches(self, digest: Digest) -> bool | None:
        """Compare a digest with the record of received routes. Returns None while adverts are in flight."""
        if self.next_number == 0 or digest.number != self.next_number - 1 or self.confirmed is not None:
            return None
        return (digest.count, digest.checksum) == (len(self.received), self.received_checksum)

    def check_order(self, advert: Advert) -> tuple[bool, list[Effect]]:
        """Check the number of an advert. Returns whether the advert is to be applied, and the response.

        The first advert of a full table is always applied unless it is older than the last one applied.
        """
        if advert.begins and advert.number >= self.next_number:
            self.next_number, self._solicited_at = advert.number, 0
            self.confirmed = set()
            self.forget_received()
        if self.next_number == 0 or advert.number > self.next_number:
            # An advert was lost, or the link is new: this advert cannot be applied. Request the full table once, and
            # again when the neighbour resends an advert, which shows that the request was lost.
            is_resent = advert.number <= self._solicited_at
            is_first, self._solicited_at = self._solicited_at == 0, max(self._solicited_at, advert.number)
            return False, [SendMessage(self.peer, Solicit())] if is_first or is_resent else []
        response: list[Effect] = [SendMessage(self.peer, Ack(max(advert.number, self.next_number - 1)))]
        if advert.number < self.next_number:
            return False, response
        self.next_number += 1
        return True, response


def _chunks(entries: list[Announce | Withdraw]) -> list[list[Announce | Withdraw]]:
    """Split `entries` into lists that fit into one advert each. Returns one empty list if there are no entries."""
    chunks: list[list[Announce | Withdraw]] = [[]]
    size = 0
    for entry in entries:
        max_bytes = _max_encoded_bytes(entry)
        if chunks[-1] and (len(chunks[-1]) >= ENTRIES_PER_ADVERT or size + max_bytes > MAX_ENTRIES_BYTES):
            chunks.append([])
            size = 0
        chunks[-1].append(entry)
        size += max_bytes
    return chunks


def _max_encoded_bytes(entry: Announce | Withdraw) -> int:
    """Return an upper bound of the encoded size: four bytes per character of texts, one per character of ids."""
    if isinstance(entry, Withdraw):
        return 128 + len(entry.service)
    texts = sum(map(len, entry.versions)) + len(entry.site) + len(entry.network)
    return 128 + len(entry.service) + 4 * texts + 3 * len(entry.versions) + 40 * len(entry.path)
