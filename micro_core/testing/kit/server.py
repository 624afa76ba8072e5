"""A fault handle for back ends that run as a server process. It kills, pauses, restarts and empties the process."""

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
"""Below the range of ephemeral ports, so that no other process is assigned one of these ports before it is used."""


def free_port() -> int:
    """Return a port that is currently free on loopback, for TCP and UDP."""
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
    """A server process that is the back end of a driver, with faults that are injected by signals.

        class AcmeServer(ServerProcess):
            async def garbage(self, context): ...

        server = AcmeServer(["acme-server", "--port", str(port), "--dir", data_dir], port=port, data_dir=data_dir)
        await server.start()
        ...
        await server.close()

    `wipe` empties the data directory. Implement `garbage` in a subclass.

    Args:
        command: The program and its arguments.
        port: The port of loopback on which the server listens.
        data_dir: The directory in which the server stores its data. It is created if it does not exist.
    """

    def __init__(self, command: Sequence[str], *, port: int, data_dir: str | Path) -> None:
        self.command = list(command)
        self.port = port
        self.data_dir = Path(data_dir)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the server, and return when its port accepts connections. Fail after 20 s or if the process exits."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await until(self._is_open, START_TIMEOUT_S, f"{self.command[0]} listens on port {self.port}")

    async def close(self) -> None:
        """Kill the server process if it is running."""
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            # SIGKILL, because a process that is stopped by SIGSTOP does not handle other signals.
            process.kill()
        if process is not None:
            await process.wait()

    async def kill(self) -> None:
        """Kill the server process."""
        await self.close()

    async def restart(self) -> None:
        """Start the server with its data."""
        await self.start()

    async def wipe(self) -> None:
        """Delete the data of the server, and start it."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        await self.start()

    async def pause(self) -> None:
        """Stop the server process with SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """Continue the server process with SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def _is_open(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, (
            f"{self.command[0]} exited immediately with code {self.process.returncode}"
        )
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
