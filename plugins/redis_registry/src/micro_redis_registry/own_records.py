"""The records registered by one registry object: create, renew, restore and deregister them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.contract import DriverContext, Instance, MicroError, Unreachable, check_instance
from micro_redis_registry.encoding import encode_record
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.scripts import DEREGISTER, POLL, REGISTER, Script
from micro_redis_registry.server import Server


@dataclass(slots=True)
class OwnRecord:
    """A record of this registry. `ends_at` is the end of its lease; `is_confirmed` is set once the server has stored it.

    `source` is what was registered, `instance` a checked copy of it.
    """

    source: Instance
    instance: Instance
    encoded: bytes
    lease_s: float
    ends_at: float
    is_confirmed: bool = False


class OwnRecords:
    """The own records by id. `owner` marks them on the server, so that records taken over by others are left alone."""

    def __init__(self, *, server: Server, namespace: Namespace, owner: str, context: DriverContext) -> None:
        self._server = server
        self._namespace = namespace
        self._owner = owner
        self._context = context
        self._now = context.clock.now
        self._records: dict[str, OwnRecord] = {}
        self._pending: dict[str, asyncio.Task[None]] = {}
        self._clock_offset_ms: float | None = None

    def __len__(self) -> int:
        return len(self._records)

    def active(self) -> list[OwnRecord]:
        """Return the confirmed records whose lease has not ended; remove records whose lease has ended."""
        now = self._now()
        for instance_id in [record.instance.id for record in self._records.values() if record.ends_at <= now]:
            del self._records[instance_id]
        return [record for record in self._records.values() if record.is_confirmed]

    def checked(self, source: Instance) -> tuple[Instance, bytes]:
        """Return a checked copy of `source` and its encoding. Raises BadRequest or TooLarge.

        The renewal of a record passes the same object, which is checked and encoded once only.
        """
        known = self._records.get(source.id)
        if known is not None and known.source is source and known.instance.metadata == source.metadata:
            return known.instance, known.encoded
        instance = check_instance(source)
        return instance, encode_record(instance)

    async def register(self, source: Instance, instance: Instance, encoded: bytes, lease_s: float) -> None:
        """Create, replace or renew the record. `instance` and `encoded` are those of `checked(source)`.

        A cancelled call is still completed in the background. Raises the errors of `Server.run`.
        """
        await self._in_order(instance.id, lambda: self._register(source, instance, encoded, lease_s))

    async def deregister(self, instance_id: str) -> None:
        """Remove the record, even if another registry registered it. Raises the errors of `Server.run`."""

        async def remove() -> None:
            self._records.pop(instance_id, None)
            await self._remove(instance_id, is_own_only=False)

        await self._in_order(instance_id, remove)

    async def restore(self, own: OwnRecord) -> None:
        """Store a lost record again for the rest of its lease, unless another registry has taken it over.

        Raises the errors of `Server.run`.
        """

        async def put() -> None:
            left_s = own.ends_at - self._now()
            if self._records.get(own.instance.id) is own and left_s > 0:
                await self._put(own.instance, own.encoded, left_s, is_restoring=True)
                self._context.counters.add("redis_records_restored")

        await self._in_order(own.instance.id, put)

    def release(self, own: OwnRecord) -> None:
        """Give up a record that another registry has taken over or deregistered, until it is registered again."""
        if self._records.get(own.instance.id) is own:
            del self._records[own.instance.id]

    async def close(self) -> None:
        """Deregister all records that are still ours. Failures are counted and logged; those leases end on their own."""
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        records, self._records = self._records, {}
        outcomes = await asyncio.gather(
            *(self._remove(instance_id, is_own_only=True) for instance_id in records), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, MicroError):
                raise failure
        if failures:
            self._context.counters.add("redis_deregistrations_failed", len(failures))
            self._context.logger.warning(
                "redis deregistration failed; the leases will expire", extra={"reason": str(failures[0])}
            )

    async def _in_order(self, instance_id: str, act: Callable[[], Awaitable[None]]) -> None:
        """Run `act` after all pending actions on the same record, and complete it even if the caller is cancelled.

        The server processes its connections in any order: an abandoned renewal could be executed after a deregistration
        and create the record again.
        """
        earlier = self._pending.get(instance_id)

        async def act_after() -> None:
            if earlier is not None:
                await asyncio.wait({earlier})
            await act()

        def finished(task: asyncio.Task[None]) -> None:
            if self._pending.get(instance_id) is task:
                del self._pending[instance_id]
            if not task.cancelled():
                task.exception()  # mark as retrieved, in case the caller was cancelled

        task = asyncio.create_task(act_after(), name="redis record change")
        self._pending[instance_id] = task
        task.add_done_callback(finished)
        await asyncio.shield(task)

    async def _register(self, source: Instance, instance: Instance, encoded: bytes, lease_s: float) -> None:
        ends_at = self._now() + lease_s
        existing = self._records.get(instance.id)
        if existing is None:
            # If the response is lost, `close` still deregisters the record.
            self._records[instance.id] = OwnRecord(source, instance, encoded, lease_s, ends_at)
        elif existing.encoded == encoded:
            # Extend the lease even if the server cannot be reached now.
            existing.ends_at, existing.lease_s = ends_at, lease_s
        await self._put(instance, encoded, lease_s, is_restoring=False)
        self._records[instance.id] = OwnRecord(source, instance, encoded, lease_s, ends_at, is_confirmed=True)

    async def _put(self, instance: Instance, encoded: bytes, lease_s: float, *, is_restoring: bool) -> None:
        namespace = self._namespace
        keys = (namespace.index, namespace.record(instance.id), namespace.service(instance.service))
        lease_ms = str(max(1, round(lease_s * 1000)))
        arguments = (instance.id, instance.service, encoded, self._owner, lease_ms, "1" if is_restoring else "0")
        await self._change(REGISTER, keys, arguments)

    async def _remove(self, instance_id: str, *, is_own_only: bool) -> None:
        keys = (self._namespace.index, self._namespace.record(instance_id))
        await self._change(DEREGISTER, keys, (instance_id, self._owner, "1" if is_own_only else "0"))

    async def _change(self, script: Script, keys: tuple[str, ...], arguments: tuple[str | bytes, ...]) -> None:
        """Run a script that has no effect after `timeout_s`.

        A server that was stopped executes the commands sent in the meantime when it continues. By then, newer commands may have
        been sent, so each change carries a deadline by the clock of the server.
        """
        if self._clock_offset_ms is None:
            await self._read_clock()
        for _ in range(2):
            sent_at = self._now()
            answer = await self._server.run(script, keys, lambda: self._with_deadline(arguments))
            self._clock_offset_ms = answer[0] - sent_at * 1000
            if answer[2]:
                self._context.counters.add("redis_keys_mended", answer[2])
            if answer[1] != b"late":
                return
            # The clock offset was wrong, because a clock was set or another server took over: retry with the new offset.
        raise Unreachable(
            "redis answered after the deadline", at=self._server.where, hint="check that the server is not overloaded"
        )

    def _with_deadline(self, arguments: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
        assert self._clock_offset_ms is not None
        deadline_ms = (self._now() + self._server.timeout_s) * 1000 + self._clock_offset_ms
        return (self._namespace.root, self._namespace.feed, str(round(deadline_ms)), *arguments)

    async def _read_clock(self) -> None:
        sent_at = self._now()
        names = (self._namespace.root, self._namespace.feed)
        answer = await self._server.run(POLL, (self._namespace.index,), lambda: (*names, self._owner, "0", "0"))
        self._clock_offset_ms = answer[0] - sent_at * 1000
