"""The session with one neighbour: numbered adverts, acknowledgements, digests, and when changes are advertised. Pure.

Adverts are numbered and acknowledged in order. The acknowledgements ride on adverts and digests of the other direction. The
session is reliable, so adverts are not repeated: if one is missing nevertheless, which the next advert, the next digest or a
missing acknowledgement shows, the full table is sent. While too many adverts are unacknowledged, changes wait and are combined.

There are two clocks. *Urgent* changes are first routes, withdrawals, and changes of what is offered. *Slow* ones are changes of
metrics, paths and load, for which at most one advert is sent per `SLOW_INTERVAL_S`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from micro_core.routing.entries import CHECKSUM_MODULUS, Entry, OfferChanges
from micro_core.routing.events import Ack, Advert, Digest, Effect, SendMessage, SeqnoRequest, SeqnoRequests, Solicit
from micro_core.routing.metric import SteadyCost
from micro_core.routing.policy import ExportScope, Policy
from micro_core.wire import limits

ACK_DELAY_S = 10.0
"""An acknowledgement is sent on its own after this time if nothing else was sent to the neighbour."""

MAX_UNACKNOWLEDGED = 16
"""An acknowledgement is sent on its own after this number of adverts."""

MAX_IN_FLIGHT = 64
"""Maximum number of unacknowledged adverts to one neighbour. Further changes wait and are combined."""

RESYNC_AFTER_S = 30.0
MAX_RESYNC_AFTER_S = 480.0
"""Seconds without an acknowledgement after which the full table is sent. Each time, the delay doubles."""

SOLICIT_RETRY_S = 10.0
MIN_FULL_TABLE_INTERVAL_S = 1.0
"""A neighbour that requests the full table more often waits."""

FULL_TABLE_WAIT_S = 1.0
"""On a new link, the router with the smaller node id sends its full table first. The other one waits for it, at most this time in
seconds: much of its own table is then unnecessary, because it has learned the same routes or offers from its neighbour."""

ENTRIES_PER_ADVERT = limits.MAX_EVENTS_PER_ADVERT // 4
MAX_ENTRIES_BYTES = limits.MAX_ADVERT_BYTES - 1_024

NEVER = float("inf")


class Neighbour:
    """One neighbour. The numbers of the adverts in flight are consecutive, and the last one is `number`."""

    __slots__ = (
        "_in_flight",
        "_resync_after_s",
        "_solicited_at",
        "_unacknowledged",
        "ack_at",
        "advertised_checksum",
        "advertised_count",
        "confirmed",
        "confirmed_offers",
        "cost",
        "due_at",
        "expires_at",
        "full_at",
        "full_table",
        "is_closing",
        "is_over_limit",
        "is_suspect",
        "is_unfiltered",
        "last_full_at",
        "next_number",
        "number",
        "offers_added",
        "origins",
        "peer",
        "policy",
        "received_checksum",
        "received_count",
        "requests",
        "slow",
        "slow_at",
        "slow_sent_at",
        "urgent",
        "urgent_at",
    )

    def __init__(self, peer: str, cost: SteadyCost, number: int, policy: Policy) -> None:
        self.peer = peer
        """Node id."""
        self.cost = cost
        """Cost of the link, including the cost that the policy adds."""
        self.number = number
        """Number of the last advert sent."""
        self.policy = policy
        self.is_unfiltered = policy.export is ExportScope.ALL and not policy.services and not policy.sites
        """The neighbour may see everything."""
        self.is_suspect = False
        self.is_closing = False
        """Whether one of the two nodes gives up the link."""
        """The neighbour does not answer: it may be unreachable, or busy."""
        self.due_at = NEVER
        """Nothing has to be sent before this, in clock seconds. A lower bound: `wake_at` computes when exactly."""
        # Scheduled changes. Dictionaries keep the order, so that runs are reproducible.
        self.urgent: dict[str, None] = {}
        self.urgent_at = NEVER
        self.slow: dict[str, None] = {}
        self.slow_at = NEVER
        self.slow_sent_at = -NEVER
        self.requests: dict[str, SeqnoRequest] = {}
        self.full_table: deque[str] | None = None
        """The origins of a full table that were not sent yet. None if no full table is being sent."""
        self.full_at = NEVER
        """When the requested full table is to be sent."""
        self.last_full_at = -NEVER
        # Digests.
        self.advertised_count = 0
        self.advertised_checksum = 0
        self.received_count = 0
        self.received_checksum = 0
        # Received routes.
        self.next_number = 0
        """Number of the next advert expected from the neighbour, 0 until a full table has begun."""
        self.confirmed: set[str] | None = None
        """While a full table is received: the origins that it has contained so far."""
        self.confirmed_offers: dict[str, set[str]] = {}
        """While the whole list of an origin is received in parts: the services that it has contained so far."""
        self.origins = 0
        """Number of candidates."""
        self.is_over_limit = False
        """Entries of the neighbour were refused and not recorded, so its digest cannot be compared."""
        self.offers_added = 0
        """Upper bound of the number of services that were added because the neighbour has sent them."""
        self.expires_at = 0.0
        """Clock seconds at which all routes of the neighbour expire unless a digest renews them."""
        self.ack_at = NEVER
        self._unacknowledged = 0
        self._solicited_at = -NEVER
        self._in_flight: deque[tuple[int, float]] = deque()
        self._resync_after_s = RESYNC_AFTER_S

    # ---------------------------------------------------------------- scheduling

    def schedule(self, origin: str, when: float) -> None:
        """Advertise what has changed about `origin` at `when` (clock seconds), or earlier with other urgent changes."""
        self.urgent[origin] = None
        if when < self.urgent_at:
            self.urgent_at = when
            self.due_at = min(self.due_at, when)

    def schedule_slow(self, origin: str, earliest: float, interval_s: float) -> None:
        """Advertise what has changed about `origin` not before `earliest`, and `interval_s` after the last slow advert."""
        self.slow[origin] = None
        if self.slow_at == NEVER:
            self.slow_at = max(earliest, self.slow_sent_at + interval_s)
            self.due_at = min(self.due_at, self.slow_at)

    def schedule_full_table(self, when: float) -> None:
        """Send the full table at `when` (clock seconds)."""
        self.full_at = when
        self.due_at = min(self.due_at, when)

    def request_seqno(self, request: SeqnoRequest) -> None:
        """Send a seqno request with the next message."""
        self.requests[request.origin] = request
        self.due_at = -NEVER

    def is_window_open(self) -> bool:
        """Return whether adverts may be sent."""
        return self.has_begun and len(self._in_flight) < MAX_IN_FLIGHT

    @property
    def has_begun(self) -> bool:
        """Whether the first full table was sent. No other advert may be sent before it."""
        return self.last_full_at > -NEVER

    def take_due(self, now: float) -> list[str]:
        """Return the origins whose changes are to be advertised now."""
        due = dict[str, None]()
        if self.urgent_at <= now:
            due, self.urgent, self.urgent_at = self.urgent, {}, NEVER
            if self.slow:
                for origin in due:
                    self.slow.pop(origin, None)
        if self.slow_at <= now:
            due.update(self.slow)
            self.slow, self.slow_at, self.slow_sent_at = {}, NEVER, now
        return list(due)

    def wake_at(self, now: float) -> float:
        """Return when the neighbour needs attention next, in clock seconds. Not later than `now` if something is due."""
        if self.requests or self._unacknowledged >= MAX_UNACKNOWLEDGED:
            return now
        when = min(self.ack_at, self.full_at)
        if self._in_flight:
            when = min(when, self._in_flight[0][1] + self._resync_after_s)
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                return when
        if self.full_table is not None:
            return now
        if not self.has_begun:
            return when
        return min(when, self.urgent_at, self.slow_at)

    @property
    def has_partial_view(self) -> bool:
        """Whether the policy hides services of an origin from the neighbour."""
        return bool(self.policy.services) or self.policy.export is ExportScope.BEST

    # ------------------------------------------------------------------ sending

    def count_advertised(self, count: int, checksum: int) -> None:
        """Add to the number and to the checksum of what is advertised."""
        self.advertised_count += count
        self.advertised_checksum = (self.advertised_checksum + checksum) % CHECKSUM_MODULUS

    def begin_full_table(self, origins: deque[str], now: float) -> None:
        """Begin to send the full table. It replaces all adverts in flight."""
        self.advertised_count = self.advertised_checksum = 0
        self.urgent, self.slow, self.urgent_at, self.slow_at = {}, {}, NEVER, NEVER
        self._in_flight.clear()
        self.full_table = origins
        self.full_at, self.last_full_at = NEVER, now

    def send(self, entries: list[Entry], now: float, *, begins: bool = False, ends: bool = False) -> list[Effect]:
        """Send entries in as many adverts as necessary. A full table without entries is an empty advert."""
        effects: list[Effect] = []
        chunks = list(_chunks(entries)) or ([[]] if begins or ends else [])
        for index, chunk in enumerate(chunks):
            self.number += 1
            self._in_flight.append((self.number, now))
            advert = Advert(
                number=self.number,
                acknowledged=self._acknowledge(),
                entries=tuple(chunk),
                begins=begins and index == 0,
                ends=ends and index == len(chunks) - 1,
            )
            effects.append(SendMessage(self.peer, advert))
        return effects

    def digest(self) -> Digest:
        """Return the digest of what is advertised to the neighbour, including all adverts in flight."""
        return Digest(self.number, self.advertised_count, self.advertised_checksum, self._acknowledge())

    def acknowledged(self, number: int) -> None:
        """Process the acknowledgement of all adverts up to `number`."""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            # Changes that waited for the window may be due.
            self.due_at = -NEVER
        while self._in_flight and self._in_flight[0][0] <= number:
            self._in_flight.popleft()

    def is_resync_due(self, now: float) -> bool:
        """Return whether an acknowledgement is overdue, so that the neighbour needs the full table. Doubles the delay."""
        if not self._in_flight or now < self._in_flight[0][1] + self._resync_after_s:
            return False
        self._resync_after_s = min(MAX_RESYNC_AFTER_S, 2 * self._resync_after_s)
        return True

    def take_ack(self, now: float) -> list[Effect]:
        """Return the acknowledgement that is to be sent on its own now, if there is one."""
        if self._unacknowledged >= MAX_UNACKNOWLEDGED or self.ack_at <= now:
            return [SendMessage(self.peer, Ack(self._acknowledge()))]
        return []

    def take_requests(self) -> list[Effect]:
        """Return the seqno requests of this moment as one message."""
        if not self.requests:
            return []
        requests, self.requests = tuple(self.requests.values()), {}
        return [
            SendMessage(self.peer, SeqnoRequests(requests[start : start + ENTRIES_PER_ADVERT]))
            for start in range(0, len(requests), ENTRIES_PER_ADVERT)
        ]

    def _acknowledge(self) -> int:
        self._unacknowledged, self.ack_at = 0, NEVER
        return max(0, self.next_number - 1)

    # ---------------------------------------------------------------- receiving

    def count_received(self, count: int, checksum: int) -> None:
        """Add to the number and to the checksum of what the neighbour advertises."""
        self.received_count += count
        self.received_checksum = (self.received_checksum + checksum) % CHECKSUM_MODULUS

    def forget_received(self) -> None:
        """Forget what was received, since its lease has expired. The next digest then differs."""
        self.received_count = -1

    def matches(self, digest: Digest) -> bool | None:
        """Compare a digest with what was received. Returns None while adverts are in flight."""
        if digest.number >= self.next_number:
            # Adverts arrive before the digest that includes them, so some were lost.
            return False
        if digest.number < self.next_number - 1 or self.confirmed is not None:
            return None
        is_match = (digest.count, digest.checksum) == (self.received_count, self.received_checksum)
        return is_match or self.is_over_limit

    def solicit(self, now: float) -> list[Effect]:
        """Request the full table, unless this was done a moment ago."""
        if now - self._solicited_at < SOLICIT_RETRY_S:
            return []
        self._solicited_at = now
        return [SendMessage(self.peer, Solicit())]

    def check_order(self, advert: Advert, now: float) -> tuple[bool, list[Effect]]:
        """Check the number of an advert. Returns whether the advert is to be applied, and the response.

        The first advert of a full table is always applied unless it is older than the last one applied.
        """
        if advert.begins and advert.number >= self.next_number:
            self.next_number, self._solicited_at = advert.number, -NEVER
            self.confirmed = set()
        if self.next_number == 0 or advert.number > self.next_number:
            # An advert was lost, or the link is new: this advert cannot be applied.
            return False, self.solicit(now)
        self._unacknowledged += 1
        if self._unacknowledged >= MAX_UNACKNOWLEDGED:
            self.due_at = -NEVER
        if self.ack_at == NEVER:
            self.ack_at = now + ACK_DELAY_S
            self.due_at = min(self.due_at, self.ack_at)
        if advert.number < self.next_number:
            return False, []
        self.next_number += 1
        return True, []


def _chunks(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Split `entries` into lists that fit into one advert each."""
    chunk: list[Entry] = []
    size = weight = 0
    for entry in entries:
        bytes_of_entry = len(entry.packed()) + 8
        weight_of_entry = 1 + len(entry.changed) + len(entry.removed) if type(entry) is OfferChanges else 1
        if chunk and (weight + weight_of_entry > ENTRIES_PER_ADVERT or size + bytes_of_entry > MAX_ENTRIES_BYTES):
            yield chunk
            chunk, size, weight = [], 0, 0
        chunk.append(entry)
        size += bytes_of_entry
        weight += weight_of_entry
    if chunk:
        yield chunk
