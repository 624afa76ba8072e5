"""A fault handle for back ends that are a server process: killed, paused, restarted, emptied by its process id."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from micro_core.testing.kit.driver_under_test import Faults
from micro_core.testing.kit.waiting import until

START_TIMEOUT_S = 20.0


FREE_PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever asks for any port: one of these stays free until it is used."""


def free_port() -> int:
    """A port of loopback that nobody has just now, neither for TCP nor for UDP."""
    while True:
        port = secrets.choice(FREE_PORTS)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


class ServerProcess(Faults):
    """Runs `command`, which listens on `port` of loopback and keeps its data in `data_dir`.

        class AcmeServer(ServerProcess):
            async def garbage(self, context): ...

        server = AcmeServer(["acme-server", "--port", str(port), "--dir", data_dir], port=port, data_dir=data_dir)
        await server.start()
        ...
        await server.close()

    The verbs of `Faults` are signals to the process; `wipe` empties `data_dir`. `garbage` is yours.
    """

    def __init__(self, command: Sequence[str], *, port: int, data_dir: str | Path) -> None:
        self.command = list(command)
        self.port = port
        self.data_dir = Path(data_dir)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the server; returns when its port is open."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await until(self._is_open, START_TIMEOUT_S, f"{self.command[0]} listens on port {self.port}")

    async def close(self) -> None:
        """End the server, if it runs."""
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            # A process that was stopped takes no other signal.
            process.kill()
        if process is not None:
            await process.wait()

    async def kill(self) -> None:
        await self.close()

    async def restart(self) -> None:
        await self.start()

    async def wipe(self) -> None:
        shutil.rmtree(self.data_dir, ignore_errors=True)
        await self.start()

    async def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def _is_open(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, f"{self.command[0]} ended at once with {self.process.returncode}"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
