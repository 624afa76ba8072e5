"""The sockets of a site of the lab: data is received in the process of the receiver, which waits if it is busy."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from micro_core.builtin.transport.memory import MemorySocket, MemoryTransport
from micro_core.contract.clock import Random
from micro_core.contract.transport import Listener, Socket
from micro_core.lab.process import PROCESS


class LabSocket(MemorySocket):
    """One end of a connection within a site. `context` is that of the process at this end."""

    def __init__(
        self, local: str, remote: str, on_end: Callable[[MemorySocket], None], context: contextvars.Context
    ) -> None:
        super().__init__(local, remote, on_end)
        self._context = context
        self._process = context.get(PROCESS)

    def write(self, data: bytes) -> None:
        """Queue bytes for the other end. The work is accounted for."""
        if self._process is not None:
            self._process.work(len(data))
        super().write(data)

    def receive(self, data: bytes) -> None:
        """Queue data of the other end. The work of receiving it is accounted for."""
        if self._process is not None:
            self._process.work(len(data))
        super().receive(data)

    def resume_writing(self) -> None:
        """Resume the writer in its own process."""
        self._loop.call_soon(super().resume_writing, context=self._context)

    def _schedule(self) -> None:
        if not self._is_scheduled and self._receiver is not None:
            self._is_scheduled = True
            self._loop.call_soon(self._deliver, context=self._context)


class LabTransport(MemoryTransport):
    """Implements `Transport` for one process of a site. Without a `context`, the process of the caller is not known."""

    def __init__(self, network: str, site: str, random: Random, context: contextvars.Context | None = None) -> None:
        super().__init__(network, site, random)
        self._context = context if context is not None else contextvars.Context()

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at a name. Connections are accepted in the process of the listener. Raises Closed, Conflict."""
        loop = asyncio.get_running_loop()

        def accept_later(socket: Socket) -> None:
            loop.call_soon(accept, socket, context=self._context)

        return await super().listen(address, accept_later)

    def new_socket(self, local: str, remote: str) -> MemorySocket:
        """Return one end of a new connection, which is closed together with this transport."""
        socket = LabSocket(local, remote, lambda ended: self._sockets.pop(ended, None), self._context)
        self._sockets[socket] = None
        return socket
