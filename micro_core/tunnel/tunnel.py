"""The tunnel of a node: dials and accepts links, keeps one link per peer, opens and accepts sessions.

Of two links to one peer, `link_precedence` determines which is kept.
"""

from __future__ import annotations

import asyncio
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
    DialMode,
    Link,
    LinkDown,
    LinkDriver,
    LinkEvent,
    LinkEventHandler,
    LinkInfo,
    LinkMeasured,
    LinkMoved,
    LinkSuspect,
    LinkUp,
    MessageReceiver,
    Priority,
    Session,
)
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.loop_watch import LoopWatch
from micro_core.tunnel.channels import Channels
from micro_core.tunnel.dialer import Dialer
from micro_core.tunnel.handshake import (
    NONCE_BYTES,
    Admit,
    Handshake,
    HandshakeKeys,
    Hello,
)
from micro_core.tunnel.identity import NodeIdentity, is_member, is_signed_by, membership_proof, node_id_of
from micro_core.tunnel.link import LinkContext, NodeLink
from micro_core.tunnel.link_precedence import is_move, supersedes
from micro_core.tunnel.listening import listen_on_all
from micro_core.tunnel.path_selection import PathOptions
from micro_core.tunnel.probing import ProbeResult
from micro_core.tunnel.session import TunnelSession
from micro_core.wire import limits

MAX_PENDING_LINKS = 128
"""Maximum number of links whose handshake is in progress. Further accepted links are closed and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOptions:
    """Timing of a tunnel, in seconds where the name ends with `_s`."""

    keepalive_s: float = 1.0
    """Interval between pings, jittered by a tenth. Only the end that dialled pings regularly."""

    dead_after_missed: int = 3
    """A peer is dead when nothing arrived from it for this many keepalive intervals."""

    dial_timeout_s: float = 5.0
    """Timeout in seconds of a dial, without the handshake, which has its own timeout."""

    paths: PathOptions = field(default_factory=PathOptions)
    """Times of connection attempts and retries."""


class TunnelHost:
    """Implements `Tunnel`.

    `listeners` are pairs of a driver and the address at which it listens, or None for a driver that only dials.
    `incarnation` must grow with every start of the node; by default it is the wall-clock time in milliseconds.

    When the process was suspended for longer than its peers wait, the tunnel ends all links before it processes anything that
    arrived on them, and continues with the incarnation that `next_incarnation()` returns. Its new links then replace the
    old ones at peers that have not noticed.
    """

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
        next_incarnation: Callable[[], int] | None = None,
        options: TunnelOptions | None = None,
    ) -> None:
        self.node_id = identity.node_id
        self._options = options or TunnelOptions()
        self._environment = environment
        self._logger = environment.logger
        self._counters = environment.counters
        self._drivers = list(listeners)
        self._hello = Hello(
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
        self._next_incarnation = next_incarnation
        self._resumed_handler: Callable[[int], None] | None = None
        self.loop_watch = LoopWatch(environment.clock, self._resumed, environment.node_id)
        """The lag of the event loop, which other components may read, too. It measures while the tunnel is connected."""
        self._link_context = LinkContext(
            owner=self,
            environment=environment,
            keepalive_s=self._options.keepalive_s,
            dead_after_missed=self._options.dead_after_missed,
            loop_watch=self.loop_watch,
            make_handshake=self._make_handshake,
        )
        self._links: dict[str, NodeLink] = {}
        self._channels = Channels(self._links.values, environment.counters)
        self._pending: dict[NodeLink, None] = {}
        """Links whose handshake is in progress."""
        self._retired: dict[NodeLink, None] = {}
        """Links that were replaced or given up, until their sessions end."""
        self._open_listeners: list[Listener] = []
        self._event_handler: LinkEventHandler | None = None
        self._dialer = Dialer(
            drivers=[driver for driver, _ in self._drivers],
            dial_timeout_s=self._options.dial_timeout_s,
            paths=self._options.paths,
            start_link=self._start_link,
            find_link=self._links.get,
            emit=self._emit,
            environment=environment,
        )
        self._is_closed = False

    # -------------------------------------------------------------- lifecycle

    def address(self) -> list[str]:
        """Return the addresses at which this tunnel listens, with schemes."""
        return [listener.address for listener in self._open_listeners]

    async def connect(self) -> None:
        """Start the drivers and listen. Raises Conflict when a listen address is in use."""
        self.loop_watch.start()
        for driver, _ in self._drivers:
            await driver.start()
        listening = [(driver, address) for driver, address in self._drivers if address is not None]
        self._open_listeners = await listen_on_all(listening, self._accept)
        self._hello = replace(self._hello, addresses=tuple(self.address()))

    async def close(self) -> None:
        """Close sessions, links and listeners within a few seconds. Safe to call twice."""
        self._is_closed = True
        self.loop_watch.stop()
        await self._dialer.close()
        for listener in self._open_listeners:
            await listener.close()
        links = [*self._links.values(), *self._pending, *self._retired]
        stopped = Closed("this node stops")
        await asyncio.gather(*(link.close(stopped) for link in links))
        for driver, _ in self._drivers:
            await driver.close()

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver link events to `handler`, see `Sessions`. Raises Conflict when a handler is set already."""
        if self._event_handler is not None:
            raise Conflict("the tunnel has an event handler already")
        self._event_handler = handler

    def set_resumed_handler(self, handler: Callable[[int], None]) -> None:
        """Call `handler(incarnation)` after a suspension of this process, before its links are reported as lost.

        Raises Conflict when a handler is set already.
        """
        if self._resumed_handler is not None:
            raise Conflict("the tunnel has a handler of suspensions already")
        self._resumed_handler = handler

    # ------------------------------------------------------------------ links

    def links(self) -> list[LinkInfo]:
        """Return the current links, at most one per peer."""
        return [link.info() for link in self._links.values()]

    def link(self, peer: str) -> LinkInfo | None:
        """Return the current link to `peer`, or None."""
        link = self._links.get(peer)
        return None if link is None else link.info()

    async def link_to(self, address: str, *, timeout_s: float | None = None) -> LinkInfo:
        """Dial `address`, complete the handshake, and return the link to the node, which may be an older link.

        If `address` stands for several paths, they are raced, each with a dial timeout of `timeout_s`. Raises Unreachable
        or Unauthorized.
        """
        return (await self._dialer.link_to(address, timeout_s=timeout_s)).info()

    def keep_linked(self, address: str) -> None:
        """Dial `address`, and dial again whenever the node there is not linked. Idempotent.

        `address` may stand for several paths to one node, see `path_selection.paths_to`. Each attempt ends in a
        DialSucceeded or DialFailed.
        """
        self._dialer.keep_linked(address)

    def dial_once(self, address: str) -> None:
        """Dial `address` in the background, but not again after a failure or when the link ends.

        Exactly one DialSucceeded or DialFailed is reported, unless `stop_dialing` is called before. While the link is
        open, the tunnel returns to a preferred path when it works again, as in `keep_linked`.
        """
        self._dialer.dial_once(address)

    def stop_dialing(self, address: str) -> None:
        """Undo `keep_linked` or `dial_once`. An established link stays open."""
        self._dialer.stop(address)

    def node_reported_up(self, peer: str, addresses: Collection[str]) -> None:
        """Dial a node now if it is kept linked and has no link: other nodes report that it is up."""
        self._dialer.node_reported_up(peer, addresses)

    async def probe(self, address: str) -> ProbeResult:
        """Find out which node answers at `address` and how far away it is, without making a link.

        The paths are raced as for a link. The node states its id and its site without proof, so the result is only good
        for choosing the next dial. Raises Unreachable, also after `PROBE_TIMEOUT_S`; Unauthorized if the node belongs to
        another network or is this one.
        """
        return await self._dialer.probe(address)

    def find_link(self, peer_id: str) -> NodeLink | None:
        """Return the current link to a peer, if there is one."""
        return self._links.get(peer_id)

    async def unlink(self, peer: str, error: MicroError | None = None) -> None:
        """Close the link to `peer`, if there is one, with `error` as the reason that is reported."""
        link = self._links.get(peer)
        if link is not None:
            await link.close(error)

    def node_left(self, peer: str) -> None:
        """End the link to `peer`, if there is one, because the peer announced that it stops. This is not a loss."""
        link = self._links.get(peer)
        if link is not None:
            link.ending.is_closing = True
            link.abort(LinkLost("the node at the other end stops"))

    def drain(self, peer: str, error: MicroError) -> None:
        """Give up the link to `peer`, if there is one, without interrupting calls. To be called at both ends.

        The link is suspect at once. A few seconds later it is reported as down with `error`, so that its routes are
        withdrawn. Open sessions continue for a while, as on a link that was replaced.
        """
        link = self._links.get(peer)
        if link is not None:
            link.ending.drain(error)

    # --------------------------------------------------------------- channels

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        """Open a session to `peer`, see `Sessions`.

        Raises Unreachable when there is no link to the peer, Overloaded when the link has too many open sessions.
        """
        # After a suspension there are no links, and nothing that arrived earlier may be forwarded on them.
        self.loop_watch.check()
        link = self._links.get(peer)
        if link is None:
            raise Unreachable(
                f"no link to node {short_id(peer)}", at=short_id(self.node_id), hint="micro network connections"
            )
        return link.open_session(channel, priority)

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        """Accept sessions on `channel`. Raises Conflict when the channel has a listener already."""
        return self._channels.listen(channel, accept)

    def send(self, channel: str, payload: bytes, *, mode: DialMode, priority: Priority = Priority.CONTROL) -> int:
        """Send one message to many peers and return the number of links it was sent on.

        Raises TooLarge above `limits.MAX_MULTICAST_BYTES`, BadRequest with DialMode.UNICAST.
        """
        if mode is DialMode.UNICAST:
            raise BadRequest("unicast messages need a session", hint="use dial")
        if len(payload) > limits.MAX_MULTICAST_BYTES:
            raise TooLarge(
                f"a multicast message of {len(payload)} bytes exceeds the maximum of {limits.MAX_MULTICAST_BYTES}"
            )
        is_broadcast = mode is DialMode.BROADCAST
        links = list(self._links.values())
        return sum(link.multicast(channel, payload, priority, broadcast=is_broadcast) for link in links)

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        """Receive the multicast and broadcast messages of `channel`, each exactly once per `send` of a peer."""
        return self._channels.subscribe(channel, receive)

    # -------------------------------------------------------------- LinkOwner

    def link_authenticated(self, link: NodeLink) -> bool:
        """Accept a link whose handshake is done. Return False to refuse it as a duplicate."""
        self._pending.pop(link, None)
        current = self._links.get(link.peer_id)
        has_moved = False
        if current is not None:
            if not supersedes(self.node_id, link, current):
                self._counters.add("tunnel_links_duplicate")
                return False
            has_moved = is_move(link, current)
            self._counters.add("tunnel_links_replaced")
            self._links[link.peer_id] = link
            replaced = LinkLost("replaced by a newer link to the same node")
            if has_moved:
                self._retired[current] = None
                current.ending.retire(replaced)
            else:
                current.abort(replaced)
        self._links[link.peer_id] = link
        # At once: what the peer sent right after its proof is processed next, and its receivers must know the link.
        self._announce_up(link, has_moved)
        return True

    def link_measured(self, link: NodeLink) -> None:
        """Report that the first round trip of a link is known."""
        if self._links.get(link.peer_id) is link:
            self._emit(LinkMeasured(link.info()))

    def link_suspect(self, link: NodeLink, is_suspect: bool) -> None:
        """Report that the peer of a link may be unreachable, or that something has arrived from it again."""
        if self._links.get(link.peer_id) is link:
            self._emit(LinkSuspect(link.info(), is_suspect))

    def link_retired(self, link: NodeLink, error: MicroError) -> None:
        """Report that a link that was given up is down. Its open sessions continue."""
        if self._links.get(link.peer_id) is link:
            self._retired[link] = None
            self._remove(link, error)

    def link_ended(self, link: NodeLink, error: MicroError) -> None:
        """Note the end of a link, authenticated or not."""
        self._pending.pop(link, None)
        self._retired.pop(link, None)
        if link.peer is not None and self._links.get(link.peer_id) is link:
            self._remove(link, error)

    def _remove(self, link: NodeLink, error: MicroError) -> None:
        del self._links[link.peer_id]
        self._emit(LinkDown(link.info(), error))

    def session_opened(self, channel: str, session: TunnelSession) -> bool:
        """Accept a session that a peer opened. Return False when the channel has no listener."""
        return self._channels.accept(channel, session)

    def message_received(self, peer_id: str, channel: str, payload: bytes) -> None:
        """Deliver a multicast or broadcast message."""
        self._channels.deliver(peer_id, channel, payload)

    # --------------------------------------------------------------- internals

    def _resumed(self, suspended_s: float) -> None:
        """End all links: the peers have given them up, and what arrived on them meanwhile is outdated."""
        self._counters.add("tunnel_suspensions")
        self._logger.warning(
            "process was suspended, joining again", extra={"seconds": round(suspended_s, 1), "links": len(self._links)}
        )
        own = self._hello
        following = own.incarnation + 1 if self._next_incarnation is None else self._next_incarnation()
        self._hello = replace(own, incarnation=max(own.incarnation + 1, following))
        if self._resumed_handler is not None:
            self._resumed_handler(self._hello.incarnation)
        error = LinkLost(f"this node was suspended for {suspended_s:.0f} s")
        for link in [*self._links.values(), *self._pending, *self._retired]:
            link.abort(error)

    def _accept(self, link: Link) -> None:
        accepted = self._start_link(link, dialed=False, address="")
        accepted.start()
        if len(self._pending) > MAX_PENDING_LINKS or self._is_closed:
            self._counters.add("tunnel_links_refused")
            accepted.abort(Unreachable("too many links are waiting for their handshake"))

    def _start_link(self, link: Link, *, dialed: bool, address: str, admit: Admit | None = None) -> NodeLink:
        if dialed:
            self._hello = replace(self._hello, generation=self._hello.generation + 1)
        node_link = NodeLink(link, dialed=dialed, hello=self._hello, context=self._link_context, admit=admit)
        node_link.dialed_address = address
        self._pending[node_link] = None
        return node_link

    def _make_handshake(self, dialed: bool, hello: Hello, binding: bytes, admit: Admit | None) -> Handshake:
        nonce = self._environment.random.getrandbits(NONCE_BYTES * 8).to_bytes(NONCE_BYTES, "big")
        return Handshake(dialed=dialed, own=hello, nonce=nonce, channel_binding=binding, keys=self._keys, admit=admit)

    def _announce_up(self, link: NodeLink, has_moved: bool) -> None:
        self._channels.announce(link)
        info = link.info()
        self._logger.info("link up", extra={"peer": info.peer_name, "driver": info.driver})
        self._emit(LinkMoved(info) if has_moved else LinkUp(info))

    def _emit(self, event: LinkEvent) -> None:
        if self._event_handler is not None:
            self._event_handler(event)
