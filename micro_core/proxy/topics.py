"""Carries messages between sites: each site with a subscriber gets one copy, a site without subscribers gets no copy.

Interest in a topic is a route (`~topic`), which every node of a site with a subscriber advertises. All nodes of a site
subscribe on its broker to the topics in which another site is interested. The leader of the site (`site_leaders`) sends
each message to the leader of each such site; the other nodes keep it for a while (`handover`). The copy lists its targets,
and every hop splits the list by next hop (explicit multicast, RFC 5058). A target publishes the message on the broker of
its site (`deliveries`), marked with a header so that no node of the site sends it to other sites again. If the broker
stores messages, they are sent as calls that are answered instead (`durable_topics`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from micro_core.contract.broker import Broker, DurableBroker, Message, Subscription
from micro_core.contract.errors import MicroError, Unreachable
from micro_core.contract.names import INTEREST_PREFIX, NETWORK_SERVICE, interest_name
from micro_core.contract.table import ANY_SERVICE, NETWORK_LINK, OffersChanged, Route, TableEvent
from micro_core.lifecycle.beat import next_beat
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.deliveries import Deliveries, DeliverRequest
from micro_core.proxy.delivery_record import DeliveryRecord
from micro_core.proxy.duplicate_filter import DuplicateFilter
from micro_core.proxy.durable_topics import DurableTopics
from micro_core.proxy.handover import Handover
from micro_core.proxy.message_headers import DELIVERED_BY
from micro_core.proxy.node_call import NodeCaller
from micro_core.proxy.proxy import Proxy
from micro_core.proxy.routes import RouteSource, changes_interests
from micro_core.proxy.site_leaders import leaders_by_site, lesser_node
from micro_core.proxy.topic_subscriptions import close_subscription, topic_tasks
from micro_core.wire import limits
from micro_core.wire.frames import Kind, encode_message
from micro_core.wire.header import EventHeader, encode_header

TICK_S = 1.0
"""Interval in seconds at which the leader of the site is determined again, while this node has subscriptions or other nodes on its site."""


class Topics:
    """Carries messages between the broker of the site and the other sites."""

    def __init__(
        self,
        *,
        site: str,
        router: RouteSource,
        proxy: Proxy,
        broker: Broker,
        environment: Environment,
    ) -> None:
        self._node_id = environment.node_id
        self._site = site
        self._router = router
        self._proxy = proxy
        self._broker = broker
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._duplicates = DuplicateFilter()
        self._record = DeliveryRecord()
        self._handover = Handover()
        self._deliveries = Deliveries(broker=broker, environment=environment)
        self._durable: DurableTopics | None = None
        """Replaces the subscriptions and the handover if the broker stores messages."""
        if isinstance(broker, DurableBroker) and broker.is_durable:
            caller = NodeCaller(node_id=environment.node_id, proxy=proxy)
            self._durable = DurableTopics(
                site=site, router=router, caller=caller, broker=broker, environment=environment
            )
        self._node_routes: Sequence[Route] | None = None
        """The routes of the nodes from which the next two values were computed."""
        self._has_lesser = False
        """Whether another node of this site is its leader."""
        self._has_others = False
        """Whether this site has another node."""
        self._expired = 0
        """Number of kept messages that were dropped, as far as it is counted."""
        self._subscriptions: dict[str, Subscription] = {}
        self._changed_topics: dict[str, None] = {}
        """Topics whose interest has changed since they were compared with the subscriptions."""
        self._durable_topics: dict[str, None] = {}
        """Topics that are compared again when the leader of this site changes."""
        self._changed = asyncio.Event()
        self._tasks = topic_tasks(environment)

    async def start(self) -> None:
        """Follow the interest of other sites. Returns once the topics of current interest are subscribed.

        Raises what `subscribe` of the broker raises.
        """
        self._router.watch(self._route_changed)
        self._changed_topics = {service[len(INTEREST_PREFIX) :]: None for service in self._router.interests()}
        self._update_role()
        await self._reconcile()
        self._tasks.start(self._reconcile_periodically())
        self._deliveries.start()

    async def close(self) -> None:
        """End all subscriptions."""
        await self._tasks.cancel()
        await self._deliveries.close()
        if self._durable is not None:
            await self._durable.close()
        for subscription in self._subscriptions.values():
            await close_subscription(subscription, self._logger)
        self._subscriptions.clear()

    @property
    def is_leader(self) -> bool:
        """Whether this node sends the messages of its site to other sites."""
        return not self._has_lesser

    def topics(self) -> list[str]:
        """Return the topics that are sent to other sites now."""
        return sorted(self._subscriptions if self._durable is None else self._durable.topics())

    async def deliver(self, request: DeliverRequest) -> dict[str, Any]:
        """Publish a message of another site on the broker of this site. Raises BadRequest, TooLarge, Unreachable."""
        return await self._deliveries.deliver(request)

    # --------------------------------------------------------------- interest

    def _route_changed(self, event: TableEvent) -> None:
        if isinstance(event, OffersChanged):
            offers = [after or before for before, after in event.changes if before is None or after is None]
            services = {offer.service for offer in offers if offer is not None}
            topics = [one[len(INTEREST_PREFIX) :] for one in services if one.startswith(INTEREST_PREFIX)]
            is_role_affected = NETWORK_SERVICE in services
        elif changes_interests(event):
            # An origin was added or removed, with all that it is interested in.
            topics = [*self._subscriptions, *(one[len(INTEREST_PREFIX) :] for one in self._router.interests())]
            is_role_affected = True
        else:
            return
        self._changed_topics.update(dict.fromkeys(topics))
        if topics or is_role_affected:
            self._changed.set()

    async def _reconcile_periodically(self) -> None:
        while True:
            try:
                now = self._clock.now()
                pause_s = next_beat(now, TICK_S, self._node_id) - now
                async with asyncio.timeout(pause_s if self._subscriptions or self._has_others else None):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            self._update_role()
            try:
                await self._reconcile()
            except MicroError as error:
                self._counters.add("topics_subscribe_failures")
                self._logger.warning("cannot subscribe on the broker of the site", extra={"reason": str(error)})
                await asyncio.sleep(1.0)
                self._changed.set()

    async def _reconcile(self) -> None:
        """Subscribe to the topics in which another site is interested, and to no others."""
        while self._changed_topics:
            topic = next(iter(self._changed_topics))
            del self._changed_topics[topic]
            try:
                await self._reconcile_topic(topic)
            except MicroError:
                self._changed_topics[topic] = None
                raise
            finally:
                # A slow broker is not a stall of this node.
                self._update_role()

    async def _reconcile_topic(self, topic: str) -> None:
        is_of_interest = bool(leaders_by_site(self._router.lookup(interest_name(topic)), own_site=self._site))
        if self._durable is not None:
            self._durable_topics.pop(topic, None)
            if is_of_interest:
                self._durable_topics[topic] = None
            await self._durable.reconcile(topic, is_leader=self.is_leader)
            return
        if is_of_interest and topic not in self._subscriptions:
            self._subscriptions[topic] = await self._broker.subscribe(topic, self._published_locally)
            self._record.subscribed(topic, self._clock.now())
        elif not is_of_interest and topic in self._subscriptions:
            self._record.unsubscribed(topic)
            await self._subscriptions.pop(topic).close()

    # --------------------------------------------------------------- outgoing

    async def _published_locally(self, topic: str, message: Message) -> None:
        if DELIVERED_BY in message.headers:
            # If this node becomes the target of copies, it drops them.
            self._duplicates.is_first(message.id, self._node_id, self._clock.now())
            return
        self._update_role()
        if self._handover.must_send(topic, message, self._clock.now()):
            self._send_to_other_sites(topic, message)

    def _update_role(self) -> None:
        """Determine whether this node is the leader of its site. If it has become the leader, send the kept messages."""
        now = self._clock.now()
        routes = self._router.lookup(NETWORK_SERVICE)
        if routes is not self._node_routes:
            # Tables return the same object until a route has changed.
            self._node_routes = routes
            was_leader, self._has_lesser = (
                self.is_leader,
                bool(lesser_node(routes, own_site=self._site, node_id=self._node_id)),
            )
            if self.is_leader is not was_leader:
                self._changed_topics.update(self._durable_topics)
                self._changed.set()
            nodes = [one for one in routes if one.link == NETWORK_LINK and one.service != ANY_SERVICE]
            self._has_others = any(route.site == self._site for route in nodes)
            # A node without routes is not the leader for anybody.
            self._record.set_leader(self.is_leader and bool(nodes), now)
        due = self._handover.update(has_lesser=self._has_lesser, has_others=self._has_others, now=now)
        if self._handover.stall_ended_at == now:
            self._record.interrupted(now)
        for kept in due:
            self._counters.add("topics_messages_taken_over")
            self._send_to_other_sites(kept.topic, kept.message, age_s=now - kept.published_after)
        expired = self._handover.expired - self._expired
        if expired:
            self._expired += expired
            self._counters.add("topics_messages_expired", expired)

    def _send_to_other_sites(self, topic: str, message: Message, age_s: float | None = None) -> None:
        """Send one copy to the leader of each interested site. `age_s` is set if another node may have sent the message."""
        leaders = leaders_by_site(self._router.lookup(interest_name(topic)), own_site=self._site)
        age_ms = 0 if age_s is None else min(int(age_s * 1_000) + 1, limits.MAX_EVENT_AGE_MS)
        header = EventHeader(
            topic, message.id, message.content_type, message.headers, (), limits.MAX_HOPS, self._node_id, age_ms
        )
        self._send(header, sorted(route.router for route in leaders.values()), message.body)

    def _send(self, header: EventHeader, targets: Iterable[str], body: bytes) -> None:
        by_gateway: dict[str, list[str]] = defaultdict(list)
        gateways: dict[str, str] = {}
        for route in self._router.lookup(interest_name(header.topic)):
            if route.link == NETWORK_LINK and route.service != ANY_SERVICE:
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
        if connection.is_send_buffer_full:
            # Messages are delivered at most once: a slow link drops them, and they are counted.
            self._counters.add("topics_messages_dropped_slow_link")
            return
        for frame in encode_message(Kind.EVENT, 0, encode_header(header), body):
            connection.send(frame)
        self._counters.add("topics_messages_sent")

    # --------------------------------------------------------------- incoming

    def message_received(self, header: EventHeader, body: bytes) -> None:
        """Receive a message of another site. Set as the message handler of the proxy where both are assembled."""
        now = self._clock.now()
        new_targets = [target for target in header.targets if self._duplicates.is_first(header.id, target, now)]
        if len(new_targets) < len(header.targets):
            self._counters.add("topics_copies_dropped", len(header.targets) - len(new_targets))
        onward = [target for target in new_targets if target != self._node_id]
        if onward:
            if header.hops_left <= 0:
                self._counters.add("topics_messages_out_of_hops")
            else:
                self._send(header._replace(hops_left=header.hops_left - 1), onward, body)
        if len(onward) < len(new_targets):
            self._received_for_own_site(header, body)

    def _received_for_own_site(self, header: EventHeader, body: bytes) -> None:
        """Publish the message on the broker of the site, unless another node is the leader of this site.

        The sender may know other nodes of the site than this node does. A message is only passed on to a smaller node id,
        so that it cannot return.
        """
        routes = self._router.lookup(interest_name(header.topic))
        leader = lesser_node(routes, own_site=self._site, node_id=self._node_id)
        if leader and header.hops_left > 0:
            self._counters.add("topics_messages_passed_to_leader")
            self._send(header._replace(hops_left=header.hops_left - 1), [leader], body)
        elif header.age_ms and not self._knows_messages_since(header.topic, header.age_ms / 1_000):
            # The site may have received the message before.
            self._counters.add("topics_copies_dropped_uncertain")
        else:
            self._deliveries.enqueue(header, body)

    def _knows_messages_since(self, topic: str, age_s: float) -> bool:
        # After a stall, copies may be processed before the timer that notices it.
        self._update_role()
        return self._record.is_complete_since(topic, self._clock.now() - age_s)
