"""The records that one registry object registered: put, renewed, restored when lost, withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.contract import DriverContext, Instance, MicroError, Unreachable
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.scripts import DEREGISTER, REGISTER, TEND, Script
from micro_redis_registry.server import Server


@dataclass(slots=True)
class Own:
    """A record of ours. `ends_at` is when the caller's wish ends; `is_certain` once the server has taken it."""

    instance: Instance
    encoded: bytes
    lease_s: float
    ends_at: float
    is_certain: bool = False


class OwnRecords:
    """Records by id. `owner` marks them on the server, so that closing leaves what another has taken over."""

    def __init__(self, *, server: Server, namespace: Namespace, owner: str, context: DriverContext) -> None:
        self._server = server
        self._namespace = namespace
        self._owner = owner
        self._context = context
        self._now = context.clock.now
        self._records: dict[str, Own] = {}
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._ahead_ms: float | None = None

    def __len__(self) -> int:
        return len(self._records)

    def standing(self) -> list[Own]:
        """Those the server has taken and whose wish has not ended; the others are forgotten once it has."""
        now = self._now()
        for instance_id in [one.instance.id for one in self._records.values() if one.ends_at <= now]:
            del self._records[instance_id]
        return [one for one in self._records.values() if one.is_certain]

    async def register(self, instance: Instance, encoded: bytes, lease_s: float) -> None:
        """Put or renew the record. Raises what `Server.run` does."""
        await self._in_turn(instance.id, lambda: self._register(instance, encoded, lease_s))

    async def deregister(self, instance_id: str) -> None:
        """Remove the record, whoever registered it. Raises what `Server.run` does."""

        async def remove() -> None:
            self._records.pop(instance_id, None)
            await self._remove(instance_id, is_own_only=False)

        await self._in_turn(instance_id, remove)

    async def restore(self, own: Own) -> None:
        """Put a record that the server lost for the rest of its lease, unless it is another's meanwhile."""

        async def put() -> None:
            left_s = own.ends_at - self._now()
            if self._records.get(own.instance.id) is own and left_s > 0:
                await self._put(own.instance, own.encoded, left_s, is_restoring=True)
                self._context.counters.add("redis_records_restored")

        await self._in_turn(own.instance.id, put)

    def leave(self, own: Own) -> None:
        """Another has taken it over, or removed it on purpose: ours again once it is registered again."""
        if self._records.get(own.instance.id) is own:
            del self._records[own.instance.id]

    async def close(self) -> None:
        """Withdraw everything that nobody took over. Where that fails the leases end; it is counted and logged."""
        await asyncio.gather(*self._turns.values(), return_exceptions=True)
        records, self._records = self._records, {}
        outcomes = await asyncio.gather(
            *(self._remove(instance_id, is_own_only=True) for instance_id in records), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, MicroError):
                raise failure
        if failures:
            self._context.counters.add("redis_withdrawals_failed", len(failures))
            self._context.logger.warning(
                "not withdrawn from redis; the leases will end", extra={"reason": str(failures[0])}
            )

    async def _in_turn(self, instance_id: str, act: Callable[[], Awaitable[None]]) -> None:
        """Act on a record after what is under way for it, and to the end even when the caller goes away.

        The server answers its connections in any order: a renewal given up half-way could be done after a withdrawal
        and bring the record back.
        """
        earlier = self._turns.get(instance_id)

        async def act_after() -> None:
            if earlier is not None:
                await asyncio.wait({earlier})
            await act()

        def end(turn: asyncio.Task[None]) -> None:
            if self._turns.get(instance_id) is turn:
                del self._turns[instance_id]
            if not turn.cancelled():
                turn.exception()  # seen, also where the caller went away

        turn = asyncio.create_task(act_after(), name="redis turn")
        self._turns[instance_id] = turn
        turn.add_done_callback(end)
        await asyncio.shield(turn)

    async def _register(self, instance: Instance, encoded: bytes, lease_s: float) -> None:
        ends_at = self._now() + lease_s
        standing = self._records.get(instance.id)
        if standing is None:
            # If the answer is lost, closing withdraws it all the same.
            self._records[instance.id] = Own(instance, encoded, lease_s, ends_at)
        elif standing.encoded == encoded:
            # The wish to renew counts even if it cannot be told now.
            standing.ends_at, standing.lease_s = ends_at, lease_s
        await self._put(instance, encoded, lease_s, is_restoring=False)
        self._records[instance.id] = Own(instance, encoded, lease_s, ends_at, is_certain=True)

    async def _put(self, instance: Instance, encoded: bytes, lease_s: float, *, is_restoring: bool) -> None:
        namespace = self._namespace
        keys = (namespace.index, namespace.record(instance.id), namespace.service(instance.service))
        lease_ms = str(max(1, round(lease_s * 1000)))
        words = (instance.id, instance.service, encoded, self._owner, lease_ms, "1" if is_restoring else "0")
        await self._change(REGISTER, keys, words)

    async def _remove(self, instance_id: str, *, is_own_only: bool) -> None:
        keys = (self._namespace.index, self._namespace.record(instance_id))
        await self._change(DEREGISTER, keys, (instance_id, self._owner, "1" if is_own_only else "0"))

    async def _change(self, script: Script, keys: tuple[str, ...], words: tuple[str | bytes, ...]) -> None:
        """Run a script that does nothing once `timeout_s` is over.

        A server that was stopped does, when it goes on, what was sent to it in vain. By then the same may have been
        sent again, or its contrary; so each change bears the time until which it is wanted, by the server's clock.
        """
        if self._ahead_ms is None:
            await self._read_clock()
        for _ in range(2):
            sent_at = self._now()
            answer = await self._server.run(script, keys, lambda: self._timed(words))
            self._ahead_ms = answer[0] - sent_at * 1000
            if answer[2]:
                self._context.counters.add("redis_keys_mended", answer[2])
            if answer[1] != b"late":
                return
            # Late by a clock that was set, or is another server's since a failover: once more by the right one.
        raise Unreachable("redis answered too late", at=self._server.where, hint="check that it is not overloaded")

    def _timed(self, words: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
        assert self._ahead_ms is not None
        deadline_ms = (self._now() + self._server.timeout_s) * 1000 + self._ahead_ms
        return (self._namespace.root, self._namespace.feed, str(round(deadline_ms)), *words)

    async def _read_clock(self) -> None:
        sent_at = self._now()
        names = (self._namespace.root, self._namespace.feed)
        answer = await self._server.run(TEND, (self._namespace.index,), lambda: (*names, self._owner, "0", "0"))
        self._ahead_ms = answer[0] - sent_at * 1000
