"""The broker that a node hosts: topics of one site, for services that connect to it and for the node itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from micro_core.builtin.broker_wire import (
    PUBLISH,
    SUBSCRIBE,
    FramePipe,
    Pieces,
    event_frames,
    published_message,
)
from micro_core.builtin.mailbox import Mailbox
from micro_core.builtin.memory_broker import check_size
from micro_core.builtin.subscribers import Subscribers
from micro_core.spec.broker import Broker, Message, MessageHandler, Subscription
from micro_core.spec.driver import Counters
from micro_core.spec.errors import EndpointNotFound, MicroError, Overloaded
from micro_core.spec.names import check_topic
from micro_core.spec.transport import Listener, Socket, Transport
from micro_core.wire import limits
from micro_core.wire.frames import Frame, Kind, encode
from micro_core.wire.header import CallHeader, decode_call_header, encode_map

MAX_WAITING_MESSAGES = 4_096
"""Deliveries that wait for one connection; a slow subscriber loses the newest, and they are counted."""


class BrokerHost:
    """Listens, keeps the subscriptions of every connection, hands messages round."""

    def __init__(self, *, node_id: str, counters: Counters, logger: logging.Logger) -> None:
        self.address = ""
        self.subscribers: Subscribers[_Remote | Mailbox] = Subscribers()
        self.counters = counters
        self.node_id = node_id
        self.log = logger
        self._listener: Listener | None = None
        self._guests: set[_Guest] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, transport: Transport, address: str = "") -> None:
        """Listen at `address`, empty for any free place. Raises Conflict."""
        self._listener = await transport.listen(address, self._accept)
        self.address = self._listener.address

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        await asyncio.gather(*(guest.socket.close() for guest in list(self._guests)))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def local_broker(self) -> Broker:
        """A broker for the node itself, without a socket."""
        return LocalBroker(self)

    def publish(self, topic: str, message: Message) -> None:
        """Hand a message to all who want it; never waits."""
        for receiver in self.subscribers.receivers(topic):
            receiver.offer(message)

    def guest_gone(self, guest: _Guest) -> None:
        self._guests.discard(guest)

    def start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, socket: Socket) -> None:
        guest = _Guest(self, socket)
        self._guests.add(guest)
        socket.start(guest)


class _Remote:
    """A subscription of a connection."""

    def __init__(self, guest: _Guest, stream: int, topic: str, queue: str) -> None:
        self.guest = guest
        self.stream = stream
        self.topic = topic
        self.queue = queue

    def offer(self, message: Message) -> None:
        pipe = self.guest.pipe
        if pipe.waiting_bytes > limits.MAX_CONNECTION_BUFFER_BYTES or (
            pipe.is_paused and pipe.waiting_count > MAX_WAITING_MESSAGES
        ):
            self.guest.host.counters.add("broker_messages_dropped_slow_subscriber")
            return
        pipe.send(event_frames(self.topic, message, self.stream))


class _Guest:
    """One connection; implements `SocketReceiver`."""

    def __init__(self, host: BrokerHost, socket: Socket) -> None:
        self.host = host
        self.socket = socket
        self.pipe = FramePipe(socket, host.node_id)
        self._pieces = Pieces()
        self._remotes: dict[int, _Remote] = {}

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self.pipe.receive(data):
                self._receive(frame)
        except MicroError as error:
            self.host.counters.add("broker_protocol_violations")
            self.host.log.warning("broker connection broken off", extra={"reason": str(error)})
            self.host.start_task(self.socket.close())

    def pause_writing(self) -> None:
        self.pipe.pause()

    def resume_writing(self) -> None:
        self.pipe.resume()

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - its subscriptions go, whatever the reason
        for remote in self._remotes.values():
            self.host.subscribers.remove(remote.topic, remote.queue, remote)
        self._remotes.clear()
        self.host.guest_gone(self)

    def _receive(self, frame: Frame) -> None:
        if frame.kind in (Kind.REQUEST, Kind.DATA):
            completed = self._pieces.whole(frame)
            if completed is not None:
                self._request(*completed)
        elif frame.kind == Kind.CANCEL:
            remote = self._remotes.pop(frame.stream, None)
            if remote is not None:
                self.host.subscribers.remove(remote.topic, remote.queue, remote)
        elif frame.kind == Kind.PING:
            self.pipe.send([encode(Kind.PONG, 0, b"", frame.body[:32])])

    def _request(self, first: Frame, body: bytes) -> None:
        stream = first.stream
        try:
            if first.kind != Kind.REQUEST:
                return
            header = decode_call_header(first.header)
            if header.endpoint == PUBLISH:
                topic, message = published_message(header, body)
                check_topic(topic)
                check_size(message)
                self.host.publish(topic, message)
            elif header.endpoint == SUBSCRIBE:
                self._subscribe(stream, header)
            else:
                raise EndpointNotFound(f"the broker has no endpoint {header.endpoint}")
        except MicroError as error:
            self.pipe.send([encode(Kind.ERROR, stream, encode_map(error.to_wire()))])
        else:
            self.pipe.send([encode(Kind.RESPONSE, stream)])

    def _subscribe(self, stream: int, header: CallHeader) -> None:
        topic, queue = check_topic(header.metadata.get("topic", "")), header.metadata.get("queue", "")
        if len(self._remotes) >= limits.MAX_TOPICS_PER_INSTANCE or stream in self._remotes:
            raise Overloaded(f"more than {limits.MAX_TOPICS_PER_INSTANCE} subscriptions on one connection")
        remote = self._remotes[stream] = _Remote(self, stream, topic, queue)
        self.host.subscribers.add(topic, queue, remote)


class LocalBroker:
    """Implements `Broker` for the node that hosts."""

    def __init__(self, host: BrokerHost) -> None:
        self._host = host
        self._own: set[Mailbox] = set()

    async def start(self) -> None:
        """The host is started by the node."""

    async def close(self) -> None:
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._own)))

    async def publish(self, topic: str, message: Message) -> None:
        check_topic(topic)
        check_size(message)
        self._host.publish(topic, message)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        check_topic(topic)
        mailbox = Mailbox(topic, queue, handler, self._host.counters, self._forget)
        self._own.add(mailbox)
        self._host.subscribers.add(topic, queue, mailbox)
        return mailbox

    def _forget(self, mailbox: Mailbox) -> None:
        self._own.discard(mailbox)
        self._host.subscribers.remove(mailbox.topic, mailbox.queue, mailbox)
