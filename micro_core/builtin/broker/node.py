"""The driver `broker:node`: a client of the brokers that the nodes of this site host.

The client finds the hosts in the registry, as `go.micro.broker`. It subscribes on the three hosts with the smallest ids
that answer, and publishes on the one with the smallest id (`host_selection`), so that a message reaches each subscriber
once. Subscriptions are restored on each new connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.host_connection import MAX_RETRY_S, BrokerSession, HostConnection
from micro_core.builtin.broker.host_selection import SETTLE_S, HostState, host_to_publish_on, hosts_to_connect
from micro_core.builtin.broker.local_session import LocalSession
from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.builtin.broker.session import HostSession
from micro_core.contract import (
    Broker,
    Closed,
    ConfigError,
    Driver,
    DriverContext,
    Instance,
    LinkLost,
    Message,
    MessageHandler,
    MicroError,
    Registry,
    RegistryEventKind,
    Subscription,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.contract.messages import check_message, check_queue
from micro_core.contract.names import BROKER_SERVICE, check_topic
from micro_core.lifecycle.background_tasks import BackgroundTasks

DIAL_TIMEOUT_S = 2.0

INITIAL_ROUND_S = 1.0
"""Seconds that the first use waits for hosts with a smaller id than one that is connected already."""

SUBSCRIBE_GRACE_S = 1.0
"""Seconds that `subscribe` waits for further hosts once one has acknowledged the subscription."""

CONFIGURED_HOST = "configured"
"""Id of the host with the configured address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBrokerOptions:
    """Options of `broker:node`."""

    address: str = option("", "Address of the only host. If empty, the hosts are those of the registry.")
    publish_timeout_s: float = option(5.0, "Seconds that `publish` waits for the host.")
    subscribe_timeout_s: float = option(2.0, "Seconds that `subscribe` waits for a host before it returns without one.")
    retry_s: float = option(0.5, "Longest pause between two attempts to connect, in seconds.")
    keepalive_s: float = option(
        1.0, "Interval of keepalives in seconds. A host that is silent for three intervals is disconnected."
    )


class NodeBroker:
    """Implements `Broker`. Connects with its first use, and again whenever a connection is lost.

    `subscribe` returns when a host has acknowledged the subscription. If there is no host within `subscribe_timeout_s`
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
        self._local_host: BrokerHost | None = None
        self._mailboxes: dict[Mailbox, None] = {}
        self._hosts: dict[str, HostConnection] = {}
        """The known hosts by id: those of the registry, and those with an open session."""
        self._host_tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        """Set after each change of a host, and after `close`."""
        self._first_round_ends_at: float | None = None
        """When the wait for the first attempts to connect ends; None before the first connection."""
        self._is_first_round = True
        self._has_hosts = False
        """Whether the hosts have been read from the registry."""
        self._tasks = BackgroundTasks(
            component="broker client",
            logger=context.logger,
            counters=context.counters,
            failure_counter="broker_tasks_failed",
        )
        self._is_started = False
        self._is_closed = False

    def set_local_host(self, host: BrokerHost) -> None:
        """Use `host` without a socket. Call this before the first use, on a node that hosts a broker itself."""
        self._local_host = host

    async def start(self) -> None:
        """Do nothing: the first use connects."""

    async def close(self) -> None:
        """Close all subscriptions and disconnect. Safe to call twice."""
        self._is_closed = True
        self._notify()
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._mailboxes)))
        await self._tasks.cancel()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has accepted the message. Raises TooLarge, BadRequest, Overloaded, Closed.

        Raises:
            Unreachable: There was no host within `publish_timeout_s`.
            LinkLost: The message was sent, but not acknowledged. It may have been delivered, and is not sent again.
        """
        check_topic(topic)
        check_message(message)
        session: BrokerSession | None = None
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
        """Request the subscription on all connected hosts. Raises the error of a host that refuses it."""
        while True:
            await self._connected()
            sessions = [host.session for host in self._hosts.values() if host.session is not None]
            tasks = [asyncio.create_task(session.subscribe(mailbox)) for session in sessions]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                # Hosts that do not answer are disconnected soon, and get the subscription with the next connection.
                await asyncio.wait(tasks, timeout=SUBSCRIBE_GRACE_S)
            finally:
                for task in tasks:
                    task.cancel()
            errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            for error in errors:
                if error is not None and not isinstance(error, LinkLost):
                    raise error
            if None in errors:
                return

    async def _writable_session(self) -> BrokerSession:
        while True:
            session = await self._connected()
            if await session.wait_until_writable():
                return session

    async def _connected(self) -> BrokerSession:
        """Return the session on which messages are published, once there is one."""
        self._check_open()
        if not self._is_started:
            self._is_started = True
            self._start_connecting()
        while True:
            now = self._context.clock.now()
            chosen = host_to_publish_on(self._states(), now)
            if chosen is not None and not self._awaits_others(now):
                session = self._hosts[chosen.id].session
                assert session is not None
                return session
            self._changed.clear()
            try:
                async with asyncio.timeout(INITIAL_ROUND_S if chosen is not None else None):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._check_open()

    def _awaits_others(self, now: float) -> bool:
        """Return whether the first attempts to connect to all hosts have not ended: one with a smaller id may follow."""
        if self._is_first_round:
            states = self._states()
            if self._first_round_ends_at is None and any(state.is_connected for state in states):
                self._first_round_ends_at = now + INITIAL_ROUND_S
            is_over = self._first_round_ends_at is not None and now >= self._first_round_ends_at
            was_tried = self._has_hosts and all(state.was_tried for state in hosts_to_connect(states))
            self._is_first_round = not is_over and not was_tried
        return self._is_first_round

    def _mailbox_closed(self, mailbox: Mailbox) -> None:
        self._mailboxes.pop(mailbox, None)
        for host in self._hosts.values():
            if host.session is not None:
                host.session.unsubscribe(mailbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the broker is closed")

    # ------------------------------------------------------------------- the hosts

    def _states(self) -> list[HostState]:
        return [host.state for host in self._hosts.values()]

    def _start_connecting(self) -> None:
        if self._registry is None or self._options.address:
            self._has_hosts = True
            self._put(CONFIGURED_HOST, self._options.address)
            self._update_connections()
        else:
            self._tasks.start(self._follow_registry(self._registry))

    async def _follow_registry(self, registry: Registry) -> None:
        """Keep the list of hosts up to date."""
        while True:
            try:
                self._replace_all(await registry.instances(BROKER_SERVICE))
                watch = await registry.watch(BROKER_SERVICE)
                try:
                    # A watch begins with the current records, so that a change since the read is seen, too.
                    async for event in watch:
                        if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                            self._replace_all(await registry.instances(BROKER_SERVICE))
                        elif event.kind is RegistryEventKind.DELETED:
                            self._remove(event.instance.id)
                        else:
                            self._put(event.instance.id, event.instance.address)
                        self._update_connections()
                finally:
                    await watch.close()
            except MicroError as error:
                # An unreachable registry does not mean that the hosts have stopped.
                self._context.logger.info("cannot read the brokers of the site", extra={"reason": str(error)})
            await asyncio.sleep(self._options.retry_s * self._context.random.uniform(0.5, 1.0))

    def _replace_all(self, instances: list[Instance]) -> None:
        found = {instance.id: instance.address for instance in instances}
        for host_id in [host_id for host_id in self._hosts if host_id not in found]:
            self._remove(host_id)
        for host_id, address in found.items():
            self._put(host_id, address)
        self._has_hosts = True
        self._update_connections()

    def _put(self, host_id: str, address: str) -> None:
        host = self._hosts.get(host_id)
        if host is not None and host.state.address == address:
            host.state.is_registered = True
            return
        if host is not None:
            # The host was started again. Its previous session ends.
            self._disconnect(host_id)
        self._hosts[host_id] = HostConnection(
            HostState(host_id, address),
            connect=self._open_session,
            mailboxes=self._mailboxes,
            changed=self._notify,
            settled_at=self._settled_at,
            max_pause_s=self._max_pause_s,
            keepalive_s=self._options.keepalive_s,
            context=self._context,
        )

    def _remove(self, host_id: str) -> None:
        # A missing record does not mean that the host has stopped: its session is used until it ends.
        host = self._hosts.get(host_id)
        if host is not None:
            host.state.is_registered = False

    def _update_connections(self) -> None:
        """Connect to the hosts that are wanted, and disconnect from the others."""
        wanted = {state.id: None for state in hosts_to_connect(self._states())}
        for host_id, host in list(self._hosts.items()):
            if host_id in wanted:
                if host_id not in self._host_tasks:
                    self._host_tasks[host_id] = self._tasks.start(host.run())
            elif host.state.is_registered or not host.state.is_connected:
                self._disconnect(host_id)
                if not host.state.is_registered:
                    del self._hosts[host_id]

    def _disconnect(self, host_id: str) -> None:
        task = self._host_tasks.pop(host_id, None)
        if task is not None:
            task.cancel()

    def _notify(self) -> None:
        self._changed.set()
        if self._has_hosts and not self._is_closed:
            self._awaits_others(self._context.clock.now())
            self._update_connections()

    def _settled_at(self, state: HostState) -> float:
        """Return from when on messages are published on a host that is connected now.

        When this client has just been started, it uses the hosts that exist already at once. A node does not do so with
        its own host, to which no other client is connected yet.
        """
        now = self._context.clock.now()
        is_local = self._local_host is not None and state.address == self._local_host.address
        return now if self._is_first_round and not is_local else now + SETTLE_S

    def _max_pause_s(self) -> float:
        is_connected = any(state.is_connected for state in self._states())
        return max(self._options.retry_s, MAX_RETRY_S) if is_connected else self._options.retry_s

    async def _open_session(self, host: HostConnection) -> BrokerSession:
        address = host.state.address
        if self._local_host is not None and address == self._local_host.address:
            return LocalSession(self._local_host, self._context.clock, host.lost)
        socket = await self._transport.dial(address, timeout_s=DIAL_TIMEOUT_S)
        return HostSession(
            socket,
            address=address,
            node_id=self._context.node_id,
            counters=self._context.counters,
            logger=self._context.logger,
            on_lost=host.lost,
        )


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
