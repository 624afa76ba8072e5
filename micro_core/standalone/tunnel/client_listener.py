"""A channel on which a process listens through the tunnel of another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from micro_core.contract.errors import Closed, Malformed, MicroError
from micro_core.contract.names import check_node_id
from micro_core.contract.transport import Socket
from micro_core.contract.tunnel import Session
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.client_socket import IpcReceiver, IpcSocket
from micro_core.standalone.tunnel.protocol import Verb
from micro_core.tunnel.backoff import Backoff


class ListeningTunnel(Protocol):
    """The client of the tunnel process, as far as its listeners use it."""

    def new_backoff(self) -> Backoff:
        """Return a backoff with the bounds of the client."""
        ...

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task that ends with the client at the latest."""
        ...

    def start_connection_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, which opens or closes a connection, in a task for which the client waits when it closes."""
        ...

    async def wait_until_connected(self) -> None:
        """Return when the tunnel process is available."""
        ...

    async def dial_ipc(self) -> Socket:
        """Open a connection to the IPC server. Raises Unreachable."""
        ...

    def new_ipc_socket(self, request: dict[str, Any], receiver: IpcReceiver) -> IpcSocket:
        """Return a connection to the IPC server that is not started."""
        ...

    def open_session(self, channel: str, peer: str, request: dict[str, Any]) -> Session:
        """Open the session for which `request` asks."""
        ...

    def remove_listener(self, channel: str) -> None:
        """Forget the listener of a channel."""
        ...


class RemoteListener:
    """Listens again whenever the tunnel process is back. Implements `ChannelListener` and `IpcReceiver`."""

    def __init__(self, tunnel: ListeningTunnel, channel: str, accept: Callable[[Session], None]) -> None:
        self.channel = channel
        self._tunnel = tunnel
        self._accept = accept
        self._ipc: IpcSocket | None = None
        self._lost: asyncio.Future[MicroError] | None = None
        self._backoff = tunnel.new_backoff()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen in a task."""
        self._task = self._tunnel.start_task(self._listen())

    def close(self) -> None:
        """Stop listening in the background. Safe to call twice."""
        self._tunnel.start_connection_task(self.aclose())

    async def aclose(self) -> None:
        """Stop listening and wait until the connection is closed."""
        self._tunnel.remove_listener(self.channel)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._ipc is not None:
            await self._ipc.close(Closed(f"the listener on channel {self.channel} was closed at this end"))

    async def _listen(self) -> None:
        while True:
            await self._tunnel.wait_until_connected()
            self._lost = asyncio.get_running_loop().create_future()
            self._ipc = self._tunnel.new_ipc_socket({"verb": Verb.LISTEN, "channel": self.channel}, self)
            try:
                self._ipc.start(await self._tunnel.dial_ipc())
            except MicroError as error:
                self._ipc.fail(error)
            await self._lost
            await asyncio.sleep(self._backoff.next_s())

    # ------------------------------------------------------------ IpcReceiver

    def request_granted(self, facts: dict[str, Any]) -> None:  # noqa: ARG002 - contains only the channel
        """Reset the backoff."""
        self._backoff.reset()

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - refused
        """Refuse data.

        Raises:
            Malformed: Always: a listener has no data.
        """
        raise Malformed("tunnel IPC: unexpected DATA for a listener")

    def event_received(self, event: dict[str, Any]) -> None:
        """Accept the session that a peer has opened."""
        peer, ticket = check_node_id(ipc.string_field(event, "peer")), ipc.string_field(event, "ticket", 64)
        self._accept(self._tunnel.open_session(self.channel, peer, {"verb": Verb.ACCEPT, "ticket": ticket}))

    def pause_writing(self) -> None:
        """Do nothing: a listener does not write."""

    def resume_writing(self) -> None:
        """Do nothing, see `pause_writing`."""

    def connection_lost(self, error: MicroError) -> None:
        """Let the task listen again."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)
