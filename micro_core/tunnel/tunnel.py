"""The tunnel: all links of a node. Dials, listens, redials, keeps one link a peer, hands out sessions.

Two links to one peer: of those dialled by the same node the newer generation stands; of those dialled by both at
once, the one dialled by the node with the smaller id. A link of an earlier life of the peer never stands against one of a later.
Both ends apply the same rule to the same facts, so they keep the same link.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from micro_core.contract.errors import (
    BadRequest,
    Closed,
    Conflict,
    LinkLost,
    MicroError,
    TooLarge,
    Unreachable,
)
from micro_core.contract.names import short_id
from micro_core.contract.transport import Listener
from micro_core.contract.tunnel import (
    ChannelListener,
    DialFailed,
    DialMode,
    Link,
    LinkDown,
    LinkDriver,
    LinkEvent,
    LinkEventHandler,
    LinkInfo,
    LinkMoved,
    LinkUp,
    MessageReceiver,
    Priority,
    Session,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.handshake import NONCE_BYTES, Admit, Greeting, Handshake, HandshakeKeys
from micro_core.tunnel.identity import NodeIdentity, is_member, is_signed_by, membership_proof, node_id_of
from micro_core.tunnel.link import LinkContext, LinkPeer
from micro_core.tunnel.listening import listen_everywhere
from micro_core.tunnel.path_selection import WayFinder, WayOptions, ways_to
from micro_core.tunnel.reconnector import LinkKeeper
from micro_core.tunnel.session import TunnelSession
from micro_core.wire import limits

MAX_PENDING_LINKS = 128
"""Accepted links whose handshake is not done; more are closed and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOptions:
    """Times of a tunnel."""

    keepalive_s: float = 1.0
    """Seconds between pings, jittered by a tenth."""

    dead_after_missed: int = 3
    """A peer not heard for so many keepalives is dead."""

    dial_timeout_s: float = 5.0
    """How long a dial and its handshake may take."""

    ways: WayOptions = field(default_factory=WayOptions)
    """When which way to a node is dialled, and again."""


@dataclass(slots=True)
class _Channel:
    """Implements `ChannelListener`."""

    channel: str
    _forget: Callable[[], None]

    def close(self) -> None:
        self._forget()


class TunnelHost:
    """Implements `Tunnel`. `listeners` are (driver, address), with None for a driver that only dials."""

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        name: str,
        site: str,
        network: str,
        token: str,
        listeners: Sequence[tuple[LinkDriver, str | None]],
        environment: Environment,
        incarnation: int | None = None,
        options: TunnelOptions | None = None,
    ) -> None:
        self.node_id = identity.node_id
        self._options = options or TunnelOptions()
        self._environment = environment
        self._log = environment.logger
        self._counters = environment.counters
        self._tasks = BackgroundTasks(
            component="tunnel",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_tasks_failed",
        )
        self._drivers = list(listeners)
        self._greeting = Greeting(
            public_key=identity.public_bytes,
            network=network,
            name=name,
            site=site,
            addresses=(),
            incarnation=int(environment.clock.wall() * 1000) if incarnation is None else incarnation,
            generation=0,
        )
        self._keys = HandshakeKeys(
            sign=identity.sign,
            is_signed_by=is_signed_by,
            prove_membership=lambda transcript: membership_proof(network, token, transcript),
            is_member=lambda transcript, proof: is_member(network, token, transcript, proof),
            node_id_of=node_id_of,
        )
        self._link_context = LinkContext(
            owner=self,
            environment=environment,
            keepalive_s=self._options.keepalive_s,
            dead_after_missed=self._options.dead_after_missed,
            make_handshake=self._make_handshake,
        )
        self._links: dict[str, LinkPeer] = {}
        self._pending: dict[LinkPeer, None] = {}
        self._retired: dict[LinkPeer, None] = {}
        """Links from which another has taken over, until their sessions are done."""
        self._open_listeners: list[Listener] = []
        self._accepting: dict[str, Callable[[Session], None]] = {}
        self._receiving: dict[str, list[MessageReceiver]] = {}
        self._kept: dict[str, tuple[LinkKeeper, asyncio.Task[None]]] = {}
        self._event_handler: LinkEventHandler | None = None
        self._is_closed = False

    # ------------------------------------------------------------------- life

    def address(self) -> list[str]:
        return [listener.address for listener in self._open_listeners]

    async def connect(self) -> None:
        for driver, _ in self._drivers:
            await driver.start()
        places = [(driver, address) for driver, address in self._drivers if address is not None]
        self._open_listeners = await listen_everywhere(places, self._accept)
        self._greeting = replace(self._greeting, addresses=tuple(self.address()))

    async def close(self) -> None:
        self._is_closed = True
        self._kept = {}
        await self._tasks.cancel()
        for listener in self._open_listeners:
            await listener.close()
        links = [*self._links.values(), *self._pending, *self._retired]
        await asyncio.gather(*(link.close() for link in links))
        for driver, _ in self._drivers:
            await driver.close()

    # ------------------------------------------------------------------ links

    def links(self) -> list[LinkInfo]:
        return [link.info() for link in self._links.values()]

    async def link_to(self, address: str, *, timeout_s: float | None = None) -> LinkInfo:
        """Dial and shake hands; returns the link that stands, which may be an older one to the same peer.

        Of several ways to `address` the first that answers is taken, each within `timeout_s`.
        """
        link = await self._keeper(address, timeout_s=timeout_s, is_forced=True).link_once()
        return link.info()

    async def dial_way(
        self,
        way: str,
        *,
        address: str,
        why: str,
        replaces: LinkPeer | None,
        is_forced: bool,
        timeout_s: float | None = None,
    ) -> LinkPeer:
        """As `keeper.DialWay`."""
        met: list[LinkPeer] = []

        def admit(peer_id: str, greeting: Greeting) -> None:
            standing = self._links.get(peer_id)
            if standing is None or standing is replaces or is_forced:
                return
            assert standing.peer is not None
            if greeting.incarnation <= standing.peer.incarnation:
                # Only a claim so far, but all that comes of it is that this dial is given up.
                met.append(standing)
                raise Conflict("another link to this node stands")

        scheme, _, bare = way.partition("://")
        driver = next(driver for driver, _ in self._drivers if driver.scheme == scheme)
        dialed = await driver.dial(bare, timeout_s=timeout_s or self._options.dial_timeout_s)
        link = self._begin(dialed, dialed=True, address=address, admit=admit)
        link.way, link.why = way, why
        link.start()
        try:
            # A handshake bounds its own time, and its end completes `ready`.
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            if not link.is_proving:
                # With the proof out the other end may count the link as standing: then it has to stand here, too.
                link.abort(Closed("the dial was given up"))
            raise
        except MicroError:
            standing = met[0] if met else self._links.get(link.peer_id)
            if standing is None or standing.error is not None:
                raise
            # The dial met a peer that is linked already.
            return standing
        return link

    def find_link(self, peer_id: str) -> LinkPeer | None:
        """The link that stands to a peer."""
        return self._links.get(peer_id)

    async def unlink(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            await link.close()

    def keep_link(self, address: str) -> None:
        """Dial `address`, and again whenever there is no link to whoever answers there. Idempotent.

        `address` may stand for several ways to one node: see `ways.ways_to`.
        """
        if address not in self._kept and not self._is_closed:
            try:
                keeper = self._keeper(address, timeout_s=None, is_forced=False)
            except Unreachable as error:
                asyncio.get_running_loop().call_soon(self._dial_failed, address, error)
                return
            self._kept[address] = keeper, self._tasks.start(keeper.keep())

    def drop_link(self, address: str) -> None:
        """Stop dialling `address`; a link that stands is left."""
        kept = self._kept.pop(address, None)
        if kept is not None:
            kept[1].cancel()

    def node_arrived(self, peer: str, addresses: Collection[str]) -> None:
        """A node is up, as others tell: whoever is kept linked and missed is dialled now, not when its pause is over."""
        for keeper, _ in self._kept.values():
            keeper.arrived(peer, addresses)

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver link events to `handler`, see `Sessions`. Raises Conflict when a handler is set already."""
        if self._event_handler is not None:
            raise Conflict("the tunnel has an event handler already")
        self._event_handler = handler

    # --------------------------------------------------------------- channels

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        link = self._links.get(peer)
        if link is None:
            raise Unreachable(
                f"no link to node {short_id(peer)}", at=short_id(self.node_id), hint="micro network connections"
            )
        return link.open_session(channel, priority)

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        if channel in self._accepting:
            raise Conflict(f"somebody listens on channel {channel} already")
        self._accepting[channel] = accept
        return _Channel(channel, lambda: self._accepting.pop(channel, None) and None)

    def send(self, channel: str, payload: bytes, *, mode: DialMode, priority: Priority = Priority.CONTROL) -> int:
        if mode is DialMode.UNICAST:
            raise BadRequest("unicast goes over a session", hint="dial the channel")
        if len(payload) > limits.MAX_MULTICAST_BYTES:
            raise TooLarge(f"a multicast of {len(payload)} bytes is over the bound of {limits.MAX_MULTICAST_BYTES}")
        is_broadcast = mode is DialMode.BROADCAST
        links = list(self._links.values())
        return sum(link.multicast(channel, payload, priority, broadcast=is_broadcast) for link in links)

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        receivers = self._receiving.setdefault(channel, [])
        if not receivers:
            for link in self._links.values():
                link.listen(channel)
        receivers.append(receive)
        return _Channel(channel, lambda: self._unsubscribe(channel, receive))

    # -------------------------------------------------------------- LinkOwner

    def link_proved(self, link: LinkPeer) -> bool:
        self._pending.pop(link, None)
        standing = self._links.get(link.peer_id)
        has_moved = False
        if standing is not None:
            if not self._supersedes(link, standing):
                self._counters.add("tunnel_links_duplicate")
                return False
            has_moved = self._takes_over(link, standing)
            self._counters.add("tunnel_links_replaced")
            self._links[link.peer_id] = link
            replaced = LinkLost("replaced by a newer link to the same node")
            if has_moved:
                self._retired[standing] = None
                standing.retire(replaced)
            else:
                standing.abort(replaced)
        self._links[link.peer_id] = link
        # At once: what the peer has sent behind its proof is read next, by those who are told of the link here.
        self._announce_up(link, has_moved)
        return True

    def link_ended(self, link: LinkPeer, error: MicroError) -> None:
        self._pending.pop(link, None)
        self._retired.pop(link, None)
        if link.peer is None or self._links.get(link.peer_id) is not link:
            return
        del self._links[link.peer_id]
        self._emit(LinkDown(link.info(), error))

    def session_opened(self, link: LinkPeer, channel: str, session: TunnelSession) -> bool:  # noqa: ARG002
        accept = self._accepting.get(channel)
        if accept is None:
            self._counters.add("tunnel_sessions_refused")
            return False
        accept(session)
        return True

    def message_received(self, link: LinkPeer, channel: str, payload: bytes) -> None:
        receivers = self._receiving.get(channel)
        if not receivers:
            self._counters.add("tunnel_messages_unwanted")
            return
        for receive in list(receivers):
            receive(link.peer_id, payload)

    # ----------------------------------------------------------------- inside

    def _accept(self, link: Link) -> None:
        accepted = self._begin(link, dialed=False, address="")
        accepted.start()
        if len(self._pending) > MAX_PENDING_LINKS or self._is_closed:
            self._counters.add("tunnel_links_refused")
            accepted.abort(Unreachable("too many links are waiting for their handshake"))

    def _begin(self, link: Link, *, dialed: bool, address: str, admit: Admit | None = None) -> LinkPeer:
        if dialed:
            self._greeting = replace(self._greeting, generation=self._greeting.generation + 1)
        peer = LinkPeer(link, dialed=dialed, greeting=self._greeting, context=self._link_context, admit=admit)
        peer.dialed_address = address
        self._pending[peer] = None
        return peer

    def _make_handshake(self, dialed: bool, greeting: Greeting, binding: bytes, admit: Admit | None) -> Handshake:
        nonce = self._environment.random.getrandbits(NONCE_BYTES * 8).to_bytes(NONCE_BYTES, "big")
        return Handshake(
            dialed=dialed, own=greeting, nonce=nonce, channel_binding=binding, keys=self._keys, admit=admit
        )

    def _supersedes(self, new: LinkPeer, old: LinkPeer) -> bool:
        assert new.peer is not None
        assert old.peer is not None
        if new.peer.incarnation != old.peer.incarnation:
            return new.peer.incarnation > old.peer.incarnation
        if new.dialed == old.dialed:
            first, second = ((link.own if link.dialed else link.peer) for link in (new, old))
            assert first is not None
            assert second is not None
            return first.generation > second.generation
        by_us = self.node_id < new.peer_id
        return new.dialed is by_us

    def _takes_over(self, new: LinkPeer, old: LinkPeer) -> bool:
        """Whether the old link still works: the same life of the peer has made a better one beside it.

        Over the same driver the peer would not have dialled again unless the old one were broken.
        """
        assert new.peer is not None
        assert old.peer is not None
        return new.peer.incarnation == old.peer.incarnation and new.link.driver != old.link.driver

    def _announce_up(self, link: LinkPeer, has_moved: bool) -> None:
        for channel in self._receiving:
            link.listen(channel)
        info = link.info()
        self._log.info("link up", extra={"peer": info.peer_name, "driver": info.driver})
        self._emit(LinkMoved(info) if has_moved else LinkUp(info))

    def _keeper(self, address: str, *, timeout_s: float | None, is_forced: bool) -> LinkKeeper:
        """Raises Unreachable where no driver in use leads to `address`."""
        ways = ways_to(address, [driver.scheme for driver, _ in self._drivers])
        return LinkKeeper(
            address,
            WayFinder(ways, self._options.ways, self._environment.random),
            functools.partial(self.dial_way, timeout_s=timeout_s),
            self.find_link,
            environment=self._environment,
            on_failed=functools.partial(self._dial_failed, address),
            is_forced=is_forced,
        )

    def _dial_failed(self, address: str, error: MicroError) -> None:
        self._emit(DialFailed(address, error))

    def _emit(self, event: LinkEvent) -> None:
        if self._event_handler is not None:
            self._event_handler(event)

    def _unsubscribe(self, channel: str, receive: MessageReceiver) -> None:
        receivers = self._receiving.get(channel, [])
        if receive in receivers:
            receivers.remove(receive)
            if not receivers:
                del self._receiving[channel]
                for link in self._links.values():
                    link.unlisten(channel)
