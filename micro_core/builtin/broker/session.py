"""One connection of a client to a broker host: requests and their answers, deliveries and keepalives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from micro_core.builtin.broker.frame_pipe import FramePipe
from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.builtin.broker.protocol import MessageAssembly, publish_frames, subscribe_frame
from micro_core.contract.broker import Message
from micro_core.contract.driver import Counters
from micro_core.contract.errors import LinkLost, MicroError, Overloaded, error_from_wire
from micro_core.contract.transport import Socket
from micro_core.lifecycle.beat import next_beat
from micro_core.wire.frames import Frame, Kind, encode
from micro_core.wire.header import decode_event_header, decode_map

MAX_OUTSTANDING = 10_000
"""Requests without an answer on one connection."""

INTERVALS_PER_PING = 4
"""A client whose host sends heartbeats sends one PING per so many intervals, so that the host does not consider it dead."""


class HostSession:
    """Implements `FrameReceiver`. At the end, `lost` is set and `on_lost` is called in the same loop iteration."""

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
        self._node_id = node_id
        self._counters = counters
        self._log = logger
        self._on_lost = on_lost
        self._assembly = MessageAssembly()
        self._next_stream = 1
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._subscriptions: dict[Mailbox, tuple[int, asyncio.Future[None]]] = {}
        """The stream and the answer of each subscription that was requested."""
        self._by_stream: dict[int, Mailbox] = {}
        self._pipe = FramePipe(socket, node_id, self, counters=counters, logger=logger)
        self._pipe.start()

    async def wait_until_answered(self) -> None:
        """Wait for the HELLO of the host: the system accepts connections also for a process that is stopped.

        Raises LinkLost.
        """
        await self._pipe.answered.wait()
        if self.lost.is_set():
            raise LinkLost(f"the connection to the broker at {self.address} has ended")

    async def wait_until_writable(self) -> bool:
        """Wait while the host reads too slowly. Return False if the session has ended."""
        while self._pipe.is_full and not self.lost.is_set():
            await self._pipe.drained.wait()
        return not self.lost.is_set()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the host has accepted the message. Raises LinkLost, Overloaded and the errors of the host."""
        _, answer = self._request(lambda stream: publish_frames(stream, topic, message))
        await answer

    async def subscribe(self, mailbox: Mailbox) -> None:
        """Return when the subscription is active. A second call for the same mailbox waits for the first request.

        Raises LinkLost, Overloaded and the errors of the host.
        """
        subscription = self._subscriptions.get(mailbox)
        if subscription is None:
            subscription = self._request(lambda stream: [subscribe_frame(stream, mailbox.topic, mailbox.queue)])
            self._subscriptions[mailbox] = subscription
            self._by_stream[subscription[0]] = mailbox
        try:
            await asyncio.shield(subscription[1])
        except MicroError:
            self._remove_subscription(mailbox)
            raise

    def unsubscribe(self, mailbox: Mailbox) -> None:
        """End a subscription. Unknown ones are ignored."""
        stream = self._remove_subscription(mailbox)
        if stream is not None:
            self._pipe.send([encode(Kind.CANCEL, stream)])

    async def keep_alive(self, interval_s: float, max_missed: int) -> None:
        """Return when nothing was received for `max_missed` intervals of `interval_s` seconds.

        The host sends heartbeats. A PING is sent after each interval in which none arrived, and now and then as a sign of
        life of this client.
        """
        now = asyncio.get_running_loop().time
        missed = unasked = 0
        while missed < max_missed:
            received_count = self._pipe.received_count
            if missed or unasked % INTERVALS_PER_PING == 0:
                self._pipe.send([encode(Kind.PING, 0)])
            unasked += 1
            await asyncio.sleep(next_beat(now(), interval_s, self._node_id) - now())
            missed = missed + 1 if self._pipe.received_count == received_count else 0

    async def close(self) -> None:
        """Send queued frames, then close. Safe to call twice."""
        await self._pipe.close()

    # ---------------------------------------------------------- FrameReceiver

    def frame_received(self, frame: Frame) -> None:
        """Deliver a message, or complete a request."""
        if frame.kind == Kind.EVENT:
            completed = self._assembly.add(frame)
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

    def protocol_violated(self, error: MicroError) -> None:
        """Count and log a violation of the protocol."""
        self._counters.add("broker_protocol_violations")
        self._log.warning(
            "broker connection closed after a protocol violation", extra={"remote": self.address, "reason": str(error)}
        )

    def pipe_lost(self, error: MicroError) -> None:
        """Fail all requests without an answer."""
        answers, self._answers = self._answers, {}
        self.lost.set()
        for answer in answers.values():
            if not answer.done():
                _fail(answer, LinkLost(f"the broker connection was lost before the answer: {error.detail}"))
        self._on_lost(self)

    # ---------------------------------------------------------------- private

    def _request(self, frames: Callable[[int], list[bytes]]) -> tuple[int, asyncio.Future[None]]:
        if self.lost.is_set():
            raise LinkLost(f"the connection to the broker at {self.address} has ended")
        if len(self._answers) >= MAX_OUTSTANDING:
            raise Overloaded(f"{MAX_OUTSTANDING} requests to the broker have no answer yet", hint="publish more slowly")
        stream = self._next_stream
        encoded = frames(stream)
        # Odd numbers, like all streams that are opened by the end that dialled.
        self._next_stream += 2
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers[stream] = answer
        self._pipe.send(encoded)
        return stream, answer

    def _remove_subscription(self, mailbox: Mailbox) -> int | None:
        subscription = self._subscriptions.pop(mailbox, None)
        if subscription is None:
            return None
        self._by_stream.pop(subscription[0], None)
        return subscription[0]

    def _deliver(self, first: Frame, body: bytes) -> None:
        header = decode_event_header(first.header)
        (target,) = header.targets[:1] or ("",)
        stream = int(target) if target.isascii() and target.isdigit() and len(target) <= 10 else 0
        mailbox = self._by_stream.get(stream)
        if mailbox is None:
            # The host sent the message before it processed the end of the subscription.
            self._counters.add("broker_messages_unwanted")
            return
        mailbox.offer(
            Message(id=header.id, body=body, content_type=header.content_type, headers=header.headers),
        )


def _fail(answer: asyncio.Future[None], error: MicroError) -> None:
    answer.set_exception(error)
    # Mark the exception as retrieved, because the caller may have been cancelled.
    answer.exception()
