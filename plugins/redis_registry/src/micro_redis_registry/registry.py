"""The registry role over Redis.

`server` runs commands, `own_records` writes records, `records` reads them, `lease_monitor` ends leases, and `follower` receives
changes and updates `directory`, whose events go to the watches.
"""

from __future__ import annotations

import math
import secrets

from micro_core.contract import (
    BadRequest,
    Closed,
    DriverContext,
    Instance,
    MicroError,
    OptionError,
    RegistryWatch,
    Unreachable,
    WatchSet,
)
from micro_redis_registry.addresses import parse_address
from micro_redis_registry.directory import Directory
from micro_redis_registry.encoding import MAX_LEASE_MS
from micro_redis_registry.follower import Follower
from micro_redis_registry.keyspace import KeyspaceEvents
from micro_redis_registry.lease_monitor import LeaseMonitor, State
from micro_redis_registry.namespace import make_namespace
from micro_redis_registry.options import RedisOptions
from micro_redis_registry.own_records import OwnRecords
from micro_redis_registry.records import RecordReader
from micro_redis_registry.server import Server

MAX_LEASE_S = MAX_LEASE_MS / 1000
"""Longest lease in seconds."""

IDLE_FEED_S = 10.0
"""Seconds after the end of the last watch until the feed is closed, since a new watch often follows."""


class RedisRegistry:
    """Implements `micro_core.contract.registry.Registry`. Raises OptionError for an invalid option."""

    def __init__(self, options: RedisOptions, context: DriverContext) -> None:
        if not 0.05 <= options.timeout_s <= 60:
            raise OptionError(
                f"redis: timeout_s = {options.timeout_s!r:.40} is out of range", hint="use 0.05 to 60 seconds"
            )
        if options.keyspace_events not in ("auto", "off"):
            raise OptionError(f"redis: unknown keyspace_events {options.keyspace_events!r:.40}", hint="use auto or off")
        address = parse_address(options.url)
        namespace = make_namespace(
            prefix=options.prefix,
            namespace=options.namespace,
            network=context.network,
            site=context.site,
            database=address.database,
        )
        # Do not use context.random: two processes with the same seed must have different owner ids.
        owner = secrets.token_hex(8)
        self._context = context
        self._watches = WatchSet(context.counters)
        self._directory = Directory(context.counters.add)
        self._server = Server(address, options, context.clock, namespace.index)
        self._reader = RecordReader(self._server, namespace, self._directory, context.counters)
        self._own = OwnRecords(server=self._server, namespace=namespace, owner=owner, context=context)
        self._monitor = LeaseMonitor(
            server=self._server,
            namespace=namespace,
            owner=owner,
            own=self._own,
            context=context,
            after_poll=self._after_poll,
        )
        keyspace = KeyspaceEvents(
            server=self._server,
            namespace=namespace,
            directory=self._directory,
            watches=self._watches,
            context=context,
            due_in=self._monitor.due_in,
        )
        self._follower = Follower(
            server=self._server,
            namespace=namespace,
            reader=self._reader,
            directory=self._directory,
            watches=self._watches,
            context=context,
            keyspace=keyspace if options.keyspace_events == "auto" else None,
            due_in=self._monitor.due_in,
        )
        self._is_open = False
        self._watches_opening = 0
        self._unwatched_since = math.inf

    async def start(self) -> None:
        """Connect to the server. Raises Unreachable, Unauthorized or Forbidden.

        After Unreachable, the registry works as soon as the server does.
        """
        self._server.open()
        self._is_open = True
        try:
            await self._monitor.poll()
        except MicroError as error:
            # After a refused login the caller may not close the registry, so disconnect here.
            self._is_open = isinstance(error, Unreachable)
            await self._server.close()
            if self._is_open:
                self._server.open()
            raise

    async def close(self) -> None:
        """Deregister all own records, end the watches and disconnect. Safe to call twice.

        Takes at most twice `timeout_s` if the server does not answer.
        """
        if not self._is_open:
            return
        self._is_open = False
        await self._watches.close()
        await self._monitor.stop()
        await self._follower.stop()
        await self._own.close()
        await self._server.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record for `lease_s` seconds.

        Raises BadRequest (invalid record or lease), TooLarge, Overloaded (the memory of the server is full), Closed,
        Unreachable, Unauthorized, Forbidden.
        """
        self._check_open()
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(
                f"redis: invalid lease {lease_s!r:.40}", hint=f"use more than 0 and at most {MAX_LEASE_S:g} seconds"
            )
        checked, encoded = self._own.checked(instance)
        self._monitor.start()
        await self._own.register(instance, checked, encoded, lease_s)

    async def deregister(self, instance: Instance) -> None:
        """Remove the record with this id, even if another process registered it. Raises the errors of `register`."""
        self._check_open()
        await self._own.deregister(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the live records from the server. Raises Closed, Unreachable, Unauthorized, Forbidden."""
        self._check_open()
        return await self._reader.instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Watch changes, starting with all existing records. Raises the errors of `instances`."""
        self._check_open()
        self._watches_opening += 1
        try:
            state = await self._monitor.poll()
            self._monitor.start()
            self._follower.start()
            await self._follower.wait_for_sequence(state.sequence, self._server.timeout_s)
            self._check_open()
            return self._watches.open(service, self._directory.instances())
        finally:
            self._watches_opening -= 1

    def _after_poll(self, state: State) -> None:
        now = self._context.clock.now()
        self._follower.check_progress(state.epoch, state.sequence)
        self._watches.publish(self._directory.drop_expired(now))
        if len(self._watches) or self._watches_opening:
            self._unwatched_since = math.inf
        elif self._unwatched_since == math.inf:
            self._unwatched_since = now
        elif now - self._unwatched_since > IDLE_FEED_S and self._follower.is_running:
            self._follower.cancel()

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the redis registry is not started or closed")
