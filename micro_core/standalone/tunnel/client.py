"""The tunnel of another process of this node, as the router's and the proxy's processes see it.

Links are known from a watch that is kept open; each session is a socket of its own at the tunnel's door. When the
tunnel's process is away every link is down, and up again when it is back: connecting is tried with backoff for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from micro_core.contract.clock import Clock, Random
from micro_core.contract.driver import Counters
from micro_core.contract.errors import Closed, Conflict, LinkLost, Malformed, MicroError, Unreachable, error_from_wire
from micro_core.contract.names import check_node_id, short_id
from micro_core.contract.transport import Socket, Transport
from micro_core.contract.tunnel import (
    LinkDown,
    LinkEvent,
    LinkEventHandler,
    LinkInfo,
    LinkMoved,
    LinkUp,
    Priority,
    Session,
)
from micro_core.standalone.tunnel import protocol as wire
from micro_core.standalone.tunnel.ipc_socket import DIAL_TIMEOUT_S, DoorSocket
from micro_core.standalone.tunnel.protocol import Kind, Verb
from micro_core.standalone.tunnel.session import RemoteSession
from micro_core.tunnel.backoff import Backoff
from micro_core.tunnel.identity import membership_proof

SILENCE_S = 10.0
"""The tunnel says something every second: one that has been silent for so long hangs, and counts as away."""

RETRY_INITIAL_S = 0.1
RETRY_MAX_S = 2.0
"""Bounds of the pause before the tunnel is looked for again."""

MAX_LINKS = 10_000


class RemoteTunnel:
    """Implements `Sessions`. `find()` gives the address of the tunnel's door, or raises Unreachable."""

    def __init__(
        self,
        *,
        find: Callable[[], Awaitable[str]],
        transport: Transport,
        network: str,
        token: str,
        clock: Clock,
        random: Random,
        logger: logging.Logger,
        counters: Counters,
    ) -> None:
        self.node_id = ""
        """The node's id; empty before `connect`."""
        self.facts: dict[str, Any] = {}
        """What the tunnel says of the node, as it was last told."""
        self._find = find
        self._transport = transport
        self._clock = clock
        self._random = random
        self._log = logger
        self._counters = counters
        self._prove = lambda transcript: membership_proof(network, token, transcript)
        self._address = ""
        self._links: dict[str, LinkInfo] = {}
        self._listeners: dict[str, _RemoteListener] = {}
        self._sessions: dict[RemoteSession, None] = {}
        self._event_handler: LinkEventHandler | None = None
        self._away_callbacks: list[Callable[[MicroError | None], None]] = []
        self._connected = asyncio.Event()
        self._watch: _Watch | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    # ------------------------------------------------------------------- life

    async def connect(self) -> None:
        """Find the tunnel and hear of its links; waits for one that is not there yet."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._keeper.add_done_callback(self._keeper_done)
        connected = asyncio.get_running_loop().create_task(self._connected.wait())
        try:
            await asyncio.wait({self._keeper, connected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connected.cancel()
        if self._keeper.done():
            self._keeper.result()

    async def close(self) -> None:
        """Close listeners, sessions and the watch. Safe to call twice."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for listener in [*self._listeners.values()]:
            await listener.end()
        await asyncio.gather(*(session.close() for session in [*self._sessions]))
        if self._watch is not None:
            await self._watch.door.close(Closed("the watch of the tunnel was closed here"))

    def on_away(self, callback: Callable[[MicroError | None], None]) -> None:
        """`callback(error)` when the tunnel cannot be had, once a reason; `callback(None)` when it is there (again)."""
        self._away_callbacks.append(callback)

    # --------------------------------------------------------------- Sessions

    def links(self) -> list[LinkInfo]:
        return [*self._links.values()]

    async def unlink(self, peer: str) -> None:
        if self._watch is not None:
            self._watch.door.send(wire.encode_map(Kind.EVENT, {"unlink": peer}))

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        if not self._connected.is_set():
            raise Unreachable("the tunnel's process is away", at=short_id(self.node_id), hint="is `micro tunnel` up?")
        if peer not in self._links:
            raise Unreachable(
                f"no link to node {short_id(peer)}", at=short_id(self.node_id), hint="micro network connections"
            )
        request = {"verb": Verb.DIAL, "channel": channel, "peer": peer, "priority": int(priority)}
        return self.visit(channel, peer, request)

    def listen(self, channel: str, accept: Callable[[Session], None]) -> _RemoteListener:
        if channel in self._listeners:
            raise Conflict(f"somebody listens on channel {channel} already")
        listener = self._listeners[channel] = _RemoteListener(self, channel, accept)
        listener.begin()
        return listener

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver link events to `handler`, see `Sessions`. Raises Conflict when a handler is set already."""
        if self._event_handler is not None:
            raise Conflict("the tunnel has an event handler already")
        self._event_handler = handler

    # ----------------------------------------------------- for its own listeners

    def visit(self, channel: str, peer: str, request: dict[str, Any]) -> RemoteSession:
        """A session at the door."""
        session = RemoteSession(
            channel=channel,
            peer=peer,
            request=request,
            dial=self.dial_door,
            prove=self._prove,
            ended=lambda gone: self._sessions.pop(gone, None) and None,
        )
        self._sessions[session] = None
        return session

    async def dial_door(self) -> Socket:
        return await self._transport.dial(self._address, timeout_s=DIAL_TIMEOUT_S)

    async def connected(self) -> None:
        """Return when the tunnel is there."""
        await self._connected.wait()

    def door_for(self, request: dict[str, Any], owner: Any) -> DoorSocket:
        return DoorSocket(request, self._prove, owner)

    def new_backoff(self) -> Backoff:
        return Backoff(random=self._random, initial_s=RETRY_INITIAL_S, max_s=RETRY_MAX_S)

    def forget_listener(self, channel: str) -> None:
        self._listeners.pop(channel, None)

    # ----------------------------------------------------------------- inside

    async def _keep(self) -> None:
        backoff = self.new_backoff()
        said = ""
        while True:
            try:
                watch = await self._connect()
            except MicroError as error:
                if error.detail != said:
                    said = error.detail
                    self._tell_away(error)
                self._counters.add("tunnel_door_not_found")
                await asyncio.sleep(backoff.next_s())
                continue
            said = ""
            backoff.reset()
            reason = await self._until_over(watch)
            self._watch = None
            self._connected.clear()
            self._tell_away(reason)
            gone, self._links = self._links, {}
            for link in gone.values():
                self._emit(LinkDown(link, reason))
            await asyncio.sleep(backoff.next_s())

    async def _connect(self) -> _Watch:
        self._address = await self._find()
        watch = _Watch(self._clock, self._link_changed)
        watch.door = self.door_for({"verb": Verb.WATCH}, watch)
        watch.door.begin(await self.dial_door())
        try:
            async with asyncio.timeout(SILENCE_S):
                await watch.synced
        except TimeoutError:
            await watch.door.close(Closed("given up"))
            raise Unreachable(f"the tunnel at {self._address} does not answer") from None
        found = watch.facts.get("node_id")
        node_id = check_node_id(found) if isinstance(found, str) else ""
        if not node_id or (self.node_id and node_id != self.node_id):
            await watch.door.close(Closed("another node"))
            raise Conflict(
                f"the tunnel at {self._address} is that of node {short_id(node_id)}, not of {short_id(self.node_id)}",
                hint="restart this process to become a part of that node",
            )
        self.node_id, self.facts, self._watch = node_id, watch.facts, watch
        self._connected.set()
        self._tell_away(None)
        for link in watch.first_links:
            self._link_changed("up", link, None)
        watch.is_live = True
        return watch

    async def _until_over(self, watch: _Watch) -> MicroError:
        while not watch.lost.done():
            heard = watch.heard
            await asyncio.wait({watch.lost}, timeout=SILENCE_S)
            if watch.heard == heard and not watch.lost.done():
                silent = LinkLost(f"the tunnel's process has been silent for {SILENCE_S:g} s")
                self._counters.add("tunnel_door_silent")
                await watch.door.close(silent)
        return watch.lost.result()

    def _link_changed(self, what: str, link: LinkInfo, error: MicroError | None) -> None:
        if what == "down":
            if self._links.pop(link.peer, None) is not None:
                self._emit(LinkDown(link, error or LinkLost("the link has ended")))
            return
        if what == "up":
            if len(self._links) >= MAX_LINKS:
                self._counters.add("tunnel_door_links_refused")
                return
            self._links[link.peer] = link
            self._emit(LinkUp(link))
        elif link.peer in self._links:
            self._links[link.peer] = link
            if what == "moved":
                self._emit(LinkMoved(link))

    def _keeper_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counters.add("tunnel_door_tasks_failed")
            self._log.error("keeping the tunnel's door failed", exc_info=error)

    def _emit(self, event: LinkEvent) -> None:
        if self._event_handler is not None:
            self._event_handler(event)

    def _tell_away(self, error: MicroError | None) -> None:
        for callback in self._away_callbacks:
            callback(error)


class _Watch:
    """A `DoorOwner`: the watch of the tunnel's links."""

    def __init__(self, clock: Clock, changed: Callable[[str, LinkInfo, MicroError | None], None]) -> None:
        loop = asyncio.get_running_loop()
        self.door: DoorSocket
        self.facts: dict[str, Any] = {}
        self.first_links: list[LinkInfo] = []
        self.is_live = False
        self.heard = 0
        self.synced: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[MicroError] = loop.create_future()
        self._clock = clock
        self._changed = changed
        self._early: list[tuple[str, LinkInfo, MicroError | None]] = []

    def door_opened(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def door_data(self, data: bytes) -> None:  # noqa: ARG002 - a watch carries none
        raise Malformed("tunnel door: data within a watch")

    def door_event(self, event: dict[str, Any]) -> None:
        self.heard += 1
        if event.get("synced"):
            if not self.synced.done():
                self.synced.set_result(None)
            return
        if not event:
            return
        what, link = wire.text_of(event, "is", 16), wire.link_from_map(event.get("link"), self._clock.now())
        if not self.is_live:
            if len(self.first_links) < MAX_LINKS:
                self.first_links = [known for known in self.first_links if known.peer != link.peer]
                self.first_links += [link] if what != "down" else []
            return
        self._changed(what, link, error_from_wire(event["error"]) if "error" in event else None)

    def door_paused(self) -> None:
        """Little is said to the tunnel."""

    def door_resumed(self) -> None:
        """See `door_paused`."""

    def door_lost(self, error: MicroError) -> None:
        if not self.synced.done():
            self.synced.set_exception(error)
            # Nobody may be waiting any more.
            self.synced.exception()
        if not self.lost.done():
            self.lost.set_result(error)


class _RemoteListener:
    """Implements `ChannelListener`, and is a `DoorOwner`: listens again whenever the tunnel is back."""

    def __init__(self, tunnel: RemoteTunnel, channel: str, accept: Callable[[Session], None]) -> None:
        self.channel = channel
        self._tunnel = tunnel
        self._accept = accept
        self._door: DoorSocket | None = None
        self._lost: asyncio.Future[MicroError] | None = None
        self._backoff = tunnel.new_backoff()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def close(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(self.end())

    async def end(self) -> None:
        """Listen no more."""
        self._tunnel.forget_listener(self.channel)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._door is not None:
            await self._door.close(Closed("nobody listens here any more"))

    async def _keep(self) -> None:
        while True:
            await self._tunnel.connected()
            self._lost = asyncio.get_running_loop().create_future()
            self._door = self._tunnel.door_for({"verb": Verb.LISTEN, "channel": self.channel}, self)
            try:
                self._door.begin(await self._tunnel.dial_door())
            except MicroError as error:
                self._door.fail(error)
            await self._lost
            await asyncio.sleep(self._backoff.next_s())

    def door_opened(self, facts: dict[str, Any]) -> None:  # noqa: ARG002 - in force
        self._backoff.reset()

    def door_data(self, data: bytes) -> None:  # noqa: ARG002 - a listener carries none
        raise Malformed("tunnel door: data of a listener")

    def door_event(self, event: dict[str, Any]) -> None:
        peer, ticket = check_node_id(wire.text_of(event, "peer")), wire.text_of(event, "ticket", 64)
        self._accept(self._tunnel.visit(self.channel, peer, {"verb": Verb.TAKE, "ticket": ticket}))

    def door_paused(self) -> None:
        """Nothing is written here."""

    def door_resumed(self) -> None:
        """See `door_paused`."""

    def door_lost(self, error: MicroError) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)
