"""A client of the tunnel process of a node, for the router process and the proxy process of this node.

A watch that is always open reports the links. Each session is a connection of its own to the IPC server of the tunnel
process. While the tunnel process is not available, all links are down; the client reconnects with backoff, without a
limit on the number of attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from micro_core.contract.errors import Closed, Conflict, LinkLost, MicroError, Unreachable
from micro_core.contract.names import check_node_id, short_id
from micro_core.contract.transport import Socket, Transport
from micro_core.contract.tunnel import (
    LinkDown,
    LinkEvent,
    LinkEventHandler,
    LinkInfo,
    LinkMeasured,
    LinkMoved,
    LinkSuspect,
    LinkUp,
    Priority,
    Session,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks, ends_before
from micro_core.lifecycle.environment import Environment
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.client_listener import RemoteListener
from micro_core.standalone.tunnel.client_session import RemoteSession
from micro_core.standalone.tunnel.client_socket import DIAL_TIMEOUT_S, IpcReceiver, IpcSocket
from micro_core.standalone.tunnel.client_watch import MAX_LINKS, LinkWatch
from micro_core.standalone.tunnel.protocol import Kind, Verb
from micro_core.tunnel.backoff import Backoff
from micro_core.tunnel.identity import membership_proof

MAX_SILENCE_S = 10.0
"""The tunnel process sends an event every second. One that is silent for this long is treated as not available."""

INITIAL_RETRY_S = 0.1
MAX_RETRY_S = 2.0
"""Bounds of the pause between two attempts to connect."""


class RemoteTunnel:
    """Implements `Sessions`.

    `find()` returns the address of the IPC server. It raises Unreachable if the tunnel process is not registered.
    """

    def __init__(
        self,
        *,
        find: Callable[[], Awaitable[str]],
        transport: Transport,
        network: str,
        token: str,
        environment: Environment,
    ) -> None:
        self.node_id = ""
        """The id of the node; empty before `connect`."""
        self.facts: dict[str, Any] = {}
        """What the tunnel process last sent about the node: its name, site and addresses."""
        self._find = find
        self._transport = transport
        self._clock = environment.clock
        self._random = environment.random
        self._counters = environment.counters
        self._tasks = BackgroundTasks(
            component="tunnel client",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_ipc_tasks_failed",
        )
        # Connect and close connections to the IPC server. `close` waits for these tasks and does not cancel them, so that
        # queued data is sent.
        self._connection_tasks = BackgroundTasks(
            component="tunnel client",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_ipc_tasks_failed",
        )
        self._prove = lambda transcript: membership_proof(network, token, transcript)
        self._address = ""
        self._links: dict[str, LinkInfo] = {}
        self._listeners: dict[str, RemoteListener] = {}
        self._sessions: dict[RemoteSession, None] = {}
        self._event_handler: LinkEventHandler | None = None
        self._availability_handler: Callable[[MicroError | None], None] | None = None
        self._connected = asyncio.Event()
        self._watch: LinkWatch | None = None

    # -------------------------------------------------------------- lifecycle

    async def connect(self) -> None:
        """Connect to the tunnel process and read its links. Waits without limit until the process is available."""
        task = self._tasks.start(self._maintain_connection())
        if await ends_before(task, self._connected):
            task.result()

    async def close(self) -> None:
        """Close listeners, sessions and the watch. Safe to call twice."""
        await self._tasks.cancel()
        for listener in [*self._listeners.values()]:
            await listener.aclose()
        await asyncio.gather(*(session.close() for session in [*self._sessions]))
        if self._watch is not None:
            await self._watch.ipc.close(Closed("the watch of the links was closed at this end"))
        await self._connection_tasks.wait()

    def set_availability_handler(self, handler: Callable[[MicroError | None], None]) -> None:
        """Call `handler(error)` when the tunnel process becomes unavailable, `handler(None)` when it is available.

        It is called again only if the reason changes.

        Raises:
            Conflict: A handler is set already.
        """
        if self._availability_handler is not None:
            raise Conflict("the client of the tunnel process has an availability handler already")
        self._availability_handler = handler

    # --------------------------------------------------------------- Sessions

    def links(self) -> list[LinkInfo]:
        """Return the current links; none while the tunnel process is not available."""
        return [*self._links.values()]

    def link(self, peer: str) -> LinkInfo | None:
        """Return the current link to `peer`; None also while the tunnel process is not available."""
        return self._links.get(peer)

    async def unlink(self, peer: str, error: MicroError | None = None) -> None:
        """Close the link to `peer`, if there is one, with `error` as the reason that is reported."""
        if self._watch is not None:
            reason = {} if error is None else {"error": error.to_wire()}
            self._watch.ipc.send(ipc.encode_map(Kind.EVENT, {"unlink": peer, **reason}))

    def dial(self, channel: str, *, peer: str, priority: Priority = Priority.CALLS) -> Session:
        """Open a session to `peer` without waiting. A refusal arrives as `socket_lost`.

        Raises:
            Unreachable: The tunnel process is not available, or it has no link to the peer.
        """
        if not self._connected.is_set():
            raise Unreachable(
                "the tunnel process is not available", at=short_id(self.node_id), hint="is `micro tunnel` running?"
            )
        if peer not in self._links:
            raise Unreachable(
                f"no link to node {short_id(peer)}", at=short_id(self.node_id), hint="micro network connections"
            )
        request = {"verb": Verb.DIAL, "channel": channel, "peer": peer, "priority": int(priority)}
        return self.open_session(channel, peer, request)

    def listen(self, channel: str, accept: Callable[[Session], None]) -> RemoteListener:
        """Accept sessions on `channel`.

        Raises:
            Conflict: The channel has a listener already.
        """
        if channel in self._listeners:
            raise Conflict(f"channel {channel} has a listener already")
        listener = self._listeners[channel] = RemoteListener(self, channel, accept)
        listener.start()
        return listener

    def set_event_handler(self, handler: LinkEventHandler) -> None:
        """Deliver link events to `handler`, see `Sessions`.

        Raises:
            Conflict: A handler is set already.
        """
        if self._event_handler is not None:
            raise Conflict("the tunnel has an event handler already")
        self._event_handler = handler

    # ---------------------------------------------------- for RemoteListener

    def open_session(self, channel: str, peer: str, request: dict[str, Any]) -> RemoteSession:
        """Open the session for which `request` asks."""
        session = RemoteSession(
            channel=channel,
            peer=peer,
            request=request,
            dial=self.dial_ipc,
            prove=self._prove,
            start_task=self.start_connection_task,
            on_end=self._session_ended,
        )
        self._sessions[session] = None
        return session

    def _session_ended(self, session: RemoteSession) -> None:
        self._sessions.pop(session, None)

    async def dial_ipc(self) -> Socket:
        """Open a connection to the IPC server. Raises Unreachable."""
        return await self._transport.dial(self._address, timeout_s=DIAL_TIMEOUT_S)

    async def wait_until_connected(self) -> None:
        """Return when the tunnel process is available."""
        await self._connected.wait()

    def new_ipc_socket(self, request: dict[str, Any], receiver: IpcReceiver) -> IpcSocket:
        """Return a connection to the IPC server that is not started."""
        return IpcSocket(request, self._prove, receiver, start_task=self.start_connection_task)

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task that ends with this client at the latest. A failure is counted and logged."""
        return self._tasks.start(work)

    def start_connection_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, which opens or closes a connection, in a task for which `close` waits."""
        return self._connection_tasks.start(work)

    def new_backoff(self) -> Backoff:
        """Return a backoff with the bounds of this client."""
        return Backoff(random=self._random, initial_s=INITIAL_RETRY_S, max_s=MAX_RETRY_S)

    def remove_listener(self, channel: str) -> None:
        """Forget the listener of a channel."""
        self._listeners.pop(channel, None)

    # ---------------------------------------------------------------- private

    async def _maintain_connection(self) -> None:
        backoff = self.new_backoff()
        reported = ""
        while True:
            try:
                watch = await self._connect()
            except MicroError as error:
                if error.detail != reported:
                    reported = error.detail
                    self._report_availability(error)
                self._counters.add("tunnel_ipc_connects_failed")
                await asyncio.sleep(backoff.next_s())
                continue
            reported = ""
            backoff.reset()
            reason = await self._wait_until_lost(watch)
            self._watch = None
            self._connected.clear()
            self._report_availability(reason)
            links, self._links = self._links, {}
            for link in links.values():
                self._emit(LinkDown(link, reason))
            await asyncio.sleep(backoff.next_s())

    async def _connect(self) -> LinkWatch:
        self._address = await self._find()
        watch = LinkWatch(self._clock, self._link_changed)
        watch.ipc = self.new_ipc_socket({"verb": Verb.WATCH}, watch)
        watch.ipc.start(await self.dial_ipc())
        try:
            self.node_id = await self._read_node_id(watch)
        except BaseException:
            await watch.ipc.close(Closed("the watch of the links was given up at this end"))
            raise
        self.facts, self._watch = watch.facts, watch
        self._connected.set()
        self._report_availability(None)
        for link in watch.initial_links:
            self._link_changed("up", link, None)
        watch.is_live = True
        return watch

    async def _read_node_id(self, watch: LinkWatch) -> str:
        """Wait until the links are known, and return the id of the node of the tunnel process."""
        try:
            async with asyncio.timeout(MAX_SILENCE_S):
                await watch.synced
        except TimeoutError:
            raise Unreachable(
                f"the tunnel process at {self._address} did not answer within {MAX_SILENCE_S:g} s"
            ) from None
        found = watch.facts.get("node_id")
        node_id = check_node_id(found) if isinstance(found, str) else ""
        if not node_id or (self.node_id and node_id != self.node_id):
            raise Conflict(
                f"the tunnel process at {self._address} belongs to node {short_id(node_id)}, "
                f"not to {short_id(self.node_id)}",
                hint="restart this process, which then joins that node",
            )
        return node_id

    async def _wait_until_lost(self, watch: LinkWatch) -> MicroError:
        while not watch.lost.done():
            event_count = watch.event_count
            await asyncio.wait({watch.lost}, timeout=MAX_SILENCE_S)
            if watch.event_count == event_count and not watch.lost.done():
                self._counters.add("tunnel_ipc_silent")
                await watch.ipc.close(LinkLost(f"the tunnel process has been silent for {MAX_SILENCE_S:g} s"))
        return watch.lost.result()

    def _link_changed(self, kind: str, link: LinkInfo, error: MicroError | None) -> None:
        if kind == "down":
            if self._links.pop(link.peer, None) is not None:
                self._emit(LinkDown(link, error or LinkLost("the link has ended")))
            return
        if kind == "up":
            if len(self._links) >= MAX_LINKS:
                self._counters.add("tunnel_ipc_links_over_limit")
                return
            self._links[link.peer] = link
            self._emit(LinkUp(link))
        elif link.peer in self._links:
            previous, self._links[link.peer] = self._links[link.peer], link
            if kind == "moved":
                self._emit(LinkMoved(link))
            elif previous.path_rtt_s is None and link.path_rtt_s is not None:
                self._emit(LinkMeasured(link))
            if previous.is_suspect is not link.is_suspect:
                self._emit(LinkSuspect(link, link.is_suspect))

    def _emit(self, event: LinkEvent) -> None:
        if self._event_handler is not None:
            self._event_handler(event)

    def _report_availability(self, error: MicroError | None) -> None:
        if self._availability_handler is not None:
            self._availability_handler(error)
