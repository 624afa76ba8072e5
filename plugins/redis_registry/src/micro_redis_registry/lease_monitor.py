"""Poll the server every two seconds and when a lease is due: remove expired records and restore own records that were lost.

The poll (`scripts.POLL`) removes expired records, which the feed then reports to all processes, and returns the state of our
own records. Missing records are restored immediately, for the rest of their lease: the server may have restarted empty, a
failover may have lost the last writes, or another program may have deleted a key. A loss therefore lasts two seconds at most.
The monitor also polls when the connection of the feed is lost, as it is by a restart of the server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from micro_core.contract import DriverContext, MicroError
from micro_redis_registry.backoff import Backoff
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.own_records import OwnRecord, OwnRecords
from micro_redis_registry.scripts import POLL
from micro_redis_registry.server import Server
from micro_redis_registry.task_cancellation import cancel_tasks

POLL_S = 2.0
"""Seconds between two polls. Ends of leases, which are due at a known time, do not wait for it. With one second, the poll was a
tenth of the CPU time of a calm node."""

MIN_PAUSE_S = 0.02
"""Shortest pause between two polls in seconds, however many leases end."""

MAX_POLL_DELAY_S = 0.08
"""Random delay in seconds of polls at the end of a lease, so that only the first of many watchers has work to do."""

MAX_DUE_PER_POLL = 100
"""Maximum number of expired records removed per poll, which takes the server half a millisecond."""

MAX_OWN_PER_POLL = 100
"""Maximum number of own records checked per poll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The epoch of the server and the sequence number of its last change (see scripts.py)."""

    epoch: int
    sequence: int


class LeaseMonitor:
    """Polls the server from `start` to `stop`; `after_poll` is called with the state after each poll."""

    def __init__(
        self,
        *,
        server: Server,
        namespace: Namespace,
        owner: str,
        own: OwnRecords,
        context: DriverContext,
        after_poll: Callable[[State], None],
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._owner = owner
        self._own = own
        self._context = context
        self._now = context.clock.now
        self._after_poll = after_poll
        self._backoff = Backoff(context.random)
        self._next_poll_at = math.inf
        self._changed = asyncio.Event()
        self._next_own = 0
        self._is_unreachable = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start polling, unless already started."""
        if self._task is None:
            self._next_poll_at = min(self._next_poll_at, self._now() + POLL_S)
            self._task = asyncio.create_task(self._run(), name="redis lease monitor")

    async def stop(self) -> None:
        """Stop polling."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_tasks([task])

    def due_in(self, seconds: float) -> None:
        """Schedule a poll for a lease that may end in `seconds`."""
        due_at = self._now() + seconds + self._context.random.uniform(0.0, MAX_POLL_DELAY_S)
        if due_at < self._next_poll_at and not self._is_unreachable:
            self._next_poll_at = due_at
            self._changed.set()

    async def poll(self) -> State:
        """Poll once. Raises the errors of `Server.run`."""
        # A lease reported as due during this poll must cause another poll, since this one may be too early for it.
        self._next_poll_at = math.inf
        pause_s = POLL_S
        try:
            answer = await self._poll_all()
            if answer[5]:
                left_s = max(MIN_PAUSE_S, (answer[5] - answer[0] + 1) / 1000)
                pause_s = min(POLL_S, left_s + self._context.random.uniform(0.0, MAX_POLL_DELAY_S))
        finally:
            self._next_poll_at = min(self._next_poll_at, self._now() + pause_s)
        return State(epoch=answer[1], sequence=answer[2])

    async def _poll_all(self) -> list[Any]:
        """Run the script until all expired leases are removed; return its last result."""
        skip = 0
        while True:
            own = self._choose_own()
            answer = await self._poll_from(skip, own)
            found = dict(zip((record.instance.id for record in own), answer[7:], strict=True))
            for record in own:
                if found[record.instance.id] == b"taken":
                    self._own.release(record)
            await self._restore([record for record in own if found[record.instance.id] == b"missing"])
            if answer[6]:
                self._context.counters.add("redis_keys_mended", answer[6])
            skip += answer[4]
            if answer[3] < MAX_DUE_PER_POLL:
                return answer
            await asyncio.sleep(0)

    async def _poll_from(self, skip: int, own: list[OwnRecord]) -> list[Any]:
        pairs = [name for record in own for name in (record.instance.service, record.instance.id)]
        arguments = (self._namespace.root, self._namespace.feed, self._owner, str(skip), str(MAX_DUE_PER_POLL), *pairs)
        return await self._server.run(POLL, (self._namespace.index,), lambda: arguments)

    def _choose_own(self) -> list[OwnRecord]:
        """Return the own records to check in this poll: all of them, or the next MAX_OWN_PER_POLL in turn."""
        active = self._own.active()
        if len(active) <= MAX_OWN_PER_POLL:
            return active
        start = self._next_own % len(active)
        self._next_own = start + MAX_OWN_PER_POLL
        return (active[start:] + active[:start])[:MAX_OWN_PER_POLL]

    async def _restore(self, missing: list[OwnRecord]) -> None:
        if not missing:
            return
        # If all checked records are missing, the others are probably missing, too.
        lost = self._own.active() if len(missing) == MAX_OWN_PER_POLL else missing
        outcomes = await asyncio.gather(*(self._own.restore(record) for record in lost), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, MicroError):
                # Retried at the next poll, which also reports an unreachable server.
                self._context.counters.add("redis_restores_failed")
            elif isinstance(outcome, BaseException):
                raise outcome
        restored = outcomes.count(None)
        if restored:
            self._context.logger.info("redis had lost records; they were restored", extra={"records": restored})

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            pause_s = self._next_poll_at - self._now()
            if pause_s > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                continue
            try:
                state = await self.poll()
            except MicroError as error:
                self._fail(error)
            except Exception:  # root of the task
                self._context.counters.add("redis_monitor_failures")
                self._context.logger.exception("redis lease monitor failed and continues")
                self._next_poll_at = self._now() + self._backoff.next_s()
            else:
                self._succeed(state)

    def _fail(self, error: MicroError) -> None:
        self._context.counters.add("redis_polls_failed")
        if not self._is_unreachable:
            self._context.logger.warning("redis is unreachable", extra={"reason": str(error)})
        self._is_unreachable = True
        self._next_poll_at = self._now() + self._backoff.next_s()

    def _succeed(self, state: State) -> None:
        if self._is_unreachable:
            self._context.logger.info("redis is reachable again")
        self._is_unreachable = False
        self._backoff.reset()
        self._after_poll(state)
