"""One neighbour: what it was told, what it has acknowledged, what is to be told next.

Adverts are numbered, acknowledged in order and sent again until they are; whoever misses one asks for everything. The
net effect of many changes is told once (coalescing). Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from micro_core.routing.events import Ack, Advert, Announce, Digest, Effect, SendMessage, Solicit, Withdraw
from micro_core.routing.metric import SteadyCost
from micro_core.routing.policy import Policy
from micro_core.wire import limits

RESEND_FIRST_S = 1.0
RESEND_LAST_S = 8.0
"""Bounds of the pause before an unacknowledged advert is sent again; it doubles between them."""

RESYNC_AFTER_TRIES = 5
"""After so many tries the neighbour gets the full table instead."""

MAX_UNACKNOWLEDGED = 64
"""Adverts on their way to one neighbour; further changes wait and are merged."""

ENTRIES_PER_ADVERT = limits.MAX_EVENTS_PER_ADVERT // 4
MAX_ENTRIES_BYTES = limits.MAX_ADVERT_BYTES - 1_024
"""Bounds of one advert sent; long version texts reach the second one first."""

Key = tuple[str, str]
"""(origin, service)"""

Export = Callable[[Key], Announce | None]
"""What the neighbour should hold for a key now: None for nothing."""


@dataclass(slots=True)
class _OnTheWay:
    advert: Advert
    sent_at: float
    tries: int = 1

    def due_at(self) -> float:
        return self.sent_at + min(RESEND_LAST_S, RESEND_FIRST_S * 2.0 ** (self.tries - 1))


@dataclass(slots=True)
class Neighbour:
    """State towards one neighbour. Invariant: numbers on the way are consecutive and end at `number`."""

    peer: str
    cost: SteadyCost
    number: int
    """Of the last advert sent."""
    policy: Policy = field(default_factory=Policy)
    told: dict[Key, Announce] = field(default_factory=dict)
    """What it holds from us, once all that is on the way has arrived."""
    dirty: set[Key] = field(default_factory=set)
    flush_at: float | None = None
    expected: int = 0
    """Number of the next advert from it; 0 until a full table has begun."""
    confirmed: set[Key] | None = None
    """During a full table: what it has named so far."""
    learned: set[Key] = field(default_factory=set)
    """What we hold from it."""
    heard: dict[Key, int] = field(default_factory=dict)
    """Checksums of all it tells us, those that we refused as well: what its digest is about."""
    expires_at: float = 0.0
    """When all we learned from it dies, unless a digest renews it."""
    told_sum: int = 0
    heard_sum: int = 0
    _solicited_at: int = 0
    _on_the_way: deque[_OnTheWay] = field(default_factory=deque)
    _resend_at: float | None = None
    """No advert on the way is due before; an acknowledgement may have made it early, which costs one look."""

    # ------------------------------------------------------------------ telling

    def mark(self, key: Key, when: float) -> None:
        """`key` may have changed; tell what came of it at `when`, or earlier if something else is due."""
        self.dirty.add(key)
        if self.flush_at is None or when < self.flush_at:
            self.flush_at = when

    def tell_everything(self, keys: Iterable[Key], export: Export, now: float) -> list[Effect]:
        """Send the full table anew; what was on the way is void."""
        self.told.clear()
        self.told_sum = 0
        self.dirty.clear()
        self.flush_at = None
        self._on_the_way.clear()
        self._resend_at = None
        entries: list[Announce | Withdraw] = []
        for key in keys:
            announce = export(key)
            if announce is not None:
                self._tells(key, announce)
                entries.append(announce)
        return self._send(entries, now, is_full=True)

    def flush(self, export: Export, withdrawal: Callable[[Key], Withdraw], now: float) -> list[Effect]:
        """Tell the net effect of what was marked, if its time has come and there is room."""
        if self.flush_at is None or now < self.flush_at or len(self._on_the_way) >= MAX_UNACKNOWLEDGED:
            return []
        self.flush_at = None
        entries: list[Announce | Withdraw] = []
        for key in sorted(self.dirty):
            wanted, held = export(key), self.told.get(key)
            if wanted == held:
                continue
            self._tells(key, wanted)
            entries.append(wanted if wanted is not None else withdrawal(key))
        self.dirty.clear()
        return self._send(entries, now, is_full=False) if entries else []

    def digest(self) -> Digest:
        """What it should hold of us, when all that is on the way has arrived."""
        return Digest(self.number, len(self.told), self.told_sum)

    def _tells(self, key: Key, wanted: Announce | None) -> None:
        before = self.told.pop(key, None)
        if before is not None:
            self.told_sum ^= before.checksum()
        if wanted is not None:
            self.told[key] = wanted
            self.told_sum ^= wanted.checksum()

    def acknowledged(self, number: int) -> None:
        while self._on_the_way and self._on_the_way[0].advert.number <= number:
            self._on_the_way.popleft()
        if not self._on_the_way:
            self._resend_at = None

    def resend(self, now: float) -> list[Effect] | None:
        """Send again what is overdue; None when the neighbour needs the full table."""
        effects: list[Effect] = []
        if self._resend_at is None or now < self._resend_at:
            return effects
        for entry in self._on_the_way:
            if entry.due_at() <= now:
                if entry.tries >= RESYNC_AFTER_TRIES:
                    return None
                entry.tries += 1
                entry.sent_at = now
                effects.append(SendMessage(self.peer, entry.advert))
        self._resend_at = min((entry.due_at() for entry in self._on_the_way), default=None)
        return effects

    def wake_at(self) -> float | None:
        if self.flush_at is None or len(self._on_the_way) >= MAX_UNACKNOWLEDGED:
            return self._resend_at
        return self.flush_at if self._resend_at is None else min(self.flush_at, self._resend_at)

    def _send(self, entries: list[Announce | Withdraw], now: float, *, is_full: bool) -> list[Effect]:
        chunks = _chunks(entries)
        effects: list[Effect] = []
        for place, chunk in enumerate(chunks):
            self.number += 1
            advert = Advert(
                number=self.number,
                entries=tuple(chunk),
                begins=is_full and place == 0,
                ends=is_full and place == len(chunks) - 1,
            )
            self._on_the_way.append(_OnTheWay(advert, now))
            if self._resend_at is None:
                self._resend_at = now + RESEND_FIRST_S
            effects.append(SendMessage(self.peer, advert))
        return effects

    # ---------------------------------------------------------------- listening

    def hears(self, key: Key, checksum: int) -> None:
        """It told an entry with this checksum; 0 for a withdrawal."""
        self.heard_sum ^= self.heard.pop(key, 0) ^ checksum
        if checksum:
            self.heard[key] = checksum

    def forget_heard(self) -> None:
        """What it told does not count any more: its next digest differs, unless it holds nothing."""
        self.heard.clear()
        self.heard_sum = 0

    def agrees(self, digest: Digest) -> bool | None:
        """Whether we hold what it believes us to; None while adverts are on the way, so that nobody can tell."""
        if self.expected == 0 or digest.number != self.expected - 1 or self.confirmed is not None:
            return None
        return (digest.count, digest.checksum) == (len(self.heard), self.heard_sum)

    def accepts(self, advert: Advert) -> tuple[bool, list[Effect]]:
        """Whether `advert` is next in order, and what to answer. A full table that begins is next unless it is old."""
        if advert.begins and advert.number >= self.expected:
            self.expected, self._solicited_at = advert.number, 0
            self.confirmed = set()
            self.forget_heard()
        if self.expected == 0 or advert.number > self.expected:
            # Something was lost on the way, or we have just come up: nothing can be built on this. Ask once, and
            # again when the neighbour repeats itself, which shows that the question was lost.
            is_repeated = advert.number <= self._solicited_at
            is_first, self._solicited_at = self._solicited_at == 0, max(self._solicited_at, advert.number)
            return False, [SendMessage(self.peer, Solicit())] if is_first or is_repeated else []
        answer: list[Effect] = [SendMessage(self.peer, Ack(max(advert.number, self.expected - 1)))]
        if advert.number < self.expected:
            return False, answer
        self.expected += 1
        return True, answer


def _chunks(entries: list[Announce | Withdraw]) -> list[list[Announce | Withdraw]]:
    """`entries` in order, in pieces that the neighbour takes; one empty piece for none."""
    chunks: list[list[Announce | Withdraw]] = [[]]
    size = 0
    for entry in entries:
        most = _most_bytes(entry)
        if chunks[-1] and (len(chunks[-1]) >= ENTRIES_PER_ADVERT or size + most > MAX_ENTRIES_BYTES):
            chunks.append([])
            size = 0
        chunks[-1].append(entry)
        size += most
    return chunks


def _most_bytes(entry: Announce | Withdraw) -> int:
    """A bound of the entry's encoded size: four bytes a character of texts, one of ids."""
    if isinstance(entry, Withdraw):
        return 128 + len(entry.service)
    texts = sum(map(len, entry.versions)) + len(entry.site) + len(entry.network)
    return 128 + len(entry.service) + 4 * texts + 3 * len(entry.versions) + 40 * len(entry.path)
