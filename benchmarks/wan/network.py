"""The processes of the four clouds, and what a scenario may do to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.wan import layout
from benchmarks.wan.layout import CLOUDS, NODES, NodePlace, site_of
from benchmarks.wan.observations import Observations, State, state_at
from benchmarks.wan.processes import START_TIMEOUT_S, Process, StartError, redis_server
from benchmarks.wan.relay_process import ROOT, RelayProcess

MAX_LINE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CpuSample:
    """The CPU time used by a node until `at`."""

    at: float
    node: str
    cpu_s: float


@dataclass
class WanNetwork:
    """The clouds. `broker` is `node`, `nats` or `nats-durable`; `directory` contains state and logs."""

    directory: Path
    broker: str = "node"
    log_level: str = "warning"
    seen: Observations = field(default_factory=Observations)
    cpu: list[CpuSample] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    """Names of the nodes that are expected to answer."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.paths = RelayProcess(self.directory / "relay.log")
        self.nodes: dict[str, Process] = {}
        self.servers: dict[str, Process] = {}
        self.hosts: dict[int, Process] = {}
        self.callers: dict[int, asyncio.subprocess.Process] = {}
        self.extra: list[Process] = []
        self._tasks: list[asyncio.Task[None]] = []

    # -------------------------------------------------------------- lifecycle

    async def start(self) -> None:
        """Start everything and wait until all processes are ready. Raises StartError."""
        self.paths.start()
        await self.paths.restore()
        for cloud in CLOUDS:
            self._prepare_cloud(cloud)
        for server in self.servers.values():
            server.start()
        await asyncio.gather(*(self._server_ready(server) for server in self.servers.values()))
        for process in (*self.nodes.values(), *self.hosts.values()):
            process.start()
        await asyncio.gather(*(process.ready() for process in (*self.nodes.values(), *self.hosts.values())))
        self.live = set(self.nodes)
        for cloud in CLOUDS:
            await self._start_caller(cloud)
        self._tasks.append(asyncio.ensure_future(self._sample_cpu()))

    async def close(self) -> None:
        """Stop every process. Does not raise, and takes a few seconds at most."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for caller in self.callers.values():
            with contextlib.suppress(ProcessLookupError):
                caller.kill()
            await caller.wait()
        # An orderly shutdown would take the time of a drain.
        for process in (*self.extra, *self.hosts.values(), *self.nodes.values(), *self.servers.values()):
            process.kill()
        self.paths.close()

    def _prepare_cloud(self, cloud: int) -> None:
        def process(title: str, command: Sequence[str], config: str = "") -> Process:
            return Process(
                title,
                cloud,
                list(command),
                self.paths.namespaces[cloud],
                self._environment(config),
                self.directory / f"{title}.log",
            )

        site = site_of(cloud)
        data = self.directory / f"redis-{site}"
        data.mkdir(exist_ok=True)
        where = ("--bind", "127.0.0.1", "--port", str(layout.REDIS_PORT), "--dir", str(data), "--save", "")
        self.servers[f"redis-{site}"] = process(f"redis-{site}", [redis_server(), *where])
        if self.broker != "node":
            store = self.directory / f"nats-{site}"
            beside = Path(sys.executable).with_name("nats-server")
            command = [
                str(beside) if beside.exists() else "nats-server",
                "-a",
                "127.0.0.1",
                "-p",
                str(layout.NATS_PORT),
            ]
            if self.broker == "nats-durable":
                command += ["-js", "-sd", str(store)]
            self.servers[f"nats-{site}"] = process(f"nats-{site}", command)
        for node in (node for node in NODES if node.cloud == cloud):
            self.nodes[node.name] = process(
                node.name, [sys.executable, "-m", "micro_core", "run"], self._write_config(node.name, cloud, node)
            )
        clients = self._write_config(f"clients-{site}", cloud, None)
        self.hosts[cloud] = process(
            f"host-{site}",
            [sys.executable, "-m", "benchmarks.wan.service_host", str(cloud), *layout.services_of(cloud)],
            clients,
        )

    def _environment(self, config: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MICRO_")}
        return {**clean, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "MICRO_CONFIG": config}

    def _write_config(self, name: str, cloud: int, node: NodePlace | None) -> str:
        plugins = ["quic", "tls", "redis", "dns"] if node is not None else ["redis"]
        if self.broker != "node":
            plugins.append("nats")
        # The directory of the keys is kept when the network is started again, so that the ids stay the same.
        state = self.directory.parent / f"state-{site_of(cloud)}"
        lines = [
            "[node]",
            f'name = "{name}"',
            f'network = "{layout.NETWORK}"',
            f'site = "{site_of(cloud)}"',
            f"plugins = {json.dumps(plugins)}",
            f'state_dir = "{state}"',
            f'token = "{layout.TOKEN}"',
            f'log = "{self.log_level}"',
        ]
        if node is not None:
            lines += [f'listen = "{node.ip}:{layout.TUNNEL_PORT}"', f'address = "{node.call_address}"']
        else:
            lines += ['proxy = "go.micro.network"']
        lines += ["[plugins.redis]", f'url = "redis://127.0.0.1:{layout.REDIS_PORT}/0"']
        if node is not None:
            lines += ["[plugins.dns]", 'nameservers = "127.0.0.1:53"']
        if self.broker != "node":
            lines += ["[plugins.nats]", f'url = "nats://127.0.0.1:{layout.NATS_PORT}"']
            lines += ["durable = true"] if self.broker == "nats-durable" else []
        path = self.directory / f"{name}.toml"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    async def _server_ready(self, server: Process) -> None:
        port, question, expected = (
            (layout.REDIS_PORT, b"PING\r\n", b"+PONG")
            if server.title.startswith("redis")
            else (layout.NATS_PORT, b"", b"INFO")
        )
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and server.is_running:
            with (
                contextlib.suppress(OSError),
                server.namespace.entered(),
                socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection,
            ):
                connection.sendall(question)
                if connection.recv(64).startswith(expected):
                    return
            await asyncio.sleep(0.05)
        raise StartError(f"{server.title} does not answer:\n{server.log.read_text(errors='replace')[-1_500:]}")

    # ---------------------------------------------------------------- clients

    async def _start_caller(self, cloud: int) -> None:
        with (self.directory / f"caller-{site_of(cloud)}.log").open("ab") as log:
            caller = self.callers[cloud] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.wan.caller",
                str(cloud),
                env=self._environment(str(self.directory / f"clients-{site_of(cloud)}.toml")),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
                preexec_fn=self.paths.namespaces[cloud].enter_child(),
            )
        self._tasks.append(asyncio.ensure_future(self._read_reports(cloud, caller)))

    async def _read_reports(self, cloud: int, caller: asyncio.subprocess.Process) -> None:
        assert caller.stdout is not None
        while line := await caller.stdout.readline():
            self.seen.add(cloud, json.loads(line))
        log = (self.directory / f"caller-{site_of(cloud)}.log").read_text(errors="replace")
        raise StartError(f"the caller of {site_of(cloud)} has ended:\n{log[-1_500:]}")

    def command_callers(self, **command: Any) -> None:
        """Send a command to all callers; see `caller`."""
        self.check()
        for caller in self.callers.values():
            assert caller.stdin is not None
            caller.stdin.write(json.dumps(command).encode() + b"\n")

    def check(self) -> None:
        """Raise StartError if a task or a caller has failed."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _sample_cpu(self) -> None:
        while True:
            now = time.monotonic()
            for name, process in self.nodes.items():
                used = process.cpu_s()
                if used is not None:
                    self.cpu.append(CpuSample(now, name, used))
            await asyncio.sleep(1.0)

    # ------------------------------------------------------------------ state

    def state(self) -> State:
        """Return the current state of the network."""
        return state_at(self.seen.samples, time.monotonic(), self.live)

    async def until(self, condition: Callable[[], bool], timeout_s: float, *, hold_s: float = 0.0) -> bool:
        """Wait until `condition` holds for `hold_s` seconds. Return whether it did within `timeout_s`."""
        end, since = time.monotonic() + timeout_s, None
        while time.monotonic() < end:
            self.check()
            if not condition():
                since = None
            elif since is None:
                since = time.monotonic()
            if since is not None and time.monotonic() - since >= hold_s:
                return True
            await asyncio.sleep(0.2)
        return False

    def leader(self, cloud: int) -> str:
        """Return the name of the node with the least id of its site."""
        ids = self.seen.ids
        names = [node.name for node in NODES if node.cloud == cloud and node.name in ids]
        if not names:
            raise StartError(f"no node of {site_of(cloud)} answers")
        return min(names, key=lambda name: ids[name])

    # -------------------------------------------------------------- processes

    async def stop_node(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a node and wait for it."""
        self.live.discard(name)
        await self.nodes[name].stop(number)

    async def start_node(self, name: str) -> None:
        """Start a node again and wait until it is ready. Raises StartError."""
        self.nodes[name].start()
        await self.nodes[name].ready()
        self.live.add(name)

    async def restart_server(self, title: str) -> None:
        """Start a Redis or NATS server again, without its data, and wait until it answers. Raises StartError."""
        self.servers[title].start()
        await self._server_ready(self.servers[title])

    async def start_extra(self, title: str, cloud: int, module: str, *arguments: str) -> Process:
        """Start another client process of a cloud. It is ended by `stop_extra` or `close`."""
        process = Process(
            title,
            cloud,
            [sys.executable, "-m", f"benchmarks.wan.{module}", *arguments],
            self.paths.namespaces[cloud],
            self._environment(str(self.directory / f"clients-{site_of(cloud)}.toml")),
            self.directory / f"{title}.log",
        )
        self.extra.append(process)
        process.start()
        return process

    async def stop_extra(self) -> None:
        """End the processes of `start_extra`."""
        for process in self.extra:
            await process.stop()
        self.extra.clear()
