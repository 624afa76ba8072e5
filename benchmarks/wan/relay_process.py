"""Starts the relay with the namespaces of the clouds, and changes the paths between them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.wan import layout
from benchmarks.wan.layout import CLOUDS, NODES
from benchmarks.wan.namespaces import Namespace
from benchmarks.wan.processes import StartError

ROOT = Path(__file__).parents[2]
CONTROL_TIMEOUT_S = 10.0


class RelayProcess:
    """The relay and one namespace per cloud. `log` is the file for its output."""

    def __init__(self, log: Path) -> None:
        self.namespaces: dict[int, Namespace] = {}
        self._log = log
        self._lock = asyncio.Lock()
        self._control: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Create the namespaces and start the process. Raises OSError or CalledProcessError."""
        tuns: dict[int, int] = {}
        resolvers: list[socket.socket] = []
        self._control, theirs = socket.socketpair()
        try:
            for cloud in CLOUDS:
                namespace = self.namespaces[cloud] = Namespace()
                tuns[cloud] = namespace.open_tun()
                namespace.configure([node.ip for node in NODES if node.cloud == cloud], "10.0.0.0/8")
                resolvers.append(namespace.open_udp("127.0.0.1", 53))
            dns = [resolver.fileno() for resolver in resolvers]
            records = {"network": layout.NETWORK, "nodes": layout.node_hosts(), "port": layout.TUNNEL_PORT}
            plan = {"tuns": tuns, "dns": dns, "control": theirs.fileno(), "records": records}
            with self._log.open("ab") as output:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.wan.relay", json.dumps(plan)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=[*tuns.values(), *dns, theirs.fileno()],
                )
            self._control.setblocking(False)
        finally:
            for fd in tuns.values():
                os.close(fd)
            for opened in (*resolvers, theirs):
                opened.close()

    def close(self) -> None:
        """End the process. The namespaces end with the last process in them."""
        if self._control is not None:
            self._control.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        for namespace in self.namespaces.values():
            namespace.close()
        self.namespaces.clear()

    async def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._control is not None
        loop = asyncio.get_running_loop()
        async with self._lock, asyncio.timeout(CONTROL_TIMEOUT_S):
            await loop.sock_sendall(self._control, json.dumps(request).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                received = await loop.sock_recv(self._control, 65_536)
                if not received:
                    raise StartError(f"the relay has ended:\n{self._log.read_text()}")
                answer += received
        found: dict[str, Any] = json.loads(answer)
        return found

    async def change(self, pairs: Iterable[tuple[int, int]], **changes: Any) -> float:
        """Change the conditions of directions between clouds, and return when. The other conditions stay."""
        answer = await self._request({"set": [[source, target, changes] for source, target in pairs]})
        return float(answer["at"])

    async def restore(self) -> float:
        """Return all paths to their usual conditions, and return when."""
        pairs = [(a, b) for a in CLOUDS for b in CLOUDS if a != b]
        answer = await self._request({"set": [[a, b, asdict(layout.usual_conditions(a, b))] for a, b in pairs]})
        return float(answer["at"])

    async def change_delay(self, a: int, b: int, round_trip_s: float) -> float:
        """Change the round-trip time between two clouds, and return when."""
        usual = asdict(replace(layout.usual_conditions(a, b), delay_s=round_trip_s / 2))
        answer = await self._request({"set": [[a, b, usual], [b, a, usual]]})
        return float(answer["at"])

    async def stats(self) -> dict[str, Any]:
        """Return the counters of the relay since its start."""
        return await self._request({"stats": True})
