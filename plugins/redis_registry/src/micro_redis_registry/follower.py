"""Follow the changes of a namespace for the watches. This is the asyncio shell around `directory.py`.

One session is one connection: it subscribes, reads all pages, and then follows the feed. After a loss, a new session starts.
While a session is open, the feed delivers every change in order, so no polling is needed. Redis keyspace notifications
(`keyspace.py`), if enabled, report changes that were not made by our scripts.
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
from micro_redis_registry.keyspace import KeyspaceEvents
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.records import RecordReader
from micro_redis_registry.server import Server
from micro_redis_registry.task_cancellation import cancel_tasks

HOLD_S = 3.5
"""Seconds for which a record lost by the server is held. Its owner polls every two seconds (`lease_monitor.py`), reconnects
within another second, and needs a moment to restore the record."""

MAX_FEED_LAG_S = 2.0
"""Seconds after which a change that the server has made and the feed has not delivered counts as lost."""

FULL_READ_INTERVAL_S = 300.0
"""Seconds (roughly) after which all pages are read again in any case, which limits the duration of any inconsistency."""

MAX_MESSAGE_BATCH = 64
"""Messages handled before other tasks may run: reading buffered messages does not yield to the event loop."""


class Follower:
    """Keeps `directory` in sync with the server and notifies `watches`, from `start` to `stop`.

    `due_in(seconds)` is called with the time until a lease may end.
    """

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
        """Whether the follower has been started."""
        return self._task is not None

    def start(self) -> None:
        """Start following, unless already started."""
        if self._task is None:
            self._failure = None
            self._task = asyncio.create_task(self._follow(), name="redis follower")

    async def stop(self) -> None:
        """Stop following and clear the directory."""
        await cancel_tasks(self.cancel())

    def cancel(self) -> list[asyncio.Task[None]]:
        """Stop without waiting; return the tasks that are being cancelled."""
        running = [self._task] if self._task is not None else []
        self._task = None
        for task in running:
            task.cancel()
        if self._keyspace is not None:
            running += self._keyspace.cancel()
        self._is_current = False
        self._directory.clear()
        self._notify_progress()
        return running

    async def wait_for_sequence(self, sequence: int, timeout_s: float) -> None:
        """Wait until all changes up to `sequence` are known.

        Raises Unreachable after `timeout_s` seconds, or the error that prevents following.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not (self._is_current and self._directory.sequence >= sequence):
                    if self._failure is not None:
                        raise self._failure
                    await self._progress.wait()
        except TimeoutError as error:
            raise Unreachable(
                "redis does not deliver changes",
                at=self._server.where,
                hint="check that the server is running and not overloaded",
            ) from error

    def check_progress(self, epoch: int, sequence: int) -> None:
        """Compare the epoch and sequence number of the server with the feed, and start again after a loss."""
        if self._session is None:
            return
        if self._is_ending:
            self._session.cancel()  # one cancellation may not be enough, see task_cancellation.py
        if not self._is_current:
            return
        now = self._now()
        # A namespace without an epoch receives it with its first change on the feed.
        if epoch != self._epoch and self._epoch:
            self._restart_session("the server has lost its data")
        elif self._directory.sequence >= sequence:
            self._behind = None
        elif self._behind is None or self._directory.sequence >= self._behind[0]:
            self._behind = (sequence, now)
        elif now - self._behind[1] > MAX_FEED_LAG_S:
            self._restart_session("changes did not arrive")

    def _restart_session(self, reason: str) -> None:
        self._context.counters.add("redis_sessions_renewed")
        self._context.logger.info("redis registry reads all records again", extra={"reason": reason})
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
                await cancel_tasks([session])
            self._is_current = False
            self._behind = None
            if session.cancelled():
                continue  # cancelled by `_restart_session`
            error = session.exception()
            if error is None:
                continue  # time for an audit
            self._fail(error)
            # The server may have restarted without its data: check our own records now.
            self._due_in(0.0)
            await asyncio.sleep(backoff.next_s())

    def _fail(self, error: BaseException) -> None:
        self._context.counters.add("redis_sessions_failed")
        if not isinstance(error, MicroError):
            self._context.logger.error("redis follower failed and is restarted", exc_info=error)
            self._failure = InternalError(f"redis: {error}", at=self._server.where)
        else:
            if self._failure is None:
                self._context.logger.warning("redis watch failed", extra={"reason": str(error)})
            self._failure = error
        self._notify_progress()

    async def _run_session(self, backoff: Backoff) -> None:
        async with self._server.subscription() as pubsub:
            await pubsub.subscribe(self._namespace.feed)
            await self._server.wait_until_subscribed(pubsub)
            if self._keyspace is not None:
                await self._keyspace.subscribe(pubsub)
            # Messages that have arrived until now are older than the pages.
            await self._read_pages()
            backoff.reset()
            self._failure = None
            self._is_current = True
            self._notify_progress()
            with suppress(TimeoutError):
                async with asyncio.timeout(FULL_READ_INTERVAL_S * self._context.random.uniform(0.8, 1.2)):
                    await self._read_feed(pubsub)

    async def _read_pages(self) -> None:
        self._is_current = False
        is_first_page = True
        async with aclosing(self._reader.pages(None)) as pages:
            async for page in pages:
                if is_first_page:
                    self._epoch = page.epoch
                    self._directory.begin(page.sequence)
                    is_first_page = False
                for instance_id, sequence, encoded in page.records:
                    self._watches.publish(self._directory.put_page(instance_id, sequence, encoded))
                await asyncio.sleep(0)
        self._directory.end(hold_until=self._now() + HOLD_S)
        # Only the lease monitor knows which leases end next; let it poll now.
        self._due_in(0.0)

    async def _read_feed(self, pubsub: PubSub) -> None:
        feed = self._namespace.feed.encode()
        batch_size = 0
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["channel"] == feed and message["type"] == "message":
                self._read_change(message["data"])
            elif self._keyspace is not None and message["type"] == "pmessage":
                self._keyspace.read(message["channel"], message["data"])
            batch_size += 1
            if batch_size >= MAX_MESSAGE_BATCH:
                batch_size = 0
                await asyncio.sleep(0)

    def _read_change(self, data: object) -> None:
        try:
            change = decode_change(data)
        except Malformed:
            self._context.counters.add("redis_garbage")
            return
        if self._keyspace is not None:
            self._keyspace.change_received(change.id)
        if self._epoch == 0 and change.kind != "due":
            self._epoch = change.sequence  # the first change of a namespace defines its epoch, see scripts.py
        if change.kind == "due":
            self._due_in(change.lease_s)
        elif change.kind == "put":
            self._watches.publish(self._directory.put(change.id, change.sequence, change.record))
            self._due_in(change.lease_s)
        else:
            self._watches.publish(self._directory.remove(change.id, change.sequence))
        self._notify_progress()

    def _notify_progress(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
