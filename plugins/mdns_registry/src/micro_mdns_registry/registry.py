"""The registry: registers by announcing, knows by listening (RFC 6762, RFC 6763).

Everybody listens; nobody polls. What goes over the network:

- a record when it is registered or changed: at once and a second later, then only when asked for;
- one beat per *process*, a third of its shortest lease apart, naming all its records in some 90 bytes. Beats, not
  records, renew leases, so standing traffic does not grow with the number or size of records;
- questions: twice on starting, and for records that a beat names and that did not arrive, after a random pause.

mDNS's own time to live cannot serve as the lease: caches keep pointers for at least 19 minutes, and refreshing every
record by questions is what makes storms.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

from micro_core.contract import BadRequest, DriverContext, Instance, Malformed, Overloaded, RegistryWatch, Unreachable
from micro_core.contract.names import split_host_port
from micro_core.contract.records import check_instance
from micro_core.contract.watching import WatchSet
from micro_mdns_registry.directory import GRACE_S, Directory
from micro_mdns_registry.multicast import MAX_QUESTIONS, Announcement, Multicast
from micro_mdns_registry.options import MdnsOptions
from micro_mdns_registry.texts import (
    MAX_LEASE_S,
    MAX_STANDING,
    Beat,
    decode_beat,
    decode_record,
    encode_beat,
    encode_record,
)

BEATS_PER_LEASE = 3
"""Two beats in a row may be lost before a record is."""

MIN_BEAT_S = 0.2
MAX_BEAT_S = 10.0
"""Beats also repair what was lost, so even the longest lease has one in ten seconds."""

URGENT_BEATS = 3
URGENT_BEAT_S = 0.12
"""A withdrawal is told three times, a moment apart."""

DRAIN_S = 0.05
"""Time to read waiting messages after this process was stopped, before leases are judged."""

MAX_ASK_PAUSE_S = 0.1
"""Listeners that miss the same record pause for a random part of this: one question may then serve them all."""

ASK_AGAIN_S = 0.1
"""The first question may be lost; the second lists what was heard, so it costs little."""

SETTLED_S = 0.1
"""First answers are complete when some have come, and for this long nothing new."""

NO_PORT = 1
"""SRV port of an instance without one (a unix socket): 0 is not allowed everywhere, and readers use the record."""

_LABEL = re.compile(r"([0-9a-f]{16})(?:-([0-9]{1,10}))?")


@dataclass(slots=True)
class _Own:
    """A record this object has registered."""

    instance: Instance
    sequence: int
    lease_s: float
    ends_at: float
    announcement: Announcement


def service_type(network: str, domain: str) -> str:
    """The DNS-SD type of one network and domain. A type has at most 15 characters (RFC 6763 section 7.2)."""
    digest = hashlib.sha256(f"{network}\0{domain}".encode()).hexdigest()
    return f"_micro-{digest[:8]}._tcp.local."


class MdnsRegistry:
    """The registry role over multicast DNS."""

    def __init__(self, options: MdnsOptions, context: DriverContext) -> None:
        self._options = options
        self._context = context
        self._now = context.clock.now
        self._count = context.counters.add
        # Not from context.random: two processes with one seed must still be two owners.
        self._owner = secrets.token_hex(8)
        self._directory = Directory(self._count)
        self._watches = WatchSet(context.counters)
        self._own: dict[str, _Own] = {}
        self._next_sequence = 1
        self._beat_number = 0
        self._urgent_beats = 0
        self._next_beat_at = math.inf
        self._wanted: set[tuple[str, int]] = set()
        self._ask_timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._heard_at = -math.inf
        self._caretaker: asyncio.Task[None] | None = None
        self._browsing: asyncio.Task[None] | None = None
        self._multicast = Multicast(
            service_type(context.network, options.domain or context.site),
            interfaces=options.interfaces,
            ip_version=options.ip_version,
            random=context.random,
            receive=self._receive,
            count=self._count,
        )

    async def start(self) -> None:
        """Join the multicast group and begin to listen and browse. Raises Unreachable."""
        await self._multicast.open()
        self._caretaker = asyncio.create_task(self._take_care(), name="mdns caretaker")
        self._browsing = asyncio.create_task(self._browse(), name="mdns browse")

    async def close(self) -> None:
        """Withdraw what was registered, end the watches, leave. Takes a quarter of a second if anything was."""
        tasks = [task for task in (self._caretaker, self._browsing) if task is not None]
        self._caretaker = self._browsing = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._ask_timer is not None:
            self._ask_timer.cancel()
        told = bool(self._own)
        for own in self._own.values():
            own.announcement.repeat.cancel()
        self._own.clear()
        if told:
            self._send_beat()
            await self._multicast.say_goodbye()
            self._send_beat()
        await self._multicast.close()
        await self._watches.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """See the contract. Also raises Overloaded beyond `MAX_STANDING` records of one process."""
        self._check_open()
        instance = check_instance(instance)
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(f"mdns: a lease of {lease_s} s", hint=f"between 0 and {MAX_LEASE_S:.0f} seconds")
        standing = self._own.get(instance.id)
        if standing is not None and standing.instance == instance and standing.lease_s == lease_s:
            standing.ends_at = self._now() + lease_s + GRACE_S
            self._directory.renew(self._owner, standing.sequence, self._now())
        else:
            self._publish(instance, lease_s, standing)

    async def deregister(self, instance: Instance) -> None:
        """Withdraw the record, if this object registered it: on mDNS only its owner can."""
        self._check_open()
        self._withdraw(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """What has been heard. The first call waits for first answers, at most `browse_s` after `start`."""
        self._check_open()
        if self._browsing is not None and not self._browsing.done():
            await asyncio.wait({self._browsing})
        return self._directory.instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow changes, beginning at once with what is known."""
        self._check_open()
        return self._watches.open(service, self._directory.instances(service))

    def _check_open(self) -> None:
        if self._caretaker is None:
            raise Unreachable("mdns: the registry is not open", hint="await start() first, and do not use it closed")

    def _publish(self, instance: Instance, lease_s: float, standing: _Own | None) -> None:
        text = encode_record(instance, lease_s)
        if standing is None and len(self._own) >= MAX_STANDING:
            raise Overloaded(f"mdns: {MAX_STANDING} records are registered by this process already")
        sequence = self._next_sequence
        host, port = _host_and_port(instance.address)
        announcement = self._multicast.announce(
            f"{self._owner}-{sequence}",
            text,
            host=host,
            port=port,
            ttl_s=self._options.ttl_s or math.ceil(lease_s),
        )
        # Raised together with `_own`: a beat must not call a record withdrawn that is about to be announced.
        self._next_sequence += 1
        now = self._now()
        self._own[instance.id] = _Own(instance, sequence, lease_s, now + lease_s + GRACE_S, announcement)
        self._watches.publish(self._directory.put(self._owner, sequence, instance, lease_s, now))
        if standing is not None:
            self._multicast.retract(standing.announcement)
        self._next_beat_at = min(self._next_beat_at, now + self._beat_interval_s())
        self._changed.set()

    def _withdraw(self, instance_id: str) -> None:
        own = self._own.pop(instance_id, None)
        if own is None:
            return
        self._watches.publish(self._directory.remove(self._owner, own.sequence))
        self._urgent_beats = URGENT_BEATS - 1
        self._send_beat()
        self._changed.set()
        self._multicast.retract(own.announcement)

    def _receive(self, label: str, text: bytes) -> None:
        matched = _LABEL.fullmatch(label)
        if matched is None:
            self._count("mdns_garbage")
            return
        owner, digits = matched.groups()
        if owner == self._owner:
            return
        if digits is None:
            self._receive_beat(owner, text)
        else:
            self._receive_record(owner, int(digits), text)
        self._changed.set()

    def _receive_record(self, owner: str, sequence: int, text: bytes) -> None:
        now = self._now()
        self._wanted.discard((owner, sequence))
        if not self._directory.is_wanted(owner, sequence):
            self._directory.renew(owner, sequence, now)
            return
        self._heard_at = now
        self._news.set()
        try:
            instance, lease_s = decode_record(text)
        except Malformed as error:
            self._count("mdns_garbage")
            self._context.logger.debug("record ignored", extra={"owner": owner, "reason": error.detail})
            self._directory.put_unreadable(owner, sequence, now)
        else:
            self._watches.publish(self._directory.put(owner, sequence, instance, lease_s, now))

    def _receive_beat(self, owner: str, text: bytes) -> None:
        try:
            beat = decode_beat(text)
        except Malformed:
            self._count("mdns_garbage")
            return
        events, missing = self._directory.beat(owner, beat, self._now())
        self._watches.publish(events)
        if missing:
            # What does not fit one question is asked for after the next beat.
            self._wanted.update((owner, sequence) for sequence in missing[:MAX_QUESTIONS])
            if self._ask_timer is None:
                pause = self._context.random.uniform(0.0, MAX_ASK_PAUSE_S)
                self._ask_timer = asyncio.get_running_loop().call_later(pause, self._ask_wanted)

    def _ask_wanted(self) -> None:
        self._ask_timer = None
        wanted = [f"{owner}-{number}" for owner, number in self._wanted if self._directory.is_wanted(owner, number)]
        self._wanted.clear()
        if wanted:
            self._count("mdns_repairs")
            self._multicast.ask_for(wanted)

    async def _browse(self) -> None:
        started = self._now()
        ends_at = started + self._options.browse_s
        self._multicast.ask_all(())
        await asyncio.sleep(min(ASK_AGAIN_S, self._options.browse_s / 2))
        asked_at = self._now()
        self._multicast.ask_all(f"{owner}-{sequence}" for owner, sequence in self._directory.known())
        while (now := self._now()) < ends_at:
            settled_at = max(self._heard_at, asked_at) + SETTLED_S if self._heard_at >= started else ends_at
            if settled_at <= now:
                return
            self._news.clear()
            await _wait(self._news, min(settled_at, ends_at) - now)

    async def _take_care(self) -> None:
        """Beat, let one's own records lapse, give up those of others: one timer for all of it."""
        while True:
            try:
                await self._tend()
            except Exception:  # the task's root
                self._count("mdns_failures")
                self._context.logger.exception("mdns caretaker failed; it goes on")
                await asyncio.sleep(URGENT_BEAT_S)

    async def _tend(self) -> None:
        wakes_at = min(
            self._next_beat_at,
            self._directory.next_expiry() or math.inf,
            min((own.ends_at for own in self._own.values()), default=math.inf),
        )
        self._changed.clear()
        await _wait(self._changed, None if wakes_at == math.inf else max(0.0, wakes_at - self._now()))
        now = self._now()
        if now > wakes_at + GRACE_S:
            # This process was stopped for a while: first read what has arrived meanwhile, then give up.
            await asyncio.sleep(DRAIN_S)
        self._lapse(now)
        if self._next_beat_at <= now:
            self._send_beat()
        self._watches.publish(self._directory.expire(self._now()))

    def _lapse(self, now: float) -> None:
        for instance_id in [own.instance.id for own in self._own.values() if own.ends_at <= now]:
            self._count("mdns_own_leases_lapsed")
            self._withdraw(instance_id)

    def _beat_interval_s(self) -> float:
        shortest = min((own.lease_s for own in self._own.values()), default=math.inf)
        return min(MAX_BEAT_S, max(MIN_BEAT_S, shortest / BEATS_PER_LEASE))

    def _send_beat(self) -> None:
        self._beat_number += 1
        beat = Beat(
            number=self._beat_number,
            next_sequence=self._next_sequence,
            standing=frozenset(own.sequence for own in self._own.values()),
        )
        interval_s = self._beat_interval_s()
        self._multicast.tell(self._owner, encode_beat(beat), ttl_s=math.ceil(interval_s * BEATS_PER_LEASE))
        if self._urgent_beats:
            self._urgent_beats -= 1
            self._next_beat_at = self._now() + URGENT_BEAT_S
        else:
            # Without records there is nothing to renew: silence.
            self._next_beat_at = self._now() + interval_s if self._own else math.inf


async def _wait(event: asyncio.Event, longest_s: float | None) -> None:
    """Wait for the event, or for so long.

    Not by `asyncio.wait_for`: before Python 3.12 it swallows a cancellation that comes together with the event, and
    `close` would wait for a task that goes on for ever.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(longest_s):
            await event.wait()


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        host, port = split_host_port(address.partition("://")[2] or address)
    except BadRequest:
        return "", NO_PORT
    return host, port or NO_PORT
