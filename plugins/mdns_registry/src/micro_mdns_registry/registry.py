"""A registry that announces its records and collects those of others by multicast DNS (RFC 6762, RFC 6763).

Processes listen and do not poll. They send:

- a record when it is registered or changed: immediately and a second later, and afterwards only in answers;
- one heartbeat per *process* after each third of its shortest lease, which lists all its records in about 90 bytes.
  Heartbeats renew the leases, so the traffic does not grow with the number or size of the records;
- queries: two at the start, and later for records that a heartbeat lists and that did not arrive, after a random delay.

The TTL of mDNS records cannot be used as the lease, because caches keep pointers for at least 19 minutes, and refreshing
every record by queries would cause bursts of traffic.
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
from micro_mdns_registry.txt_records import (
    MAX_LEASE_S,
    MAX_RECORDS_PER_OWNER,
    Heartbeat,
    decode_heartbeat,
    decode_record,
    encode_heartbeat,
    encode_record,
)

HEARTBEATS_PER_LEASE = 3
"""A record survives the loss of two consecutive heartbeats."""

MIN_HEARTBEAT_S = 0.2
MAX_HEARTBEAT_S = 10.0
"""Maximum seconds between heartbeats, also with long leases, because heartbeats repair lost messages."""

WITHDRAWAL_HEARTBEATS = 3
WITHDRAWAL_INTERVAL_S = 0.12
"""After a withdrawal, this number of heartbeats is sent at this interval."""

DRAIN_S = 0.05
"""Seconds to read queued messages after this process was suspended, before leases are checked."""

MAX_QUERY_DELAY_S = 0.1
"""Maximum random delay before missing records are queried. One query can then serve all processes that miss a record."""

SECOND_QUERY_AFTER_S = 0.1
"""Seconds before the query at the start is repeated, in case it was lost. The second one lists the received records, so it
causes few answers."""

SETTLE_S = 0.1
"""The answers at the start are complete when no new record arrives for this number of seconds."""

NO_PORT = 1
"""SRV port of an instance without a port (Unix socket), because some software rejects 0. Other processes do not use it."""

_LABEL = re.compile(r"([0-9a-f]{16})(?:-([0-9]{1,10}))?")


@dataclass(slots=True)
class _OwnRecord:
    """A record that this object registered."""

    instance: Instance
    sequence: int
    lease_s: float
    ends_at: float
    announcement: Announcement


def service_type(network: str, domain: str) -> str:
    """Return the DNS-SD service type of a network and domain, with at most 15 characters (RFC 6763 section 7.2)."""
    digest = hashlib.sha256(f"{network}\0{domain}".encode()).hexdigest()
    return f"_micro-{digest[:8]}._tcp.local."


class MdnsRegistry:
    """A registry without a server, over multicast DNS. Creating it raises OptionError if an option is invalid."""

    def __init__(self, options: MdnsOptions, context: DriverContext) -> None:
        self._options = options
        self._context = context
        self._now = context.clock.now
        self._count = context.counters.add
        # Not from context.random, because two processes with the same seed must have different names.
        self._owner = secrets.token_hex(8)
        self._directory = Directory(self._count)
        self._watches = WatchSet(context.counters)
        self._own: dict[str, _OwnRecord] = {}
        self._next_sequence = 1
        self._heartbeat_number = 0
        self._extra_heartbeats = 0
        self._next_heartbeat_at = math.inf
        self._wanted: set[tuple[str, int]] = set()
        self._query_timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._record_received = asyncio.Event()
        self._received_at = -math.inf
        self._maintenance: asyncio.Task[None] | None = None
        self._browse_task: asyncio.Task[None] | None = None
        self._multicast = Multicast(
            service_type(context.network, options.domain or context.site),
            interfaces=options.interfaces,
            ip_version=options.ip_version,
            random=context.random,
            receive=self._receive,
            count=self._count,
        )

    async def start(self) -> None:
        """Join the multicast group, and start to listen and to query. Raises Unreachable if no interface allows it."""
        await self._multicast.open()
        self._maintenance = asyncio.create_task(self._maintain(), name="mdns maintenance")
        self._browse_task = asyncio.create_task(self._browse(), name="mdns browse")

    async def close(self) -> None:
        """Withdraw the records of this object, end its watches and leave the multicast group.

        This takes a quarter of a second if records were registered. Safe to call twice.
        """
        tasks = [task for task in (self._maintenance, self._browse_task) if task is not None]
        self._maintenance = self._browse_task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._query_timer is not None:
            self._query_timer.cancel()
        has_records = bool(self._own)
        for own in self._own.values():
            own.announcement.repeat.cancel()
        self._own.clear()
        if has_records:
            self._send_heartbeat()
            await self._multicast.retract_all()
            self._send_heartbeat()
        await self._multicast.close()
        await self._watches.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record.

        Raises:
            BadRequest: The record is invalid, or the lease is not between 0 and 86,400 s.
            Overloaded: This object has registered `MAX_RECORDS_PER_OWNER` records already.
            TooLarge: The record does not fit into one mDNS message.
            Unreachable: The registry is not open.
        """
        self._check_open()
        instance = check_instance(instance)
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(
                f"mdns: invalid lease of {lease_s} s", hint=f"use more than 0 and at most {MAX_LEASE_S:.0f} seconds"
            )
        previous = self._own.get(instance.id)
        if previous is not None and previous.instance == instance and previous.lease_s == lease_s:
            previous.ends_at = self._now() + lease_s + GRACE_S
            self._directory.renew(self._owner, previous.sequence, self._now())
        else:
            self._publish(instance, lease_s, previous)

    async def deregister(self, instance: Instance) -> None:
        """Withdraw the record if this object registered it. With mDNS, only the owner can do that.

        Raises Unreachable if the registry is not open.
        """
        self._check_open()
        self._withdraw(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the received records. The first call waits for answers, at most until `browse_s` after `start`.

        Raises Unreachable if the registry is not open.
        """
        self._check_open()
        if self._browse_task is not None and not self._browse_task.done():
            await asyncio.wait({self._browse_task})
        return self._directory.instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Open a watch that starts with the records received so far. Raises Unreachable if the registry is not open."""
        self._check_open()
        return self._watches.open(service, self._directory.instances(service))

    def _check_open(self) -> None:
        if self._maintenance is None:
            raise Unreachable(
                "mdns: the registry is not open", hint="call start() before, and do not use it after close()"
            )

    def _publish(self, instance: Instance, lease_s: float, previous: _OwnRecord | None) -> None:
        text = encode_record(instance, lease_s)
        if previous is None and len(self._own) >= MAX_RECORDS_PER_OWNER:
            raise Overloaded(f"mdns: this process has registered {MAX_RECORDS_PER_OWNER} records already")
        sequence = self._next_sequence
        host, port = _host_and_port(instance.address)
        announcement = self._multicast.announce(
            f"{self._owner}-{sequence}",
            text,
            host=host,
            port=port,
            ttl_s=self._options.ttl_s or math.ceil(lease_s),
        )
        # Increased together with the change of `_own`, because a heartbeat withdraws all lower numbers that it does not list.
        self._next_sequence += 1
        now = self._now()
        self._own[instance.id] = _OwnRecord(instance, sequence, lease_s, now + lease_s + GRACE_S, announcement)
        self._watches.publish(self._directory.put(self._owner, sequence, instance, lease_s, now))
        if previous is not None:
            self._multicast.retract(previous.announcement)
        self._next_heartbeat_at = min(self._next_heartbeat_at, now + self._heartbeat_interval_s())
        self._changed.set()

    def _withdraw(self, instance_id: str) -> None:
        own = self._own.pop(instance_id, None)
        if own is None:
            return
        self._watches.publish(self._directory.remove(self._owner, own.sequence))
        self._extra_heartbeats = WITHDRAWAL_HEARTBEATS - 1
        self._send_heartbeat()
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
            self._receive_heartbeat(owner, text)
        else:
            self._receive_record(owner, int(digits), text)
        self._changed.set()

    def _receive_record(self, owner: str, sequence: int, text: bytes) -> None:
        now = self._now()
        self._wanted.discard((owner, sequence))
        if not self._directory.is_wanted(owner, sequence):
            self._directory.renew(owner, sequence, now)
            return
        self._received_at = now
        self._record_received.set()
        try:
            instance, lease_s = decode_record(text)
        except Malformed as error:
            self._count("mdns_garbage")
            self._context.logger.debug("record ignored", extra={"owner": owner, "reason": error.detail})
            self._directory.put_unreadable(owner, sequence, now)
        else:
            self._watches.publish(self._directory.put(owner, sequence, instance, lease_s, now))

    def _receive_heartbeat(self, owner: str, text: bytes) -> None:
        try:
            heartbeat = decode_heartbeat(text)
        except Malformed:
            self._count("mdns_garbage")
            return
        events, missing = self._directory.apply_heartbeat(owner, heartbeat, self._now())
        self._watches.publish(events)
        if missing:
            # Records that do not fit into one query are queried after the next heartbeat.
            self._wanted.update((owner, sequence) for sequence in missing[:MAX_QUESTIONS])
            if self._query_timer is None:
                delay_s = self._context.random.uniform(0.0, MAX_QUERY_DELAY_S)
                self._query_timer = asyncio.get_running_loop().call_later(delay_s, self._query_wanted)

    def _query_wanted(self) -> None:
        self._query_timer = None
        wanted = [f"{owner}-{number}" for owner, number in self._wanted if self._directory.is_wanted(owner, number)]
        self._wanted.clear()
        if wanted:
            self._count("mdns_repairs")
            self._multicast.query(wanted)

    async def _browse(self) -> None:
        started = self._now()
        ends_at = started + self._options.browse_s
        self._multicast.query_all(())
        await asyncio.sleep(min(SECOND_QUERY_AFTER_S, self._options.browse_s / 2))
        queried_at = self._now()
        self._multicast.query_all(f"{owner}-{sequence}" for owner, sequence in self._directory.record_ids())
        while (now := self._now()) < ends_at:
            settled_at = max(self._received_at, queried_at) + SETTLE_S if self._received_at >= started else ends_at
            if settled_at <= now:
                return
            self._record_received.clear()
            await _wait(self._record_received, min(settled_at, ends_at) - now)

    async def _maintain(self) -> None:
        """Send heartbeats and expire records until cancelled."""
        while True:
            try:
                await self._run_maintenance()
            except Exception:  # outermost handler of the task
                self._count("mdns_failures")
                self._context.logger.exception("mdns maintenance failed")
                await asyncio.sleep(WITHDRAWAL_INTERVAL_S)

    async def _run_maintenance(self) -> None:
        wakes_at = min(
            self._next_heartbeat_at,
            self._directory.next_expiry() or math.inf,
            min((own.ends_at for own in self._own.values()), default=math.inf),
        )
        self._changed.clear()
        await _wait(self._changed, None if wakes_at == math.inf else max(0.0, wakes_at - self._now()))
        now = self._now()
        if now > wakes_at + GRACE_S:
            # This process was suspended for a while. Read the messages that arrived since then before expiring records.
            await asyncio.sleep(DRAIN_S)
        self._expire_own_records(now)
        if self._next_heartbeat_at <= now:
            self._send_heartbeat()
        self._watches.publish(self._directory.expire(self._now()))

    def _expire_own_records(self, now: float) -> None:
        for instance_id in [own.instance.id for own in self._own.values() if own.ends_at <= now]:
            self._count("mdns_own_leases_expired")
            self._withdraw(instance_id)

    def _heartbeat_interval_s(self) -> float:
        shortest = min((own.lease_s for own in self._own.values()), default=math.inf)
        return min(MAX_HEARTBEAT_S, max(MIN_HEARTBEAT_S, shortest / HEARTBEATS_PER_LEASE))

    def _send_heartbeat(self) -> None:
        self._heartbeat_number += 1
        heartbeat = Heartbeat(
            number=self._heartbeat_number,
            next_sequence=self._next_sequence,
            records=frozenset(own.sequence for own in self._own.values()),
        )
        interval_s = self._heartbeat_interval_s()
        self._multicast.send_text(
            self._owner, encode_heartbeat(heartbeat), ttl_s=math.ceil(interval_s * HEARTBEATS_PER_LEASE)
        )
        if self._extra_heartbeats:
            self._extra_heartbeats -= 1
            self._next_heartbeat_at = self._now() + WITHDRAWAL_INTERVAL_S
        else:
            # Without records there is nothing to renew, so no heartbeats are needed.
            self._next_heartbeat_at = self._now() + interval_s if self._own else math.inf


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for the event, at most for `timeout_s`.

    `asyncio.wait_for` is not used: before Python 3.12 it suppresses a cancellation that happens together with the event,
    and `close` would then wait forever for the task.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        host, port = split_host_port(address.partition("://")[2] or address)
    except BadRequest:
        return "", NO_PORT
    return host, port or NO_PORT
