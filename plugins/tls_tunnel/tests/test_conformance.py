"""The conformance kit of the tunnel role, over loopback and over a network path with faults."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable

import pytest
from micro_tls_tunnel import micro_tunnel
from micro_tls_tunnel.driver import TlsTunnel
from micro_tls_tunnel.options import TlsOptions

from micro_core.contract import Conflict, DriverContext, Link, LinkDriver
from micro_core.contract.names import split_host_port
from micro_core.contract.transport import Listener
from micro_core.testing import DriverUnderTest, Faults, TunnelConformance


class Path(Faults):
    """Relays TCP streams. It stops them while it is paused, and aborts them on `kill`."""

    def __init__(self) -> None:
        self._is_running = asyncio.Event()
        self._is_running.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def kill(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def pause(self) -> None:
        self._is_running.clear()

    async def resume(self) -> None:
        self._is_running.set()

    async def open(self, host: str, port: int, target: tuple[str, int]) -> asyncio.Server:
        """Relay connections from a local port to `target`."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(*target)
            except OSError:
                writer.transport.abort()
                return
            task = asyncio.create_task(self._carry(reader, writer, far_reader, far_writer))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

        server = await asyncio.start_server(connected, host, port)
        self._servers.append(server)
        return server

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self._is_running.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await self.kill()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


class RelayedListener:
    """A listener whose address is that of the relay."""

    def __init__(self, listener: Listener, server: asyncio.Server) -> None:
        host, port = server.sockets[0].getsockname()
        self.address = f"tls://{host}:{port}"
        self._listener = listener
        self._server = server

    async def close(self) -> None:
        self._server.close()
        await self._listener.close()


class RelayedTunnel(TlsTunnel):
    """A driver whose listeners are dialled through the relay."""

    path: Path
    servers: list[asyncio.Server]

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        host, port = split_host_port(address.removeprefix("tls://"))
        listener = await super().listen("127.0.0.1:0", accept)
        try:
            server = await self.path.open(host, port, split_host_port(listener.address.removeprefix("tls://")))
        except OSError as error:
            await listener.close()
            raise Conflict("the address is in use") from error
        self.servers.append(server)
        return RelayedListener(listener, server)

    async def close(self) -> None:
        for server in self.servers:
            server.close()
        await super().close()


class TestTlsTunnel(TunnelConformance):
    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[LinkDriver]:
        return DriverUnderTest(driver=micro_tunnel())


class TestTlsTunnelWithFaults(TunnelConformance):
    @pytest.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[LinkDriver]]:
        path = Path()

        def create(options: TlsOptions, context: DriverContext) -> LinkDriver:
            tunnel = RelayedTunnel(options, context)
            tunnel.path, tunnel.servers = path, []
            return tunnel

        yield DriverUnderTest(driver=dataclasses.replace(micro_tunnel(), create=create), faults=path)
        await path.close()
