"""Redis's own notifications about keys: where they are on, a record that is deleted or evicted behind our back is missed
at once. Shell: the follower hands it its connection and the messages that are not the feed's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio.client import PubSub
from redis.exceptions import NoPermissionError

from micro_core.contract import DriverContext, Forbidden, InternalError, MicroError, WatchSet
from micro_redis_registry.directory import Directory
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.scripts import LOOK, PROBE
from micro_redis_registry.server import Server

LOOK_PAUSE_S = 0.02
"""Pause before a deleted key is looked at: where a script deleted it, the feed says so in this time."""

LOOKS_AT_ONCE = 100
MAX_LOOKS = 4_096
"""Keys waiting to be looked at; beyond, they wait for the audit or the end of their lease, and are counted."""

PROBE_S = 0.5
"""How long a notification of our own deletion is waited for."""

_OWN_DOINGS = frozenset((b"hset", b"hdel", b"expire", b"expired"))
"""What our scripts do to a key that stays, and the end of a lease, which the keeper sees to."""


class KeyspaceEvents:
    """Looks at records that Redis says are lost, and has `watches` told of those that are."""

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
        self._to_look: dict[str, None] = {}
        self._looking: asyncio.Task[None] | None = None
        self._are_said_on: bool | None = None

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe where notifications are on, and say whether they are, when that is new."""
        self._say(are_on=await self._are_on(pubsub))

    def explained(self, instance_id: str) -> None:
        """The feed told what became of the record: there is no need to look."""
        self._to_look.pop(instance_id, None)

    def rest(self) -> list[asyncio.Task[None]]:
        """Forget what was to be looked at: the tasks that are about to end."""
        running = [self._looking] if self._looking is not None else []
        self._looking = None
        for task in running:
            task.cancel()
        self._to_look.clear()
        return running

    async def _are_on(self, pubsub: PubSub) -> bool:
        """Whether Redis tells of keys, subscribing to it if so."""
        try:
            flags = await self._server.read_setting("notify-keyspace-events")
        except (Forbidden, InternalError):
            flags = None  # CONFIG is not for everybody: see for ourselves
        if flags is not None and not ("K" in flags and ("A" in flags or {"g", "x"} <= set(flags))):
            return False
        try:
            await pubsub.psubscribe(self._namespace.keyspace_pattern)
            await self._server.confirmed(pubsub)
        except NoPermissionError:
            return False
        return flags is not None or await self._probe(pubsub)

    async def _probe(self, pubsub: PubSub) -> bool:
        # No instance has such an id: it cannot be printed.
        instance_id = f"\x00probe-{secrets.token_hex(4)}"
        keys = (self._namespace.index, self._namespace.record(instance_id))
        names = (self._namespace.root, self._namespace.feed)
        await self._server.run(PROBE, keys, lambda: (*names, "set"))
        channel = (self._namespace.keyspace_prefix + instance_id).encode()
        missing = {b"del", b"expired"}
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                while missing:
                    await self._server.run(PROBE, keys, lambda: (*names, "look"))
                    message = await pubsub.get_message(timeout=0.02)
                    if message is not None and message["channel"] == channel:
                        missing.discard(message["data"])
        return not missing

    def _say(self, *, are_on: bool) -> None:
        if are_on == self._are_said_on:
            return
        self._are_said_on = are_on
        if are_on:
            self._context.logger.info("redis tells of lost keys by keyspace notifications")
        else:
            self._context.logger.info(
                "redis's keyspace notifications are off: changes come by our own channel, and a key that a stranger "
                "deletes is missed when its lease ends (notify-keyspace-events Kgxe would tell at once)"
            )

    def read(self, channel: bytes, event: object) -> None:
        """A notification came."""
        if event == b"expired":
            self._due_in(0.0)
        if event in _OWN_DOINGS:
            return
        prefix = self._namespace.keyspace_prefix.encode()
        try:
            instance_id = channel.removeprefix(prefix).decode()
        except UnicodeDecodeError:
            self._context.counters.add("redis_garbage")
            return
        if self._directory.find(instance_id) is None:
            return
        if len(self._to_look) >= MAX_LOOKS:
            self._context.counters.add("redis_looks_dropped")
            return
        self._to_look[instance_id] = None
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="redis look")

    async def _look(self) -> None:
        try:
            while self._to_look:
                await asyncio.sleep(LOOK_PAUSE_S)
                await self._look_once()
        except MicroError as error:
            # The session fails of the same, and the next one reads everything.
            self._context.logger.debug("redis: a lost key was not looked at", extra={"reason": str(error)})
        finally:
            if self._looking is asyncio.current_task():
                self._looking = None

    async def _look_once(self) -> None:
        chosen = [self._to_look.popitem()[0] for _ in range(min(LOOKS_AT_ONCE, len(self._to_look)))]
        known = [instance for one in chosen if (instance := self._directory.find(one)) is not None]
        if not known:
            return
        names = (self._namespace.root, self._namespace.feed)
        pairs = [word for instance in known for word in (instance.service, instance.id)]
        answer = await self._server.run(LOOK, (self._namespace.index,), lambda: (*names, *pairs))
        for instance, found in zip(known, answer[1:], strict=True):
            # What is `gone` the feed tells, in its place among the other changes.
            if found == b"missing" and self._directory.find(instance.id) == instance:
                self._watches.publish(self._directory.lose(instance.id))
