"""Messages between sites: each site with a subscriber gets one copy, and a site without gets none.

Interest in a topic is a route (`~topic`). The node subscribes on its own broker to topics that somebody elsewhere
wants, and sends each message towards the origins of that interest: the copy lists its targets, and every hop splits
the list by next hop (as RFC 5058's explicit multicast does). Whoever is a target hands the message to its broker, marked, so
that no node of that site sends it out again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import replace

from micro_core.contract.broker import Broker, Message, Subscription
from micro_core.contract.errors import MicroError, Unreachable
from micro_core.contract.names import INTEREST_PREFIX, interest_name
from micro_core.contract.table import NETWORK_LINK, RouteEvent
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.duplicate_filter import SeenCopies
from micro_core.proxy.proxy import Proxy
from micro_core.proxy.routes import RouteSource
from micro_core.wire import limits
from micro_core.wire.frames import Kind, encode_message
from micro_core.wire.header import EventHeader, encode_header

DELIVERED_BY = "micro-delivered-by"
"""Header of a message that a node handed to its site's broker: it came from another site and stays here."""

ORIGIN = "micro-origin"
"""Header with the node id of the site where the message was published."""

MAX_WAITING = 10_000
"""Messages that wait for the site's broker; newer ones are dropped and counted."""


class Topics:
    """Carries messages between the site's broker and the other sites."""

    def __init__(
        self,
        *,
        router: RouteSource,
        proxy: Proxy,
        broker: Broker,
        environment: Environment,
    ) -> None:
        self._node_id = environment.node_id
        self._router = router
        self._proxy = proxy
        self._broker = broker
        self._clock = environment.clock
        self._log = environment.logger
        self._counters = environment.counters
        self._seen = SeenCopies()
        self._subscriptions: dict[str, Subscription] = {}
        self._wanted: set[str] = set()
        self._waiting: deque[tuple[str, Message]] = deque()
        self._changed = asyncio.Event()
        self._has_waiting = asyncio.Event()
        self._tasks = BackgroundTasks(
            component="topics",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="topics_tasks_failed",
        )

    async def start(self) -> None:
        """Follow interest; returns when what is wanted now is subscribed."""
        self._router.watch(self._route_changed)
        self._wanted = set(self._wanted_topics())
        await self._reconcile()
        self._tasks.start(self._keep_reconciled())
        self._tasks.start(self._deliver())

    async def close(self) -> None:
        await self._tasks.cancel()
        for subscription in self._subscriptions.values():
            try:
                await subscription.close()
            except MicroError as error:
                self._log.info("subscription not closed", extra={"reason": str(error)})
        self._subscriptions.clear()

    def topics(self) -> list[str]:
        """The topics that leave this site now."""
        return sorted(self._subscriptions)

    # --------------------------------------------------------------- interest

    def _route_changed(self, event: RouteEvent) -> None:
        if event.route.service.startswith(INTEREST_PREFIX):
            self._changed.set()

    def _wanted_topics(self) -> Iterable[str]:
        for route in self._router.routes():
            if route.link == NETWORK_LINK and route.service.startswith(INTEREST_PREFIX):
                yield route.service[len(INTEREST_PREFIX) :]

    async def _keep_reconciled(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._wanted = set(self._wanted_topics())
            try:
                await self._reconcile()
            except MicroError as error:
                self._counters.add("topics_subscribe_failures")
                self._log.warning("cannot subscribe on the site's broker", extra={"reason": str(error)})
                await asyncio.sleep(1.0)
                self._changed.set()

    async def _reconcile(self) -> None:
        for topic in sorted(self._wanted.difference(self._subscriptions)):
            self._subscriptions[topic] = await self._broker.subscribe(topic, self._published_here)
        for topic in sorted(set(self._subscriptions).difference(self._wanted)):
            await self._subscriptions.pop(topic).close()

    # ------------------------------------------------------------------- out

    async def _published_here(self, topic: str, message: Message) -> None:
        if DELIVERED_BY in message.headers:
            return
        targets = {route.router for route in self._router.lookup(interest_name(topic)) if route.link == NETWORK_LINK}
        header = EventHeader(
            topic, message.id, message.content_type, message.headers, (), limits.MAX_HOPS, self._node_id
        )
        self._send(header, sorted(targets), message.body)

    def _send(self, header: EventHeader, targets: Iterable[str], body: bytes) -> None:
        by_gateway: dict[str, list[str]] = defaultdict(list)
        gateways: dict[str, str] = {}
        for route in self._router.lookup(interest_name(header.topic)):
            if route.link == NETWORK_LINK:
                gateways.setdefault(route.router, route.gateway)
        for target in targets:
            gateway = gateways.get(target)
            if gateway is None:
                self._counters.add("topics_messages_without_route")
            else:
                by_gateway[gateway].append(target)
        for gateway, through in by_gateway.items():
            self._send_to(gateway, header._replace(targets=tuple(through)), body)

    def _send_to(self, gateway: str, header: EventHeader, body: bytes) -> None:
        try:
            connection = self._proxy.peer_connection(gateway)
        except Unreachable:
            self._counters.add("topics_messages_unreachable")
            return
        if connection.is_clogged:
            # At most once: a link that cannot keep up loses messages, and says how many.
            self._counters.add("topics_messages_dropped_slow_link")
            return
        for frame in encode_message(Kind.EVENT, 0, encode_header(header), body):
            connection.send(frame)
        self._counters.add("topics_messages_sent")

    # -------------------------------------------------------------------- in

    def message_received(self, header: EventHeader, body: bytes) -> None:
        """Receive a message of another site. Set as the message handler of the proxy where both are assembled."""
        now = self._clock.now()
        fresh = [target for target in header.targets if self._seen.first_time(header.id, target, now)]
        if len(fresh) < len(header.targets):
            self._counters.add("topics_copies_dropped", len(header.targets) - len(fresh))
        onward = [target for target in fresh if target != self._node_id]
        if onward:
            if header.hops_left <= 0:
                self._counters.add("topics_messages_out_of_hops")
            else:
                self._send(header._replace(hops_left=header.hops_left - 1), onward, body)
        if len(onward) < len(fresh):
            self._enqueue(header, body)

    def _enqueue(self, header: EventHeader, body: bytes) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._counters.add("topics_messages_dropped_slow_broker")
            return
        headers = {**header.headers, DELIVERED_BY: self._node_id, ORIGIN: header.origin}
        message = Message(id=header.id, body=bytes(body), content_type=header.content_type, headers=headers)
        self._waiting.append((header.topic, message))
        self._has_waiting.set()

    async def _deliver(self) -> None:
        """One task, one after the other: the order of a publisher is kept."""
        while True:
            await self._has_waiting.wait()
            self._has_waiting.clear()
            while self._waiting:
                topic, message = self._waiting.popleft()
                try:
                    await self._broker.publish(topic, message)
                except MicroError as error:
                    self._counters.add("topics_messages_undelivered")
                    self._log.warning("message not delivered", extra={"topic": topic, "reason": str(error)})
                else:
                    self._counters.add("topics_messages_delivered")


def unmarked(message: Message) -> Message:
    """`message` without the house's own headers: what a publisher may send."""
    kept = {name: value for name, value in message.headers.items() if not name.startswith("micro-")}
    return replace(message, headers=kept)
