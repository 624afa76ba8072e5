"""Redis keyspace notifications: if enabled, the loss of a record that was deleted or evicted is noticed immediately.

The follower passes its connection and all messages that are not from the feed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from redis.asyncio.client import PubSub
from redis.exceptions import NoPermissionError

from micro_core.contract import DriverContext, Forbidden, InternalError, MicroError, WatchSet
from micro_redis_registry.directory import Directory
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.scripts import CHECK, PROBE
from micro_redis_registry.server import Server

LOOKUP_DELAY_S = 0.02
"""Seconds before a deleted key is checked: if a script deleted it, the feed reports that within this time."""

MAX_LOOKUP_BATCH = 100
"""Maximum number of keys checked by one script."""

MAX_LOOKUPS = 4_096
"""Maximum number of keys waiting to be checked. Further ones are counted and noticed at the end of their lease."""

PROBE_S = 0.5
"""Seconds to wait for the notifications of a test key."""

_IGNORED_EVENTS = frozenset((b"hset", b"hdel", b"expire", b"expired"))
"""Events of our own scripts on existing keys, and the end of a lease, which the lease monitor handles."""


class KeyspaceEvents:
    """Checks records that Redis reports as deleted, and notifies `watches` of those that are lost."""

    def __init__(
        self,
        *,
        server: Server,
        namespace: Namespace,
        directory: Directory,
        watches: WatchSet,
        context: DriverContext,
        due_in: Callable[[float], None],
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._directory = directory
        self._watches = watches
        self._context = context
        self._due_in = due_in
        self._to_check: dict[str, None] = {}
        self._checking: asyncio.Task[None] | None = None
        self._were_enabled: bool | None = None

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to notifications if they are enabled; log whether they are, if that has changed."""
        self._log_enabled(are_enabled=await self._subscribe_if_enabled(pubsub))

    def change_received(self, instance_id: str) -> None:
        """Cancel the check of a record, because the feed has reported its change."""
        self._to_check.pop(instance_id, None)

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel all pending checks; return the tasks that are being cancelled."""
        running = [self._checking] if self._checking is not None else []
        self._checking = None
        for task in running:
            task.cancel()
        self._to_check.clear()
        return running

    async def _subscribe_if_enabled(self, pubsub: PubSub) -> bool:
        """Subscribe to keyspace notifications; return whether Redis sends them."""
        try:
            flags = await self._server.read_setting("notify-keyspace-events")
        except (Forbidden, InternalError):
            flags = None  # CONFIG is not permitted, so test it
        if flags is not None and not ("K" in flags and ("A" in flags or {"g", "x"} <= set(flags))):
            return False
        try:
            await pubsub.psubscribe(self._namespace.keyspace_pattern)
            await self._server.wait_until_subscribed(pubsub)
        except NoPermissionError:
            return False
        return flags is not None or await self._probe(pubsub)

    async def _probe(self, pubsub: PubSub) -> bool:
        # No instance has this id, since it contains a control character.
        instance_id = f"\x00probe-{secrets.token_hex(4)}"
        keys = (self._namespace.index, self._namespace.record(instance_id))
        names = (self._namespace.root, self._namespace.feed)
        await self._server.run(PROBE, keys, lambda: (*names, "set"))
        channel = (self._namespace.keyspace_prefix + instance_id).encode()
        missing = {b"del", b"expired"}
        now = self._context.clock.now
        # No `asyncio.timeout`: it would cancel a command between its request and its answer.
        ends_at = now() + PROBE_S
        while missing and now() < ends_at:
            await self._server.run(PROBE, keys, lambda: (*names, "check"))
            message = await pubsub.get_message(timeout=0.02)
            if message is not None and message["channel"] == channel:
                missing.discard(message["data"])
        return not missing

    def _log_enabled(self, *, are_enabled: bool) -> None:
        if are_enabled == self._were_enabled:
            return
        self._were_enabled = are_enabled
        if are_enabled:
            self._context.logger.info("redis keyspace notifications are enabled")
        else:
            self._context.logger.info(
                "redis keyspace notifications are disabled: a key deleted by another program is noticed only when its "
                "lease ends (enable them with notify-keyspace-events Kgxe)"
            )

    def read(self, channel: bytes, event: object) -> None:
        """Handle a notification for the key of `channel`."""
        if event == b"expired":
            self._due_in(0.0)
        if event in _IGNORED_EVENTS:
            return
        prefix = self._namespace.keyspace_prefix.encode()
        try:
            instance_id = channel.removeprefix(prefix).decode()
        except UnicodeDecodeError:
            self._context.counters.add("redis_garbage")
            return
        if self._directory.find(instance_id) is None:
            return
        if len(self._to_check) >= MAX_LOOKUPS:
            self._context.counters.add("redis_lookups_dropped")
            return
        self._to_check[instance_id] = None
        if self._checking is None:
            self._checking = asyncio.create_task(self._check(), name="redis key check")

    async def _check(self) -> None:
        try:
            while self._to_check:
                await asyncio.sleep(LOOKUP_DELAY_S)
                await self._check_batch()
        except MicroError as error:
            # The session fails for the same reason, and the next session reads all records.
            self._context.logger.debug("redis key check failed", extra={"reason": str(error)})
        finally:
            if self._checking is asyncio.current_task():
                self._checking = None

    async def _check_batch(self) -> None:
        chosen = [self._to_check.popitem()[0] for _ in range(min(MAX_LOOKUP_BATCH, len(self._to_check)))]
        known = [instance for instance_id in chosen if (instance := self._directory.find(instance_id)) is not None]
        if not known:
            return
        names = (self._namespace.root, self._namespace.feed)
        pairs = [name for instance in known for name in (instance.service, instance.id)]
        answer = await self._server.run(CHECK, (self._namespace.index,), lambda: (*names, *pairs))
        for instance, found in zip(known, answer[1:], strict=True):
            # The feed reports a key that is `gone`, in order with the other changes.
            if found == b"missing" and self._directory.find(instance.id) == instance:
                self._watches.publish(self._directory.lose(instance.id))
