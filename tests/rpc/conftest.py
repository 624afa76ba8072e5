"""Fixtures: pairs of connected sockets in memory, connections over them, and a client with servers over such sockets."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.contract import CountersInMemory, DriverContext
from micro_core.contract.errors import Closed, Ended, MicroError, Unreachable
from micro_core.contract.registry import Instance, Registry
from micro_core.contract.transport import Listener, Socket, SocketReceiver
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.rpc.client import Client
from micro_core.rpc.connection import Connection, ConnectionHandler
from micro_core.rpc.server import Server


class PairedSocket:
    """One of two connected sockets.

    `sent` contains all written bytes. The socket pauses its writer above `high_mark` undelivered bytes.
    """

    high_mark = 256 * 1024

    def __init__(self, name: str) -> None:
        self.local = f"memory://{name}"
        self.remote = ""
        self.peer: PairedSocket | None = None
        self.sent = bytearray()
        self.error: MicroError | None = None
        self._receiver: SocketReceiver | None = None
        self._inbox: deque[bytes] = deque()
        self._reading = True
        self._paused_writer = False
        self._scheduled = False

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        self._schedule()

    def write(self, data: bytes) -> None:
        assert self.peer is not None
        if self.error is not None:
            return
        self.sent += data
        self.peer._inbox.append(data)
        self.peer._schedule()
        if self.peer.undelivered_bytes > self.high_mark and not self._paused_writer and self._receiver is not None:
            self._paused_writer = True
            self._receiver.pause_writing()

    @property
    def undelivered_bytes(self) -> int:
        return sum(len(data) for data in self._inbox)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    async def close(self) -> None:
        if self.error is None and self.peer is not None:
            peer = self.peer
            self._lose(Closed("closed at this end"))
            peer._end_after_inbox(Ended("closed by the peer"))

    def lose(self, error: MicroError) -> None:
        """Break the connection at both ends."""
        assert self.peer is not None
        self._lose(error)
        self.peer._lose(error)

    def _end_after_inbox(self, error: MicroError) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._deliver)
        loop.call_soon(self._lose, error)

    def _lose(self, error: MicroError) -> None:
        if self.error is None:
            self.error = error
            if self._receiver is not None:
                self._receiver.socket_lost(error)

    def _schedule(self) -> None:
        if not self._scheduled and self._inbox and self._receiver is not None and self._reading:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._inbox and self._reading and self.error is None and self._receiver is not None:
            self._receiver.data_received(self._inbox.popleft())
        peer = self.peer
        if peer is not None and peer._paused_writer and self.undelivered_bytes <= self.high_mark // 2:
            peer._paused_writer = False
            if peer._receiver is not None:
                peer._receiver.resume_writing()


def make_pair() -> tuple[PairedSocket, PairedSocket]:
    near, far = PairedSocket("near"), PairedSocket("far")
    near.peer, far.peer = far, near
    near.remote, far.remote = far.local, near.local
    return near, far


class PairedListener:
    def __init__(self, transport: PairedTransport, address: str) -> None:
        self.address = address
        self._transport = transport

    async def close(self) -> None:
        self._transport.listening.pop(self.address, None)


class PairedTransport:
    """A transport within one test. `sockets` are the dialling ends, in the order of the dials."""

    scheme = "memory"

    def __init__(self) -> None:
        self.listening: dict[str, Callable[[Socket], None]] = {}
        self.sockets: list[PairedSocket] = []
        self.dialed: list[str] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        for socket in self.sockets:
            await socket.close()

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        self.dialed.append(address)
        accept = self.listening.get(address)
        if accept is None:
            raise Unreachable(f"no listener at {address}")
        near, far = make_pair()
        self.sockets.append(near)
        accept(far)
        return near

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        address = address or f"memory://{len(self.listening) + 1}"
        self.listening[address] = accept
        return PairedListener(self, address)


class ServiceHarness:
    """A client, a registry, and the servers that a test adds."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self.registry = registry
        self.transport = PairedTransport()
        self.connections: list[Connection] = []
        self.clients: list[Client] = []
        self.random = Random(7)
        self.client = self.new_client()

    def new_client(self, **options: object) -> Client:
        defaults: dict[str, object] = {"proxy": "", "random": self.random}
        client = Client(registry=self.registry, transport=self.transport, **(defaults | options))  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    async def serve(self, server: Server, *, instance_id: str = "", address: str = "") -> Instance:
        """Listen for `server`, and register it as an instance of `server.name`."""

        def accept(socket: Socket) -> None:
            self.connections.append(Connection(socket, dialed=False, handler=server, counters=server.counters))

        listener = await self.transport.listen(address, accept)
        instance = Instance(
            service=server.name,
            id=instance_id or f"{server.name}-{len(self.transport.listening)}",
            address=listener.address,
            endpoints=server.endpoints,
        )
        await self.registry.register(instance, lease_s=30.0)
        return instance

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        await self.transport.close()
        for connection in self.connections:
            await connection.close()


def connect(
    handler: ConnectionHandler | None = None, far_handler: ConnectionHandler | None = None
) -> tuple[Connection, Connection]:
    """Return two connected connections: the dialling side and the accepting side."""
    near, far = make_pair()
    return (
        Connection(near, dialed=True, handler=handler, counters=CountersInMemory()),
        Connection(far, dialed=False, handler=far_handler, counters=CountersInMemory()),
    )


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Run the event loop until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0)  # one iteration of the event loop


class ManualClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return 1_700_000_000.0 + self.seconds


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(name="connect")
def connect_fixture() -> Callable[..., tuple[Connection, Connection]]:
    return connect


@pytest.fixture(name="pair")
def pair_fixture() -> tuple[PairedSocket, PairedSocket]:
    return make_pair()


@pytest.fixture(name="transport")
def transport_fixture() -> PairedTransport:
    return PairedTransport()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Awaitable[None]]:
    return until


def make_context(registry: Registry | None = None) -> DriverContext:
    return DriverContext(
        node_id="a" * 32,
        network="go.micro",
        site="eu",
        state_dir="/nonexistent",
        clock=SystemClock(),
        random=Random(7),
        logger=logging.getLogger("test"),
        counters=CountersInMemory(),
        registry=registry,
    )


@pytest.fixture
def context() -> DriverContext:
    return make_context()


@pytest.fixture
async def harness(context: DriverContext) -> AsyncIterator[ServiceHarness]:
    registry = MemoryRegistry(context)
    await registry.start()
    harness = ServiceHarness(registry)
    yield harness
    await harness.close()
    await registry.close()
