"""Connections by address: dialled once, shared by every call, dropped when dead, draining or long unused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import Closed, LinkLost, MicroError, Unreachable
from micro_core.contract.transport import Socket
from micro_core.rpc.connection import Connection, ConnectionHandler

log = logging.getLogger(__name__)

IDLE_CLOSE_S = 60.0
"""A connection without calls is kept this long."""

SWEEP_EVERY_S = 10.0
"""How often idle, drained and silent connections are looked for: a dead peer is noticed within two of them."""

MAX_DIAL_S = 10.0
"""The longest a dial may take, whoever waits for it."""

INITIAL_PENALTY_S = 0.1
MAX_PENALTY_S = 2.0
"""A failed address is not dialled again for a time that doubles from the first to the last."""

BUSY_STREAMS = 32
"""Open calls above which a second connection to an address is worth its cost, where more than one is allowed."""

MAX_REMEMBERED_FAILURES = 1_024


@dataclass(slots=True)
class _Failure:
    error: MicroError
    penalty_s: float
    until: float


@dataclass(slots=True)
class _Watch:
    """What the sweep knew of a connection at its last look."""

    bytes_received: int = 0
    quiet_since: float | None = None
    was_pinged: bool = False


class Pool:
    """Multiplexed connections, `per_address` at most to each address.

    `dial(address)` makes a socket or raises Unreachable. `handler` answers what the far sides begin.
    """

    def __init__(
        self,
        dial: Callable[[str], Awaitable[Socket]],
        *,
        clock: Clock,
        random: Random,
        handler: ConnectionHandler | None = None,
        node_id: str = "",
        counters: Counters | None = None,
        per_address: int = 1,
    ) -> None:
        self._dial = dial
        self._clock = clock
        self._random = random
        self._handler = handler
        self._node_id = node_id
        self._counters: Counters = counters if counters is not None else CountersInMemory()
        self._per_address = max(1, per_address)
        self._connections: dict[str, list[Connection]] = {}
        self._dialing: dict[str, asyncio.Task[Connection]] = {}
        self._failures: dict[str, _Failure] = {}
        self._watches: dict[Connection, _Watch] = {}
        self._closing: dict[asyncio.Task[None], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def connections(self) -> list[Connection]:
        """Every live connection, drained ones too."""
        return list(self._watches)

    def find(self, address: str) -> Connection | None:
        """The usable connection to `address` with the fewest open calls, or None. Costs no I/O."""
        found = self._connections.get(address)
        if not found:
            return None
        if len(found) == 1:
            only = found[0]
            return only if only.can_open_streams else None
        usable = [connection for connection in found if connection.can_open_streams]
        return min(usable, key=_open_streams, default=None)

    async def get(self, address: str, timeout_s: float) -> Connection:
        """A usable connection; dials when there is none, once for all who wait. Raises Unreachable.

        An address that has just failed raises again at once, for a short while.
        """
        if self._is_closed:
            raise Closed("the pool of connections is closed")
        connection = self.find(address)
        if connection is not None:
            if connection.open_streams >= BUSY_STREAMS and len(self._connections[address]) < self._per_address:
                self._start_dial(address)
            return connection
        failure = self._failures.get(address)
        if failure is not None and self._clock.now() < failure.until:
            raise Unreachable(failure.error.detail, at=failure.error.at or self._node_id, hint=failure.error.hint)
        task = self._start_dial(address)
        try:
            # The dial is shared: one impatient caller must not end it for the others.
            return await asyncio.wait_for(asyncio.shield(task), timeout_s)
        except TimeoutError as error:
            raise Unreachable(f"{address} did not answer within {timeout_s:.3g} s", at=self._node_id) from error

    async def close(self) -> None:
        """Close every connection; dials under way are given up. Safe to call twice."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        dials = list(self._dialing.values())
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, *self._closing, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in list(self._watches)), return_exceptions=True)

    def sweep(self) -> None:
        """Close what is idle or drained; ping what is busy and silent; break off what did not answer a ping."""
        now = self._clock.now()
        for connection, watch in list(self._watches.items()):
            heard = connection.bytes_received != watch.bytes_received
            watch.bytes_received = connection.bytes_received
            if connection.open_streams == 0:
                watch.was_pinged = False
                # Calls may have come and gone between two looks: what was heard since counts as use.
                if watch.quiet_since is None or heard:
                    watch.quiet_since = now
                if not connection.can_open_streams or now - watch.quiet_since >= IDLE_CLOSE_S:
                    self._close_behind(connection)
                continue
            watch.quiet_since = None
            if heard:
                watch.was_pinged = False
            elif watch.was_pinged:
                self._counters.add("connections_silent")
                connection.abort(LinkLost(f"{connection.remote} has been silent", at=self._node_id))
            else:
                watch.was_pinged = True
                connection.ping()
        for address in [address for address, failure in self._failures.items() if failure.until + 10.0 < now]:
            del self._failures[address]

    def _start_dial(self, address: str) -> asyncio.Task[Connection]:
        task = self._dialing.get(address)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial_one(address))
            self._dialing[address] = task
            task.add_done_callback(lambda done: self._dial_ended(address, done))
        return task

    async def _dial_one(self, address: str) -> Connection:
        try:
            async with asyncio.timeout(MAX_DIAL_S):
                socket = await self._dial(address)
        except TimeoutError as error:
            raise Unreachable(f"{address} did not answer within {MAX_DIAL_S:.3g} s", at=self._node_id) from error
        connection = Connection(
            socket, dialed=True, handler=self._handler, node_id=self._node_id, counters=self._counters
        )
        self._failures.pop(address, None)
        self._connections.setdefault(address, []).append(connection)
        self._watches[connection] = _Watch()
        connection.on_lost(lambda lost, _error: self._forget(address, lost))
        self._schedule_sweep()
        return connection

    def _dial_ended(self, address: str, task: asyncio.Task[Connection]) -> None:
        self._dialing.pop(address, None)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, MicroError):
            self._remember_failure(address, error)
        elif error is not None:
            self._counters.add("dial_bugs")
            log.error("a dial failed in an unforeseen way", extra={"remote": address}, exc_info=error)

    def _remember_failure(self, address: str, error: MicroError) -> None:
        self._counters.add("dials_failed")
        before = self._failures.get(address)
        penalty_s = min(before.penalty_s * 2, MAX_PENALTY_S) if before is not None else INITIAL_PENALTY_S
        if before is None and len(self._failures) >= MAX_REMEMBERED_FAILURES:
            del self._failures[next(iter(self._failures))]
        until = self._clock.now() + penalty_s * self._random.uniform(0.75, 1.25)
        self._failures[address] = _Failure(error, penalty_s, until)

    def _forget(self, address: str, connection: Connection) -> None:
        self._watches.pop(connection, None)
        found = self._connections.get(address)
        if found is not None and connection in found:
            found.remove(connection)
            if not found:
                del self._connections[address]

    def _close_behind(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(connection.close())
        self._closing[task] = None
        task.add_done_callback(lambda gone: self._closing.pop(gone, None))

    def _schedule_sweep(self) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep_on_timer)

    def _sweep_on_timer(self) -> None:
        self._timer = None
        self.sweep()
        if self._watches:
            self._schedule_sweep()


def _open_streams(connection: Connection) -> int:
    return connection.open_streams
