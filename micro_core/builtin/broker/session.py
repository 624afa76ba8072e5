"""One connection of a client to the broker that a node hosts: requests and their answers, deliveries, signs of life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from micro_core.builtin.broker.frame_pipe import FramePipe
from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.builtin.broker.protocol import Pieces, publish_frames, subscribe_frame
from micro_core.contract.broker import Message
from micro_core.contract.driver import Counters
from micro_core.contract.errors import LinkLost, MicroError, Overloaded, error_from_wire
from micro_core.contract.transport import Socket
from micro_core.wire.frames import Frame, Kind, encode
from micro_core.wire.header import decode_event_header, decode_map

MAX_OUTSTANDING = 10_000
"""Requests that wait for their answer on one connection."""


class HostSession:
    """A `PipeOwner`. `lost` is done after the end; `on_lost` is called at it, in the same turn."""

    def __init__(
        self,
        socket: Socket,
        *,
        address: str,
        node_id: str,
        counters: Counters,
        logger: logging.Logger,
        on_lost: Callable[[HostSession], None],
    ) -> None:
        self.address = address
        self.lost = asyncio.Event()
        self._counters = counters
        self._log = logger
        self._on_lost = on_lost
        self._pieces = Pieces()
        self._next_stream = 1
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._standing: dict[Mailbox, tuple[int, asyncio.Future[None]]] = {}
        self._by_stream: dict[int, Mailbox] = {}
        self._pipe = FramePipe(socket, node_id, self)
        self._pipe.start()

    async def room(self) -> bool:
        """Wait while the host reads too slowly; False when the session has ended."""
        while self._pipe.is_full and not self.lost.is_set():
            await self._pipe.room.wait()
        return not self.lost.is_set()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has taken the message. Raises LinkLost, Overloaded, and what the host answers."""
        _, answer = self._request(lambda stream: publish_frames(stream, topic, message))
        await answer

    async def subscribe(self, mailbox: Mailbox) -> None:
        """Return when the subscription is in force; asked twice, it is made once. Raises as `publish` does."""
        standing = self._standing.get(mailbox)
        if standing is None:
            standing = self._request(lambda stream: [subscribe_frame(stream, mailbox.topic, mailbox.queue)])
            self._standing[mailbox] = standing
            self._by_stream[standing[0]] = mailbox
        try:
            await asyncio.shield(standing[1])
        except MicroError:
            self._forget(mailbox)
            raise

    def unsubscribe(self, mailbox: Mailbox) -> None:
        """End a subscription; unknown ones are ignored."""
        stream = self._forget(mailbox)
        if stream is not None:
            self._pipe.send([encode(Kind.CANCEL, stream)])

    async def keep_alive(self, interval_s: float) -> None:
        """Ask for a sign of life every `interval_s`; return when there was none."""
        while True:
            heard = self._pipe.heard
            self._pipe.send([encode(Kind.PING, 0)])
            await asyncio.sleep(interval_s)
            if self._pipe.heard == heard:
                return

    async def close(self) -> None:
        await self._pipe.close()

    # --------------------------------------------------------------- PipeOwner

    def frame_received(self, frame: Frame) -> None:
        if frame.kind == Kind.EVENT:
            completed = self._pieces.whole(frame)
            if completed is not None:
                self._deliver(*completed)
            return
        answer = self._answers.pop(frame.stream, None)
        if answer is None or answer.done():
            return
        if frame.kind == Kind.RESPONSE:
            answer.set_result(None)
        elif frame.kind == Kind.ERROR:
            _fail(answer, error_from_wire(decode_map(frame.header)))

    def pipe_violated(self, error: MicroError) -> None:
        self._counters.add("broker_protocol_violations")
        self._log.warning("broker connection broken off", extra={"remote": self.address, "reason": str(error)})

    def pipe_lost(self, error: MicroError) -> None:
        answers, self._answers = self._answers, {}
        self.lost.set()
        for answer in answers.values():
            if not answer.done():
                _fail(answer, LinkLost(f"the broker was lost before it answered: {error.detail}"))
        self._on_lost(self)

    # ----------------------------------------------------------------- inside

    def _request(self, frames: Callable[[int], list[bytes]]) -> tuple[int, asyncio.Future[None]]:
        if self.lost.is_set():
            raise LinkLost(f"the connection to the broker at {self.address} has ended")
        if len(self._answers) >= MAX_OUTSTANDING:
            raise Overloaded(f"{MAX_OUTSTANDING} messages wait for the broker", hint="publish more slowly")
        stream = self._next_stream
        encoded = frames(stream)
        # Odd numbers, as for every call of the side that dialled.
        self._next_stream += 2
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers[stream] = answer
        self._pipe.send(encoded)
        return stream, answer

    def _forget(self, mailbox: Mailbox) -> int | None:
        standing = self._standing.pop(mailbox, None)
        if standing is None:
            return None
        self._by_stream.pop(standing[0], None)
        return standing[0]

    def _deliver(self, first: Frame, body: bytes) -> None:
        header = decode_event_header(first.header)
        (target,) = header.targets[:1] or ("",)
        stream = int(target) if target.isascii() and target.isdigit() and len(target) <= 10 else 0
        mailbox = self._by_stream.get(stream)
        if mailbox is None:
            # On its way when the subscription ended.
            self._counters.add("broker_messages_unwanted")
            return
        mailbox.offer(
            Message(id=header.id, body=body, content_type=header.content_type, headers=header.headers),
        )


def _fail(answer: asyncio.Future[None], error: MicroError) -> None:
    answer.set_exception(error)
    # Whoever asked may have gone; an error that nobody fetches is no fault.
    answer.exception()
