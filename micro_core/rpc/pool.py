"""A pool of connections by address. All calls to an address share them. Idle, draining and dead connections are closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import Closed, LinkLost, MicroError, Unreachable
from micro_core.contract.transport import Socket
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.rpc.connection import Connection, ConnectionHandler

log = logging.getLogger(__name__)

IDLE_CLOSE_S = 60.0
"""A connection without calls is closed after this time."""

SWEEP_EVERY_S = 10.0
"""Interval at which connections are checked. A peer that does not respond is detected after two intervals."""

MAX_DIAL_S = 10.0
"""Maximum duration of a dial, independent of the deadlines of the calls that wait for it."""

INITIAL_PENALTY_S = 0.1
MAX_PENALTY_S = 2.0
"""An address that failed is not dialled again for a time that doubles from INITIAL_PENALTY_S to MAX_PENALTY_S."""

BUSY_STREAMS = 32
"""Number of open calls on a connection above which another one is opened, if `per_address` permits it."""

MAX_REMEMBERED_FAILURES = 1_024
"""Maximum number of addresses whose failures are stored. The oldest is dropped first."""

_FORGET_FAILURE_S = 10.0
"""Time after the end of a penalty until the failure is deleted, so that the penalty of the next failure starts again."""


@dataclass(slots=True)
class _Failure:
    error: MicroError
    penalty_s: float
    until: float


@dataclass(slots=True)
class _Activity:
    """The state of a connection at the last check."""

    bytes_received: int = 0
    idle_since: float | None = None
    ping_sent: bool = False


class Pool:
    """Multiplexed connections by address.

    Args:
        dial: Opens a socket to an address, or raises Unreachable.
        clock: The source of time for idle times and penalties.
        random: The source of jitter.
        handler: Serves the calls that peers start on these connections.
        node_id: The name of this process in errors.
        counters: Where failed dials and silent connections are counted.
        per_address: Maximum number of connections to an address.
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
        self._activities: dict[Connection, _Activity] = {}
        self._tasks = BackgroundTasks(
            component="connection pool", logger=log, counters=self._counters, failure_counter="pool_tasks_failed"
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def connections(self) -> list[Connection]:
        """Return all open connections, including those that are draining."""
        return list(self._activities)

    def find(self, address: str) -> Connection | None:
        """Return the usable connection to `address` with the fewest open calls, or None. Does no I/O."""
        found = self._connections.get(address)
        if not found:
            return None
        if len(found) == 1:
            only = found[0]
            return only if only.can_open_streams else None
        usable = [connection for connection in found if connection.can_open_streams]
        return min(usable, key=_open_streams, default=None)

    async def get(self, address: str, timeout_s: float) -> Connection:
        """Return a usable connection to `address`, and dial if there is no such connection.

        Concurrent calls for the same address share one dial. Cancelling one of them does not cancel the dial.

        Args:
            address: The address of a transport, e.g. `tcp://10.0.0.5:4000`.
            timeout_s: Maximum time to wait for the dial, in seconds.

        Raises:
            Unreachable: The dial failed or timed out, or it failed a short time ago and is not repeated yet.
            Closed: The pool has been closed.
        """
        if self._is_closed:
            raise Closed("the connection pool has been closed")
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
            # Other callers may wait for the same dial, so a timeout of this one must not cancel it.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise Unreachable(f"{address} did not answer within {timeout_s:.3g} s", at=self._node_id) from error

    async def close(self) -> None:
        """Close all connections and cancel the dials in progress. Safe to call twice."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        dials = list(self._dialing.values())
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        await self._tasks.wait()
        await asyncio.gather(*(connection.close() for connection in list(self._activities)), return_exceptions=True)

    def sweep(self) -> None:
        """Close idle and drained connections, ping silent ones with open calls, and abort those that did not respond to a ping."""
        now = self._clock.now()
        for connection, activity in list(self._activities.items()):
            has_received = connection.bytes_received != activity.bytes_received
            activity.bytes_received = connection.bytes_received
            if connection.open_streams == 0:
                activity.ping_sent = False
                # Calls may have started and ended since the last check, so received bytes count as activity.
                if activity.idle_since is None or has_received:
                    activity.idle_since = now
                if not connection.can_open_streams or now - activity.idle_since >= IDLE_CLOSE_S:
                    self._tasks.start(connection.close())
                continue
            activity.idle_since = None
            if has_received:
                activity.ping_sent = False
            elif activity.ping_sent:
                self._counters.add("connections_silent")
                connection.abort(LinkLost(f"{connection.remote} did not respond to a ping", at=self._node_id))
            else:
                activity.ping_sent = True
                connection.ping()
        for address in [
            address for address, failure in self._failures.items() if failure.until + _FORGET_FAILURE_S < now
        ]:
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
        self._activities[connection] = _Activity()
        connection.set_lost_handler(lambda lost, _error: self._remove(address, lost))
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
            log.error("a dial failed: unexpected error", extra={"remote": address}, exc_info=error)

    def _remember_failure(self, address: str, error: MicroError) -> None:
        self._counters.add("dials_failed")
        before = self._failures.get(address)
        penalty_s = min(before.penalty_s * 2, MAX_PENALTY_S) if before is not None else INITIAL_PENALTY_S
        if before is None and len(self._failures) >= MAX_REMEMBERED_FAILURES:
            del self._failures[next(iter(self._failures))]
        until = self._clock.now() + penalty_s * self._random.uniform(0.75, 1.25)
        self._failures[address] = _Failure(error, penalty_s, until)

    def _remove(self, address: str, connection: Connection) -> None:
        self._activities.pop(connection, None)
        found = self._connections.get(address)
        if found is not None and connection in found:
            found.remove(connection)
            if not found:
                del self._connections[address]

    def _schedule_sweep(self) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep_on_timer)

    def _sweep_on_timer(self) -> None:
        self._timer = None
        self.sweep()
        if self._activities:
            self._schedule_sweep()


def _open_streams(connection: Connection) -> int:
    return connection.open_streams
