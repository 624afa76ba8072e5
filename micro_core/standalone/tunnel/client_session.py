"""A session over the tunnel of another process. Its user sees a `Session` like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.transport import Socket, SocketReceiver
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.client_socket import IpcSocket, Prove, StartTask

MAX_EARLY_BYTES = 256 * 1024
"""Data written before the session is open. Above this limit the writer is paused."""

CLOSE_TIMEOUT_S = 1.0


class RemoteSession:
    """Implements `Session`. It dials the IPC server in a task and queues what is written until the session is open."""

    def __init__(
        self,
        *,
        channel: str,
        peer: str,
        request: dict[str, Any],
        dial: Callable[[], Awaitable[Socket]],
        prove: Prove,
        start_task: StartTask,
        on_end: Callable[[RemoteSession], None],
    ) -> None:
        self.channel = channel
        self.peer = peer
        self.local = f"ipc#{channel}"
        self.remote = f"{peer[:8]}#{channel}"
        self._dial = dial
        self._on_end = on_end
        self._ipc = IpcSocket(request, prove, self, start_task=start_task)
        self._receiver: SocketReceiver | None = None
        self._early_writes: list[bytes] = []
        self._early_bytes = 0
        self._is_writing_paused = False
        self._undelivered: list[bytes] = []
        self._is_reading = True
        self._error: MicroError | None = None
        self._is_error_delivered = False
        self._is_open_or_lost = asyncio.Event()
        self._connecting = start_task(self._connect())

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        self._deliver()
        if self._is_writing_paused and self._error is None:
            receiver.pause_writing()

    def write(self, data: bytes) -> None:
        """Queue bytes without blocking. Ignored after the end of the session."""
        if self._error is not None or not data:
            return
        if self._ipc.is_open:
            self._ipc.send(ipc.encode_data(data))
            return
        self._early_writes.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > MAX_EARLY_BYTES and not self._is_writing_paused:
            self.pause_writing()

    def pause_reading(self) -> None:
        """Stop delivering data."""
        self._is_reading = False
        self._ipc.pause_reading()

    def resume_reading(self) -> None:
        """Deliver data again."""
        if not self._is_reading:
            self._is_reading = True
            self._deliver()
            self._ipc.resume_reading()

    async def close(self) -> None:
        """Send queued data, then close. Waits at most CLOSE_TIMEOUT_S for a session that is not open yet."""
        if self._error is None and self._early_writes:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._is_open_or_lost.wait()
            except TimeoutError:
                self._early_writes.clear()
        await self._ipc.close(Closed(f"the session on channel {self.channel} was closed at this end"))
        self._connecting.cancel()
        await asyncio.gather(self._connecting, return_exceptions=True)

    # ------------------------------------------------------------ IpcReceiver

    def request_granted(self, facts: dict[str, Any]) -> None:
        """Send the data that was written before the session was open."""
        remote = facts.get("remote")
        if isinstance(remote, str):
            self.remote = remote[:253]
        early, self._early_writes = self._early_writes, []
        self._early_bytes = 0
        for data in early:
            self._ipc.send(ipc.encode_data(data))
        self._is_open_or_lost.set()
        if self._is_writing_paused:
            self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Deliver data of the peer, or keep it while the receiver does not read."""
        if self._receiver is None or not self._is_reading or self._undelivered:
            self._undelivered.append(data)
            # Bounded by one read of the socket, because reading stops until this data is delivered.
            self._ipc.pause_reading()
            return
        self._receiver.data_received(data)

    def event_received(self, event: dict[str, Any]) -> None:
        """Ignore the event: sessions have none in this version of the protocol."""

    def pause_writing(self) -> None:
        """Pause the writer."""
        self._is_writing_paused = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """Let the writer continue."""
        self._is_writing_paused = False
        if self._receiver is not None and self._error is None:
            self._receiver.resume_writing()

    def connection_lost(self, error: MicroError) -> None:
        """End the session. The receiver gets the error after the data that arrived before it."""
        self._error = error
        self._is_open_or_lost.set()
        self._early_writes.clear()
        self._on_end(self)
        self._deliver()

    # ---------------------------------------------------------------- private

    async def _connect(self) -> None:
        try:
            socket = await self._dial()
        except MicroError as error:
            self._ipc.fail(error)
            return
        self._ipc.start(socket)

    def _deliver(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        while self._undelivered and self._is_reading:
            receiver.data_received(self._undelivered.pop(0))
        if not self._undelivered and self._is_reading and self._error is None:
            self._ipc.resume_reading()
        is_drained = not self._undelivered or isinstance(self._error, Closed)
        if self._error is not None and not self._is_error_delivered and is_drained:
            self._is_error_delivered = True
            self._undelivered.clear()
            receiver.socket_lost(self._error)
