"""The broker role as a client of the broker that this site's node hosts.

The host is found in the registry, as `go.micro.broker`: of several, the one with the smallest id, so that all on a
site meet at the same; when a smaller one comes, everybody moves. Subscriptions outlive the connection: they are made
again at the next host.
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

CONNECT_TIMEOUT_S = 5.0
"""To find the host, dial it and make every subscription again."""

INITIAL_RETRY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBrokerOptions:
    """Options of the node's broker."""

    address: str = option("", "Address of the host; empty: found in the registry.")
    publish_timeout_s: float = option(5.0, "How long a publication may wait for the host.")
    subscribe_timeout_s: float = option(2.0, "How long `subscribe` waits for a host before it goes on without.")
    retry_s: float = option(0.5, "Longest pause between two tries to connect.")
    keepalive_s: float = option(10.0, "Seconds of silence after which a host must give a sign of life.")


class NodeBroker:
    """Implements `Broker`. Connects when it is first used, and again whenever the connection is lost.

    `subscribe` returns when the host has acknowledged. Where no host is there within `subscribe_timeout_s` (services
    often start before their node), it returns with a warning, and is in force as soon as there is one.
    """

    def __init__(self, options: NodeBrokerOptions, context: DriverContext) -> None:
        if context.transport is None or (context.registry is None and not options.address):
            raise ConfigError("the broker `node` needs a transport and a registry")
        self._options = options
        self._context = context
        self._transport = context.transport
        self._registry = context.registry
        self._mailboxes: dict[Mailbox, None] = {}
        self._session: HostSession | None = None
        self._changed = asyncio.Event()
        """Set while there is a session, and after `close`."""
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Nothing yet: a service without topics never connects."""

    async def close(self) -> None:
        self._is_closed = True
        self._changed.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._mailboxes)))
        if self._session is not None:
            await self._session.close()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has taken the message. Raises Unreachable, TooLarge, BadRequest, Overloaded.

        LinkLost, an Unreachable, says that it is not known whether the host has taken it: nothing is sent twice.
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
                f"no broker took the message on {topic}", hint="does a node run on this site? micro run"
            ) from None

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        check_topic(topic)
        check_queue(queue)
        self._check_open()
        mailbox = Mailbox(topic, queue, handler, self._context.counters, self._forget)
        self._mailboxes[mailbox] = None
        try:
            async with asyncio.timeout(self._options.subscribe_timeout_s):
                await self._put_in_force(mailbox)
        except TimeoutError:
            self._context.counters.add("broker_subscriptions_waiting")
            self._context.logger.warning("no broker yet; the subscription waits for one", extra={"topic": topic})
        except BaseException:
            await mailbox.close()
            raise
        return mailbox

    # --------------------------------------------------------- what users wait for

    async def _put_in_force(self, mailbox: Mailbox) -> None:
        while True:
            session = await self._connected()
            try:
                await session.subscribe(mailbox)
                return
            except LinkLost:
                # The next session makes it, or we do.
                continue

    async def _writable_session(self) -> HostSession:
        while True:
            session = await self._connected()
            if await session.room():
                return session

    async def _connected(self) -> HostSession:
        self._check_open()
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        while self._session is None:
            await self._changed.wait()
            self._check_open()
        return self._session

    def _forget(self, mailbox: Mailbox) -> None:
        self._mailboxes.pop(mailbox, None)
        if self._session is not None:
            self._session.unsubscribe(mailbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")

    # ------------------------------------------------------------- the one keeper

    async def _keep(self) -> None:
        """Connect, make the subscriptions again, wait for the end, begin anew."""
        tries = 0
        while True:
            try:
                session = await self._connect()
                tries = 0
                await self._until_over(session)
            except MicroError as error:
                if tries == 0:
                    self._context.logger.info("no broker host", extra={"reason": str(error)})
            except Exception:
                self._context.counters.add("broker_keeper_failures")
                self._context.logger.exception("the connection to the broker failed")
            longest_s = min(self._options.retry_s, INITIAL_RETRY_S * 2 ** min(tries, 10))
            tries += 1
            await asyncio.sleep(longest_s * self._context.random.uniform(0.2, 1.0))

    async def _connect(self) -> HostSession:
        """A session with every subscription in force. Raises MicroError."""
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

    async def _until_over(self, session: HostSession) -> None:
        """Return when the session has ended, and end it when its host is silent or no longer the site's."""
        ends: list[Coroutine[Any, Any, None]] = [
            self._lost(session),
            self._silent(session),
            self._moved(session),
        ]
        tasks = [asyncio.get_running_loop().create_task(end) for end in ends]
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

    async def _lost(self, session: HostSession) -> None:
        await session.lost.wait()

    async def _silent(self, session: HostSession) -> None:
        await session.keep_alive(self._options.keepalive_s)
        self._context.counters.add("broker_hosts_silent")
        self._context.logger.warning("the broker is silent", extra={"remote": session.address})

    async def _moved(self, session: HostSession) -> None:
        """Return when the registry names another host than the session's."""
        while self._registry is not None and not self._options.address:
            try:
                watch = await self._registry.watch(BROKER_SERVICE)
                try:
                    # A watch begins with what stands: a change since the host was chosen is seen too.
                    async for _ in watch:
                        if await self._find_host() != session.address:
                            self._context.logger.info("the site has another broker", extra={"remote": session.address})
                            return
                finally:
                    await watch.close()
            except MicroError as error:
                # Neither a registry that is away nor a record that is gone says that the host is.
                self._context.logger.info("cannot follow the broker", extra={"reason": str(error)})
            await asyncio.sleep(self._options.keepalive_s)
        await session.lost.wait()

    def _session_lost(self, session: HostSession) -> None:
        if self._session is session:
            self._session = None
            if not self._is_closed:
                self._changed.clear()


def create(options: NodeBrokerOptions, context: DriverContext) -> Broker:
    return NodeBroker(options, context)


@hookimpl
def micro_broker() -> Driver[Broker]:
    return Driver(
        name="node",
        summary="Topics hosted by this site's node.",
        options=NodeBrokerOptions,
        create=create,
        capabilities=frozenset({"queue-groups"}),
    )
