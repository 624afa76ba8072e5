"""A session over the tunnel of another process, as its user sees it: a `Socket`, like any other session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.transport import Socket, SocketReceiver
from micro_core.standalone.tunnel import protocol as wire
from micro_core.standalone.tunnel.ipc_socket import DoorSocket, Prove

MAX_WAITING_BYTES = 256 * 1024
"""Written before the door has opened; above it the writer is paused."""

CLOSE_TIMEOUT_S = 1.0


class RemoteSession:
    """Implements `Session`. Dials the door in a task; what is written meanwhile waits, and is sent in order."""

    def __init__(
        self,
        *,
        channel: str,
        peer: str,
        request: dict[str, Any],
        dial: Callable[[], Awaitable[Socket]],
        prove: Prove,
        ended: Callable[[RemoteSession], None],
    ) -> None:
        self.channel = channel
        self.peer = peer
        self.local = f"door#{channel}"
        self.remote = f"{peer[:8]}#{channel}"
        self._dial = dial
        self._ended = ended
        self._door = DoorSocket(request, prove, self)
        self._receiver: SocketReceiver | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._is_paused = False
        self._held: list[bytes] = []
        self._is_reading = True
        self._error: MicroError | None = None
        self._is_told = False
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._begin())

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        self._deliver_held()
        if self._is_paused and self._error is None:
            receiver.pause_writing()

    def write(self, data: bytes) -> None:
        if self._error is not None or not data:
            return
        if self._door.is_open:
            self._door.send(wire.encode_data(data))
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > MAX_WAITING_BYTES and not self._is_paused:
            self.door_paused()

    def pause_reading(self) -> None:
        self._is_reading = False
        self._door.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._deliver_held()
            self._door.resume_reading()

    async def close(self) -> None:
        """As `Socket.close`; what waits for the door to open is given a second as well."""
        if self._error is None and self._waiting:
            try:
                await asyncio.wait_for(self._opened.wait(), CLOSE_TIMEOUT_S)
            except TimeoutError:
                self._waiting.clear()
        await self._door.close(Closed(f"the session on {self.channel} was closed here"))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # -------------------------------------------------------------- DoorOwner

    def door_opened(self, facts: dict[str, Any]) -> None:
        remote = facts.get("remote")
        if isinstance(remote, str):
            self.remote = remote[:253]
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        for data in waiting:
            self._door.send(wire.encode_data(data))
        self._opened.set()
        if self._is_paused:
            self.door_resumed()

    def door_data(self, data: bytes) -> None:
        if self._receiver is None or not self._is_reading or self._held:
            self._held.append(data)
            # At most what one read of the socket brought: no more is read before this is taken.
            self._door.pause_reading()
            return
        self._receiver.data_received(data)

    def door_event(self, event: dict[str, Any]) -> None:
        """A session has none; a later version's are ignored."""

    def door_paused(self) -> None:
        self._is_paused = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def door_resumed(self) -> None:
        self._is_paused = False
        if self._receiver is not None and self._error is None:
            self._receiver.resume_writing()

    def door_lost(self, error: MicroError) -> None:
        self._error = error
        self._opened.set()
        self._waiting.clear()
        self._ended(self)
        self._deliver_held()

    # ----------------------------------------------------------------- inside

    async def _begin(self) -> None:
        try:
            socket = await self._dial()
        except MicroError as error:
            self._door.fail(error)
            return
        self._door.begin(socket)

    def _deliver_held(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        while self._held and self._is_reading:
            receiver.data_received(self._held.pop(0))
        if not self._held and self._is_reading and self._error is None:
            self._door.resume_reading()
        if self._error is not None and not self._is_told and (not self._held or isinstance(self._error, Closed)):
            self._is_told = True
            self._held.clear()
            receiver.socket_lost(self._error)
