"""The broker role as a client of the broker that this site's node hosts.

The host is found in the registry, as `go.micro.broker`: of several, the one with the smallest id, so that all on a
site meet at the same. Subscriptions outlive the connection: they are made again at the next host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from micro_core.builtin.broker_wire import SERVICE, FramePipe, Pieces, publish_frames, subscribe_frame
from micro_core.builtin.mailbox import Mailbox
from micro_core.builtin.memory_broker import check_size
from micro_core.spec import (
    Broker,
    Closed,
    ConfigError,
    Driver,
    DriverContext,
    Message,
    MessageHandler,
    MicroError,
    Subscription,
    Unreachable,
    hookimpl,
    option,
)
from micro_core.spec.errors import error_from_wire
from micro_core.spec.names import check_topic
from micro_core.spec.transport import Socket
from micro_core.wire.frames import Frame, Kind, encode
from micro_core.wire.header import decode_event_header, decode_map

MAX_OUTSTANDING = 10_000
"""Publications that wait for their acknowledgement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBrokerOptions:
    """Options of the node's broker."""

    address: str = option("", "Address of the host; empty: found in the registry.")
    publish_timeout_s: float = option(5.0, "How long a publication may wait for the host.")
    subscribe_timeout_s: float = option(2.0, "How long `subscribe` waits for a host before it goes on without.")
    retry_s: float = option(0.5, "Longest pause between two tries to connect.")


class NodeBroker:
    """Implements `Broker`. Connects when it is first used, and again whenever the connection is lost.

    `subscribe` returns when the host has acknowledged. Where no host is there within `subscribe_timeout_s` (services
    often start before their node), it returns with a warning, and is in force as soon as there is one.
    """

    def __init__(self, options: NodeBrokerOptions, context: DriverContext) -> None:
        if context.transport is None or (context.registry is None and not options.address):
            raise ConfigError("the broker `node` needs a transport and a registry")
        self._options = options
        self._context = context
        self._mailboxes: dict[Mailbox, int] = {}
        """Subscription to its stream on the present connection; 0 for not in force."""
        self._session: _HostSession | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Nothing yet: a service without topics never connects."""

    async def close(self) -> None:
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._mailboxes)))
        if self._session is not None:
            await self._session.socket.close()

    async def publish(self, topic: str, message: Message) -> None:
        check_topic(topic)
        check_size(message)
        try:
            async with asyncio.timeout(self._options.publish_timeout_s):
                session = await self._connected()
                await session.request(lambda stream: publish_frames(stream, topic, message))
        except TimeoutError:
            raise Unreachable(
                f"no broker took the message on {topic}", hint="does a node run on this site? micro run"
            ) from None

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        check_topic(topic)
        self._check_open()
        mailbox = Mailbox(topic, queue, handler, self._context.counters, self._forget)
        self._mailboxes[mailbox] = 0
        try:
            async with asyncio.timeout(self._options.subscribe_timeout_s):
                session = await self._connected()
                if not self._mailboxes.get(mailbox):
                    await self._put_in_force(session, mailbox)
        except (TimeoutError, Unreachable):
            self._context.counters.add("broker_subscriptions_waiting")
            self._context.logger.warning("no broker yet; the subscription waits for one", extra={"topic": topic})
        except MicroError:
            await mailbox.close()
            raise
        return mailbox

    # ----------------------------------------------------------------- inside

    def _forget(self, mailbox: Mailbox) -> None:
        stream = self._mailboxes.pop(mailbox, 0)
        if stream and self._session is not None:
            self._session.unsubscribe(stream)

    async def _connected(self) -> _HostSession:
        self._check_open()
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        while self._session is None:
            await self._up.wait()
        return self._session

    async def _keep(self) -> None:
        """One task: connect, make the subscriptions again, wait for the end, begin anew."""
        failed = False
        while True:
            try:
                session = await self._connect()
            except MicroError as error:
                if not failed:
                    self._context.logger.info("no broker host", extra={"reason": str(error)})
                failed = True
                await asyncio.sleep(self._options.retry_s * self._context.random.uniform(0.2, 1.0))
                continue
            failed = False
            self._session = session
            try:
                for mailbox in list(self._mailboxes):
                    if not self._mailboxes.get(mailbox):
                        await self._put_in_force(session, mailbox)
                self._up.set()
                await session.lost.wait()
            except MicroError as error:
                self._context.logger.warning("subscriptions not made", extra={"reason": str(error)})
                await session.socket.close()
            self._session = None
            self._up.clear()
            self._mailboxes = dict.fromkeys(self._mailboxes, 0)

    async def _connect(self) -> _HostSession:
        transport, registry = self._context.transport, self._context.registry
        assert transport is not None
        address = self._options.address
        if not address:
            assert registry is not None
            hosts = await registry.instances(SERVICE)
            if not hosts:
                raise Unreachable("no broker is registered on this site", hint="micro run")
            address = min(hosts, key=lambda host: host.id).address
        socket = await transport.dial(address, timeout_s=3.0)
        return _HostSession(socket, self._context, self._deliver)

    async def _put_in_force(self, session: _HostSession, mailbox: Mailbox) -> None:
        def frames(stream: int) -> list[bytes]:
            self._mailboxes[mailbox] = stream
            return [subscribe_frame(stream, mailbox.topic, mailbox.queue)]

        await session.request(frames)

    def _deliver(self, stream: int, message: Message) -> None:
        for mailbox, known in self._mailboxes.items():
            if known == stream:
                mailbox.offer(message)
                return
        self._context.counters.add("broker_messages_unwanted")

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")


class _HostSession:
    """One connection to a host; implements `SocketReceiver`."""

    def __init__(self, socket: Socket, context: DriverContext, deliver: Callable[[int, Message], None]) -> None:
        self.socket = socket
        self.lost = asyncio.Event()
        self._context = context
        self._deliver = deliver
        self._pipe = FramePipe(socket, context.node_id)
        self._pieces = Pieces()
        self._next = 1
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._error: MicroError | None = None
        self._closing: asyncio.Task[None] | None = None
        socket.start(self)

    async def request(self, frames: Callable[[int], list[bytes]]) -> None:
        """Send a request and wait for its answer; raises what the host answered, or Unreachable."""
        if self._error is not None or len(self._answers) >= MAX_OUTSTANDING:
            raise Unreachable("the broker cannot take more now")
        stream, self._next = self._next, self._next + 2
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        encoded = frames(stream)
        self._answers[stream] = answer
        self._pipe.send(encoded)
        try:
            await answer
        finally:
            self._answers.pop(stream, None)

    def unsubscribe(self, stream: int) -> None:
        self._pipe.send([encode(Kind.CANCEL, stream)])

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._pipe.receive(data):
                self._receive(frame)
        except MicroError as error:
            self._context.logger.warning("broker connection broken off", extra={"reason": str(error)})
            self._closing = asyncio.get_running_loop().create_task(self.socket.close())

    def pause_writing(self) -> None:
        self._pipe.pause()

    def resume_writing(self) -> None:
        self._pipe.resume()

    def socket_lost(self, error: MicroError) -> None:
        self._error = error
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unreachable(f"the broker was lost: {error.detail}"))
        self.lost.set()

    def _receive(self, frame: Frame) -> None:
        if frame.kind == Kind.EVENT:
            completed = self._pieces.whole(frame)
            if completed is None:
                return
            header = decode_event_header(completed[0].header)
            message = Message(id=header.id, body=completed[1], content_type=header.content_type, headers=header.headers)
            for target in header.targets[:1]:
                if target.isascii() and target.isdigit():
                    self._deliver(int(target), message)
            return
        answer = self._answers.get(frame.stream)
        if answer is None or answer.done():
            return
        if frame.kind == Kind.RESPONSE:
            answer.set_result(None)
        elif frame.kind == Kind.ERROR:
            answer.set_exception(error_from_wire(decode_map(frame.header)))


def create(options: NodeBrokerOptions, context: DriverContext) -> Broker:
    return NodeBroker(options, context)


@hookimpl
def micro_broker() -> Driver[Broker]:
    return Driver(name="node", summary="Topics hosted by this site's node.", options=NodeBrokerOptions, create=create)
