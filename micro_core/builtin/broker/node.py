"""The driver `broker:node`: a client of the broker that a node of this site hosts.

The client finds the hosts in the registry, as `go.micro.broker`, and uses the one with the smallest id, so that all clients
of a site use the same host. If a host with a smaller id appears, all clients change to it. Subscriptions are restored on
each new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.builtin.broker.session import HostSession
from micro_core.contract import (
    Broker,
    Closed,
    ConfigError,
    Driver,
    DriverContext,
    LinkLost,
    Message,
    MessageHandler,
    MicroError,
    Subscription,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.contract.messages import check_message, check_queue
from micro_core.contract.names import BROKER_SERVICE, check_topic
from micro_core.lifecycle.background_tasks import BackgroundTasks

CONNECT_TIMEOUT_S = 5.0
"""Time to find the host, dial it and restore all subscriptions."""

INITIAL_RETRY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBrokerOptions:
    """Options of `broker:node`."""

    address: str = option("", "Address of the host. If empty, the registry is searched for it.")
    publish_timeout_s: float = option(5.0, "Seconds that `publish` waits for the host.")
    subscribe_timeout_s: float = option(2.0, "Seconds that `subscribe` waits for a host before it returns without one.")
    retry_s: float = option(0.5, "Longest pause between two attempts to connect, in seconds.")
    keepalive_s: float = option(
        10.0, "Interval of keepalives in seconds. A host that does not answer within it is disconnected."
    )


class NodeBroker:
    """Implements `Broker`. Connects with its first use, and again whenever the connection is lost.

    `subscribe` returns when the host has acknowledged the subscription. If there is no host within `subscribe_timeout_s`
    (services are often started before their node), it logs a warning and returns; the subscription is active as soon as
    there is a host.

    Raises:
        ConfigError: There is no transport, or neither a registry nor an address.
    """

    def __init__(self, options: NodeBrokerOptions, context: DriverContext) -> None:
        if context.transport is None or (context.registry is None and not options.address):
            raise ConfigError("the driver broker:node needs a transport and a registry")
        self._options = options
        self._context = context
        self._transport = context.transport
        self._registry = context.registry
        self._mailboxes: dict[Mailbox, None] = {}
        self._session: HostSession | None = None
        self._changed = asyncio.Event()
        """Set while there is a session, and after `close`."""
        self._tasks = BackgroundTasks(
            component="broker client",
            logger=context.logger,
            counters=context.counters,
            failure_counter="broker_tasks_failed",
        )
        self._is_closed = False

    async def start(self) -> None:
        """Do nothing: the first use connects."""

    async def close(self) -> None:
        """Close all subscriptions and disconnect. Safe to call twice."""
        self._is_closed = True
        self._changed.set()
        await self._tasks.cancel()
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._mailboxes)))
        if self._session is not None:
            await self._session.close()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has accepted the message. Raises TooLarge, BadRequest, Overloaded, Closed.

        Raises:
            Unreachable: There was no host within `publish_timeout_s`.
            LinkLost: The message was sent, but not acknowledged. It may have been delivered, and is not sent again.
        """
        check_topic(topic)
        check_message(message)
        session: HostSession | None = None
        try:
            async with asyncio.timeout(self._options.publish_timeout_s):
                session = await self._writable_session()
                await session.publish(topic, message)
        except TimeoutError:
            if session is not None:
                raise LinkLost(f"the broker at {session.address} did not acknowledge a message on {topic}") from None
            raise Unreachable(
                f"no broker accepted the message on {topic}", hint="is a node running on this site? micro run"
            ) from None

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Deliver the messages of `topic` to `handler`. Raises BadRequest, Closed."""
        check_topic(topic)
        check_queue(queue)
        self._check_open()
        mailbox = Mailbox(topic, queue, handler, self._context.counters, self._mailbox_closed)
        self._mailboxes[mailbox] = None
        try:
            async with asyncio.timeout(self._options.subscribe_timeout_s):
                await self._activate(mailbox)
        except TimeoutError:
            self._context.counters.add("broker_subscriptions_waiting")
            self._context.logger.warning(
                "no broker is available yet, the subscription waits for one", extra={"topic": topic}
            )
        except BaseException:
            await mailbox.close()
            raise
        return mailbox

    # ------------------------------------------- awaited by publish and subscribe

    async def _activate(self, mailbox: Mailbox) -> None:
        while True:
            session = await self._connected()
            try:
                await session.subscribe(mailbox)
                return
            except LinkLost:
                # The next session includes this subscription.
                continue

    async def _writable_session(self) -> HostSession:
        while True:
            session = await self._connected()
            if await session.wait_until_writable():
                return session

    async def _connected(self) -> HostSession:
        self._check_open()
        if len(self._tasks) == 0:
            self._tasks.start(self._maintain_connection())
        while self._session is None:
            await self._changed.wait()
            self._check_open()
        return self._session

    def _mailbox_closed(self, mailbox: Mailbox) -> None:
        self._mailboxes.pop(mailbox, None)
        if self._session is not None:
            self._session.unsubscribe(mailbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the broker is closed")

    # ----------------------------------------------------- the connection task

    async def _maintain_connection(self) -> None:
        """Connect, restore the subscriptions, wait for the end of the session, and repeat."""
        attempts = 0
        while True:
            try:
                session = await self._connect()
                attempts = 0
                await self._wait_until_ended(session)
            except MicroError as error:
                if attempts == 0:
                    self._context.logger.info("cannot connect to the broker", extra={"reason": str(error)})
            except Exception:
                self._context.counters.add("broker_tasks_failed")
                self._context.logger.exception("the connection to the broker failed")
            max_pause_s = min(self._options.retry_s, INITIAL_RETRY_S * 2 ** min(attempts, 10))
            attempts += 1
            await asyncio.sleep(max_pause_s * self._context.random.uniform(0.2, 1.0))

    async def _connect(self) -> HostSession:
        """Return a session with all subscriptions active. Raises MicroError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                address = await self._find_host()
                socket = await self._transport.dial(address, timeout_s=3.0)
                session = HostSession(
                    socket,
                    address=address,
                    node_id=self._context.node_id,
                    counters=self._context.counters,
                    logger=self._context.logger,
                    on_lost=self._session_lost,
                )
                try:
                    await self._subscribe_all(session)
                except BaseException:
                    await session.close()
                    raise
        except TimeoutError:
            raise Unreachable(f"no broker host answered within {CONNECT_TIMEOUT_S:.3g} s") from None
        self._session = session
        self._changed.set()
        return session

    async def _find_host(self) -> str:
        if self._options.address:
            return self._options.address
        assert self._registry is not None
        hosts = await self._registry.instances(BROKER_SERVICE)
        if not hosts:
            raise Unreachable("no broker is registered on this site", hint="micro run")
        return min(hosts, key=lambda host: host.id).address

    async def _subscribe_all(self, session: HostSession) -> None:
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

    async def _wait_until_ended(self, session: HostSession) -> None:
        """Return when the session has ended. End it if its host is silent or is no longer the host of the site."""
        conditions: list[Coroutine[Any, Any, None]] = [
            self._wait_until_lost(session),
            self._wait_until_silent(session),
            self._wait_until_replaced(session),
        ]
        tasks = [asyncio.get_running_loop().create_task(condition) for condition in conditions]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._session_lost(session)
        await session.close()
        for task in done:
            task.result()

    async def _wait_until_lost(self, session: HostSession) -> None:
        await session.lost.wait()

    async def _wait_until_silent(self, session: HostSession) -> None:
        await session.keep_alive(self._options.keepalive_s)
        self._context.counters.add("broker_hosts_silent")
        self._context.logger.warning("the broker does not answer keepalives", extra={"remote": session.address})

    async def _wait_until_replaced(self, session: HostSession) -> None:
        """Wait until the site has another broker host than that of `session`."""
        while self._registry is not None and not self._options.address:
            try:
                watch = await self._registry.watch(BROKER_SERVICE)
                try:
                    # A watch begins with the current records, so that a change since the host was chosen is seen, too.
                    async for _ in watch:
                        if await self._find_host() != session.address:
                            self._context.logger.info(
                                "changing to another broker of the site", extra={"remote": session.address}
                            )
                            return
                finally:
                    await watch.close()
            except MicroError as error:
                # An unreachable registry or a missing record does not mean that the host has stopped.
                self._context.logger.info("cannot watch the registry for brokers", extra={"reason": str(error)})
            await asyncio.sleep(self._options.keepalive_s)
        await session.lost.wait()

    def _session_lost(self, session: HostSession) -> None:
        if self._session is session:
            self._session = None
            if not self._is_closed:
                self._changed.clear()


def create(options: NodeBrokerOptions, context: DriverContext) -> Broker:
    """Return the broker. Raises ConfigError."""
    return NodeBroker(options, context)


@hookimpl
def micro_broker() -> Driver[Broker]:
    """Return the description of the driver."""
    return Driver(
        name="node",
        summary="Topics hosted by a node of this site.",
        options=NodeBrokerOptions,
        create=create,
        capabilities=frozenset({"queue-groups"}),
    )
