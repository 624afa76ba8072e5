"""Keeps one broker host connected: connects, restores the subscriptions, waits for the end of the session, and repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Protocol

from micro_core.builtin.broker.host_selection import HostState
from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.contract.broker import Message
from micro_core.contract.driver import DriverContext
from micro_core.contract.errors import LinkLost, MicroError, Unreachable

CONNECT_TIMEOUT_S = 3.0
"""Timeout in seconds for connecting to a host and restoring all subscriptions."""

MAX_MISSED_KEEPALIVES = 3
"""Number of keepalive intervals in which a host may be silent."""

INITIAL_RETRY_S = 0.05

MAX_RETRY_S = 2.0
"""Longest pause in seconds between two attempts while another host is connected."""


class BrokerSession(Protocol):
    """One connection to a host."""

    address: str
    lost: asyncio.Event
    """Set at the end of the session."""

    async def wait_until_answered(self) -> None:
        """Wait for a sign of life of the host. Raises LinkLost."""
        ...

    async def wait_until_writable(self) -> bool:
        """Wait while the host reads too slowly. Return False if the session has ended."""
        ...

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has accepted the message. Raises LinkLost, Overloaded and the errors of the host."""
        ...

    async def subscribe(self, mailbox: Mailbox) -> None:
        """Return when the subscription is active. Idempotent. Raises LinkLost, Overloaded and the errors of the host."""
        ...

    def unsubscribe(self, mailbox: Mailbox) -> None:
        """End a subscription. Unknown ones are ignored."""
        ...

    async def keep_alive(self, interval_s: float, max_missed: int) -> None:
        """Send keepalives. Return when the host was silent for `max_missed` intervals."""
        ...

    async def close(self) -> None:
        """End the session. Safe to call twice."""
        ...


class HostConnection:
    """The connection to one host.

    Args:
        state: The state of the host, which is kept up to date.
        connect: Opens a session. Raises MicroError. `lost(session)` is to be called at its end.
        mailboxes: The subscriptions of the client.
        changed: Called after each change of `state`.
        settled_at: Returns when a host that is connected now is used for publishing.
        max_pause_s: Returns the longest pause in seconds before the next attempt.
        keepalive_s: Interval of keepalives in seconds.
        context: The context of the driver.
    """

    def __init__(
        self,
        state: HostState,
        *,
        connect: Callable[[HostConnection], Awaitable[BrokerSession]],
        mailboxes: Collection[Mailbox],
        changed: Callable[[], None],
        settled_at: Callable[[HostState], float],
        max_pause_s: Callable[[], float],
        keepalive_s: float,
        context: DriverContext,
    ) -> None:
        self.state = state
        self.session: BrokerSession | None = None
        """The open session. It is used for subscriptions before `state.is_connected` is set."""
        self._connect = connect
        self._mailboxes = mailboxes
        self._changed = changed
        self._settled_at = settled_at
        self._max_pause_s = max_pause_s
        self._keepalive_s = keepalive_s
        self._context = context

    async def run(self) -> None:
        """Keep the host connected until this task is cancelled."""
        attempts = 0
        try:
            while True:
                try:
                    session = await self._open()
                    attempts = 0
                    await self._wait_until_ended(session)
                except MicroError as error:
                    if attempts == 0:
                        self._context.logger.info(
                            "cannot connect to the broker", extra={"remote": self.state.address, "reason": str(error)}
                        )
                except Exception:
                    self._context.counters.add("broker_tasks_failed")
                    self._context.logger.exception("the connection to the broker failed")
                pause_s = min(self._max_pause_s(), INITIAL_RETRY_S * 2 ** min(attempts, 10))
                attempts += 1
                await asyncio.sleep(pause_s * self._context.random.uniform(0.5, 1.0))
        finally:
            session_left, self.session = self.session, None
            self.state.is_connected = False
            if session_left is not None:
                await session_left.close()

    def lost(self, session: BrokerSession) -> None:
        """Note that a session has ended. Called in the loop iteration of its end."""
        if self.session is session:
            self.session = None
            self.state.is_connected = False
            self._changed()

    async def _open(self) -> BrokerSession:
        """Return a session with all subscriptions active. Raises MicroError."""
        session: BrokerSession | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self.session = session = await self._connect(self)
                await session.wait_until_answered()
                await self._subscribe_all(session)
        except BaseException as error:
            self.state.has_failed = True
            if session is not None:
                self.lost(session)
                await session.close()
            self._changed()
            if isinstance(error, TimeoutError):
                raise Unreachable(f"no answer within {CONNECT_TIMEOUT_S:.3g} s") from None
            raise
        if session.lost.is_set():
            raise LinkLost("the session ended at once")
        self.state.has_failed = False
        self.state.is_connected = True
        self.state.settled_at = self._settled_at(self.state)
        self._changed()
        return session

    async def _subscribe_all(self, session: BrokerSession) -> None:
        """Restore all subscriptions. Those that are added meanwhile are requested by `subscribe` of the client."""
        mailboxes = list(self._mailboxes)
        results = await asyncio.gather(*map(session.subscribe, mailboxes), return_exceptions=True)
        for mailbox, result in zip(mailboxes, results, strict=True):
            if isinstance(result, LinkLost) or (result is not None and not isinstance(result, MicroError)):
                raise result
            if result is not None:
                self._context.counters.add("broker_subscriptions_refused")
                self._context.logger.warning(
                    "the broker refused a subscription", extra={"topic": mailbox.topic, "reason": str(result)}
                )

    async def _wait_until_ended(self, session: BrokerSession) -> None:
        """Return when the session has ended. End it if its host is silent."""
        conditions: list[Coroutine[Any, Any, Any]] = [session.lost.wait(), self._wait_until_silent(session)]
        tasks = [asyncio.get_running_loop().create_task(condition) for condition in conditions]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.lost(session)
        await session.close()
        for task in done:
            task.result()

    async def _wait_until_silent(self, session: BrokerSession) -> None:
        await session.keep_alive(self._keepalive_s, MAX_MISSED_KEEPALIVES)
        self._context.counters.add("broker_hosts_silent")
        self._context.logger.warning("the broker does not answer keepalives", extra={"remote": session.address})
