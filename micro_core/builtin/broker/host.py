"""A broker host: the topics of one site, for services that connect to it and for the node in the same process."""

from __future__ import annotations

import asyncio
import logging

from micro_core.builtin.broker.frame_pipe import FramePipe
from micro_core.builtin.broker.hub import HubBroker
from micro_core.builtin.broker.protocol import PUBLISH, SUBSCRIBE, MessageAssembly, event_frames, published_message
from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.contract.broker import Broker, Message
from micro_core.contract.driver import Counters
from micro_core.contract.errors import Conflict, EndpointNotFound, MicroError, Overloaded
from micro_core.contract.messages import check_message, check_queue
from micro_core.contract.names import check_topic
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.beat import next_beat
from micro_core.wire import limits
from micro_core.wire.frames import Frame, Kind, encode
from micro_core.wire.header import CallHeader, decode_call_header, encode_map

CLIENT_SILENCE_S = 15.0
"""A client that sends nothing for this long, in seconds, is disconnected. Clients send a keepalive every four seconds. Otherwise a
dead machine would remain a member of its queue groups."""

HEARTBEAT_S = 1.0
"""Interval in seconds of the heartbeats to the clients, which need not ask for them. One wake-up of this process serves all."""

HEARTBEAT = encode(Kind.PONG, 0)
"""Older clients ignore it."""


class BrokerHost:
    """Listens for clients, stores their subscriptions and forwards messages to subscribers."""

    def __init__(self, *, node_id: str, counters: Counters, logger: logging.Logger) -> None:
        self.address = ""
        self.subscribers = Subscribers()
        self.counters = counters
        self.node_id = node_id
        self.log = logger
        self._listener: Listener | None = None
        self._connections: dict[_ClientConnection, None] = {}
        self._is_closed = False
        self._tasks = BackgroundTasks(
            component="broker host", logger=logger, counters=counters, failure_counter="broker_tasks_failed"
        )

    async def start(self, transport: Transport, address: str = "") -> None:
        """Listen at `address`; an empty address means a free one. Raises Conflict."""
        self._listener = await transport.listen(address, self._accept)
        self.address = self._listener.address
        self._tasks.start(self._disconnect_silent_clients())
        self._tasks.start(self._send_heartbeats())

    async def close(self) -> None:
        """Stop listening, send queued messages and close all connections. Takes about one second at most.

        Safe to call twice.
        """
        self._is_closed = True
        await self._tasks.cancel()
        if self._listener is not None:
            await self._listener.close()
        await asyncio.gather(*(connection.pipe.close() for connection in list(self._connections)))

    def local_broker(self) -> Broker:
        """Return a broker for this process, which needs no socket."""
        return HubBroker(lambda: self.subscribers, self.counters)

    def remove_connection(self, connection: _ClientConnection) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(connection, None)

    async def _disconnect_silent_clients(self) -> None:
        while True:
            received_counts = {connection: connection.pipe.received_count for connection in self._connections}
            await asyncio.sleep(CLIENT_SILENCE_S)
            for connection, received_count in received_counts.items():
                if connection in self._connections and connection.pipe.received_count == received_count:
                    self.counters.add("broker_clients_silent")
                    connection.pipe.close_in_background()

    async def _send_heartbeats(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(next_beat(now(), HEARTBEAT_S, self.node_id) - now())
            for connection in self._connections:
                if not connection.pipe.is_full:
                    connection.pipe.send([HEARTBEAT])

    def _accept(self, socket: Socket) -> None:
        connection = _ClientConnection(self, socket)
        self._connections[connection] = None
        connection.pipe.start()
        if self._is_closed:
            # The system accepted the connection while the host was being closed.
            connection.pipe.close_in_background()


class _RemoteSubscription:
    """A subscription of a client. Implements `Member`."""

    def __init__(self, connection: _ClientConnection, stream: int, topic: str, queue: str) -> None:
        self.topic = topic
        self.queue = queue
        self._connection = connection
        self._stream = stream

    @property
    def is_full(self) -> bool:
        return self._connection.pipe.is_full

    def offer(self, message: Message) -> None:
        if self.is_full:
            self._connection.host.counters.add("broker_messages_dropped_slow_subscriber")
        else:
            self._connection.pipe.send(event_frames(self.topic, message, self._stream))


class _ClientConnection:
    """One connection of a client. Implements `FrameReceiver`."""

    def __init__(self, host: BrokerHost, socket: Socket) -> None:
        self.host = host
        self.pipe = FramePipe(socket, host.node_id, self, counters=host.counters, logger=host.log)
        self._remote = socket.remote
        self._assembly = MessageAssembly()
        self._subscriptions: dict[int, _RemoteSubscription] = {}

    def frame_received(self, frame: Frame) -> None:
        if frame.kind in (Kind.REQUEST, Kind.DATA):
            completed = self._assembly.add(frame)
            if completed is not None:
                self._answer(*completed)
        elif frame.kind == Kind.CANCEL:
            self._assembly.discard(frame.stream)
            subscription = self._subscriptions.pop(frame.stream, None)
            if subscription is not None:
                self.host.subscribers.remove(subscription.topic, subscription.queue, subscription)

    def protocol_violated(self, error: MicroError) -> None:
        self.host.counters.add("broker_protocol_violations")
        self.host.log.warning(
            "broker connection closed after a protocol violation", extra={"remote": self._remote, "reason": str(error)}
        )

    def pipe_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the reason makes no difference
        for subscription in self._subscriptions.values():
            self.host.subscribers.remove(subscription.topic, subscription.queue, subscription)
        self._subscriptions.clear()
        self.host.remove_connection(self)

    def _answer(self, first: Frame, body: bytes) -> None:
        try:
            self._serve(first.stream, decode_call_header(first.header), body)
        except MicroError as error:
            self.pipe.send([encode(Kind.ERROR, first.stream, encode_map(error.to_wire()))])
        else:
            self.pipe.send([encode(Kind.RESPONSE, first.stream)])

    def _serve(self, stream: int, header: CallHeader, body: bytes) -> None:
        if header.endpoint == PUBLISH:
            topic, message = published_message(header, body)
            check_topic(topic)
            check_message(message)
            self.host.subscribers.publish(topic, message)
        elif header.endpoint == SUBSCRIBE:
            self._subscribe(stream, header)
        else:
            raise EndpointNotFound(f"the broker has no endpoint {header.endpoint}", hint=f"{PUBLISH} or {SUBSCRIBE}")

    def _subscribe(self, stream: int, header: CallHeader) -> None:
        topic, queue = check_topic(header.metadata.get("topic", "")), check_queue(header.metadata.get("queue", ""))
        if stream in self._subscriptions:
            raise Conflict(f"stream {stream} has a subscription already")
        if len(self._subscriptions) >= limits.MAX_TOPICS_PER_INSTANCE:
            raise Overloaded(f"more than {limits.MAX_TOPICS_PER_INSTANCE} subscriptions on one connection")
        subscription = self._subscriptions[stream] = _RemoteSubscription(self, stream, topic, queue)
        self.host.subscribers.add(topic, queue, subscription)
