"""Follows the changes of a namespace for the watches: subscribes, reads all pages, then the feed, and begins anew when
something was lost. Shell round `directory.py`.

One session is one connection. While it stands the feed brings every change in order, so nothing is asked for. Redis's
keyspace notifications (`keyspace.py`), where they are on, add what no script did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

from redis.asyncio.client import PubSub

from micro_core.contract import DriverContext, InternalError, Malformed, MicroError, Unreachable, WatchSet
from micro_redis_registry.backoff import Backoff
from micro_redis_registry.directory import Directory
from micro_redis_registry.encoding import decode_change
from micro_redis_registry.ending import end_tasks
from micro_redis_registry.keyspace import KeyspaceEvents
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.records import RecordReader
from micro_redis_registry.server import Server

HOLD_S = 2.5
"""How long a record that the server lost is held: its owner asks every second (`keeper.py`), after a restart within a
second more, and needs a moment to restore it."""

LAG_S = 2.0
"""A change that the server made this long ago, and of which the feed says nothing, will not come any more."""

AUDIT_S = 300.0
"""All pages are read anew after this time, more or less, whatever happens: no error of ours or others' lasts longer."""

MESSAGES_IN_A_ROW = 64
"""Messages handled before others get their turn: reading what has arrived already does not give it away."""


class Follower:
    """Keeps `directory` as the server is, and tells `watches`, from `start` to `stop`."""

    def __init__(
        self,
        *,
        server: Server,
        namespace: Namespace,
        reader: RecordReader,
        directory: Directory,
        watches: WatchSet,
        context: DriverContext,
        keyspace: KeyspaceEvents | None,
        due_in: Callable[[float], None],
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._reader = reader
        self._directory = directory
        self._watches = watches
        self._context = context
        self._now = context.clock.now
        self._keyspace = keyspace
        self._due_in = due_in
        self._task: asyncio.Task[None] | None = None
        self._session: asyncio.Task[None] | None = None
        self._epoch = 0
        self._is_current = False
        self._is_ending = False
        self._failure: MicroError | None = None
        self._progress = asyncio.Event()
        self._behind: tuple[int, float] | None = None

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        """Begin to follow, unless it is done already."""
        if self._task is None:
            self._failure = None
            self._task = asyncio.create_task(self._follow(), name="redis follower")

    async def stop(self) -> None:
        """Stop, and forget what is known."""
        await end_tasks(self.rest())

    def rest(self) -> list[asyncio.Task[None]]:
        """`stop`, for callers that cannot await: the tasks that are about to end."""
        running = [self._task] if self._task is not None else []
        self._task = None
        for task in running:
            task.cancel()
        if self._keyspace is not None:
            running += self._keyspace.rest()
        self._is_current = False
        self._directory.clear()
        self._advance()
        return running

    async def reach(self, sequence: int, timeout_s: float) -> None:
        """Wait until everything up to `sequence` is known. Raises what prevents it."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (self._is_current and self._directory.sequence >= sequence):
                    if self._failure is not None:
                        raise self._failure
                    await self._progress.wait()
        except TimeoutError as error:
            raise Unreachable(
                "redis does not say what changed", at=self._server.where, hint="check that it is up and not overloaded"
            ) from error

    def note(self, epoch: int, sequence: int) -> None:
        """The server is at this epoch and number: see whether the feed is."""
        if self._session is None:
            return
        if self._is_ending:
            self._session.cancel()  # once is not always enough: ending.py
        if not self._is_current:
            return
        now = self._now()
        # Where there was no epoch, the feed brings it: with the first change, or not at all, which the numbers show.
        if epoch != self._epoch and self._epoch:
            self._begin_anew("the server's data were lost")
        elif self._directory.sequence >= sequence:
            self._behind = None
        elif self._behind is None or self._directory.sequence >= self._behind[0]:
            self._behind = (sequence, now)
        elif now - self._behind[1] > LAG_S:
            self._begin_anew("changes did not arrive")

    def _begin_anew(self, reason: str) -> None:
        self._context.counters.add("redis_sessions_renewed")
        self._context.logger.info("redis registry reads everything anew", extra={"reason": reason})
        self._is_current = False
        self._is_ending = True
        if self._session is not None:
            self._session.cancel()

    async def _follow(self) -> None:
        backoff = Backoff(self._context.random)
        while True:
            self._is_ending = False
            session = self._session = asyncio.create_task(self._run_session(backoff), name="redis session")
            try:
                await asyncio.wait({session})
            finally:
                await end_tasks([session])
            self._is_current = False
            self._behind = None
            if session.cancelled():
                continue  # `_begin_anew`
            error = session.exception()
            if error is None:
                continue  # time for an audit
            self._fail(error)
            await asyncio.sleep(backoff.next_s())

    def _fail(self, error: BaseException) -> None:
        self._context.counters.add("redis_sessions_failed")
        if not isinstance(error, MicroError):
            self._context.logger.error("redis follower failed; it goes on", exc_info=error)
            self._failure = InternalError(f"redis: {error}", at=self._server.where)
        else:
            if self._failure is None:
                self._context.logger.warning("redis cannot be watched", extra={"reason": str(error)})
            self._failure = error
        self._advance()

    async def _run_session(self, backoff: Backoff) -> None:
        async with self._server.subscription() as pubsub:
            await pubsub.subscribe(self._namespace.feed)
            await self._server.confirmed(pubsub)
            if self._keyspace is not None:
                await self._keyspace.subscribe(pubsub)
            # What arrived until now is older than the pages.
            await self._read_pages()
            backoff.reset()
            self._failure = None
            self._is_current = True
            self._advance()
            with suppress(TimeoutError):
                async with asyncio.timeout(AUDIT_S * self._context.random.uniform(0.8, 1.2)):
                    await self._read_feed(pubsub)

    async def _read_pages(self) -> None:
        self._is_current = False
        is_first = True
        async with aclosing(self._reader.pages(None)) as pages:
            async for page in pages:
                if is_first:
                    self._epoch = page.epoch
                    self._directory.begin(page.sequence)
                    is_first = False
                for instance_id, sequence, encoded in page.records:
                    self._watches.publish(self._directory.put_page(instance_id, sequence, encoded))
                await asyncio.sleep(0)
        self._directory.end(hold_until=self._now() + HOLD_S)
        # Whose leases end next is known to the keeper only; it looks at once.
        self._due_in(0.0)

    async def _read_feed(self, pubsub: PubSub) -> None:
        feed = self._namespace.feed.encode()
        in_a_row = 0
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["channel"] == feed and message["type"] == "message":
                self._read_change(message["data"])
            elif self._keyspace is not None and message["type"] == "pmessage":
                self._keyspace.read(message["channel"], message["data"])
            in_a_row += 1
            if in_a_row >= MESSAGES_IN_A_ROW:
                in_a_row = 0
                await asyncio.sleep(0)

    def _read_change(self, data: object) -> None:
        try:
            change = decode_change(data)
        except Malformed:
            self._context.counters.add("redis_garbage")
            return
        if self._keyspace is not None:
            self._keyspace.explained(change.id)
        if self._epoch == 0 and change.kind != "due":
            self._epoch = change.sequence  # the first change of a namespace draws its epoch: scripts.py
        if change.kind == "due":
            self._due_in(change.lease_s)
        elif change.kind == "put":
            self._watches.publish(self._directory.put(change.id, change.sequence, change.record))
            self._due_in(change.lease_s)
        else:
            self._watches.publish(self._directory.remove(change.id, change.sequence))
        self._advance()

    def _advance(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
