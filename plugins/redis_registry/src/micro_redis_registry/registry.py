"""The registry role over Redis. The parts: `server` talks, `own_records` writes, `records` reads, `keeper` looks after
leases, `follower` hears of changes and keeps `directory`, from which the watches are told."""

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
    check_instance,
)
from micro_redis_registry.addresses import parse_address
from micro_redis_registry.directory import Directory
from micro_redis_registry.encoding import MAX_LEASE_MS, encode_record
from micro_redis_registry.follower import Follower
from micro_redis_registry.keeper import Keeper, State
from micro_redis_registry.keyspace import KeyspaceEvents
from micro_redis_registry.namespace import make_namespace
from micro_redis_registry.options import RedisOptions
from micro_redis_registry.own_records import OwnRecords
from micro_redis_registry.records import RecordReader
from micro_redis_registry.server import Server

MAX_LEASE_S = MAX_LEASE_MS / 1000

UNWATCHED_S = 10.0
"""The feed is given up this long after the last watch ended: most who watch once watch again."""


class RedisRegistry:
    """Implements `micro_core.contract.registry.Registry`."""

    def __init__(self, options: RedisOptions, context: DriverContext) -> None:
        if not 0.05 <= options.timeout_s <= 60:
            raise OptionError(f"redis: timeout_s is {options.timeout_s!r:.40}", hint="seconds from 0.05 to 60")
        if options.keyspace_events not in ("auto", "off"):
            raise OptionError(f"redis: keyspace_events is {options.keyspace_events!r:.40}", hint="write auto or off")
        address = parse_address(options.url)
        namespace = make_namespace(
            prefix=options.prefix,
            namespace=options.namespace,
            network=context.network,
            site=context.site,
            database=address.database,
        )
        # Not from context.random: two processes with one seed must still be two owners.
        owner = secrets.token_hex(8)
        self._context = context
        self._watches = WatchSet(context.counters)
        self._directory = Directory(context.counters.add)
        self._server = Server(address, options, context.clock, namespace.index)
        self._reader = RecordReader(self._server, namespace, self._directory, context.counters)
        self._own = OwnRecords(server=self._server, namespace=namespace, owner=owner, context=context)
        self._keeper = Keeper(
            server=self._server,
            namespace=namespace,
            owner=owner,
            own=self._own,
            context=context,
            after_look=self._after_look,
        )
        keyspace = KeyspaceEvents(
            server=self._server,
            namespace=namespace,
            directory=self._directory,
            watches=self._watches,
            context=context,
            due_in=self._keeper.due_in,
        )
        self._follower = Follower(
            server=self._server,
            namespace=namespace,
            reader=self._reader,
            directory=self._directory,
            watches=self._watches,
            context=context,
            keyspace=keyspace if options.keyspace_events == "auto" else None,
            due_in=self._keeper.due_in,
        )
        self._is_open = False
        self._watches_opening = 0
        self._unwatched_since = math.inf

    async def start(self) -> None:
        """Connect. Raises Unreachable, Unauthorized or Forbidden; an object that met Unreachable works as soon as the
        server does."""
        self._server.open()
        self._is_open = True
        try:
            await self._keeper.look()
        except MicroError as error:
            # Whoever is refused here is not asked again, and may well not close it.
            self._is_open = isinstance(error, Unreachable)
            await self._server.close()
            if self._is_open:
                self._server.open()
            raise

    async def close(self) -> None:
        """Withdraw what was registered here, end the watches, disconnect. Takes twice `timeout_s` at
        most, where the server does not answer."""
        if not self._is_open:
            return
        self._is_open = False
        await self._watches.close()
        await self._keeper.stop()
        await self._follower.stop()
        await self._own.close()
        await self._server.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew; raises BadRequest, TooLarge, Overloaded (the server's memory is full), Closed,
        Unreachable, Unauthorized, Forbidden."""
        self._check_open()
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(f"redis: {lease_s!r:.40} is not a lease", hint=f"seconds above 0, at most {MAX_LEASE_S:g}")
        checked = check_instance(instance)
        self._keeper.start()
        await self._own.register(checked, encode_record(checked), lease_s)

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of this id, whoever registered it; raises as `register` does."""
        self._check_open()
        await self._own.deregister(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The live records, from the server; raises Closed, Unreachable, Unauthorized, Forbidden."""
        self._check_open()
        return await self._reader.instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow changes, beginning with all that was registered before; raises as `instances` does."""
        self._check_open()
        self._watches_opening += 1
        try:
            state = await self._keeper.look()
            self._keeper.start()
            self._follower.start()
            await self._follower.reach(state.sequence, self._server.timeout_s)
            self._check_open()
            return self._watches.open(service, self._directory.instances())
        finally:
            self._watches_opening -= 1

    def _after_look(self, state: State) -> None:
        now = self._context.clock.now()
        self._follower.note(state.epoch, state.sequence)
        self._watches.publish(self._directory.release(now))
        if len(self._watches) or self._watches_opening:
            self._unwatched_since = math.inf
        elif self._unwatched_since == math.inf:
            self._unwatched_since = now
        elif now - self._unwatched_since > UNWATCHED_S and self._follower.is_running:
            self._follower.rest()

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("the redis registry is not started, or closed")
