"""The conformance kit of the tunnel role, over loopback and over a network path with faults."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import cast

import pytest
from micro_quic_tunnel import create, micro_tunnel
from micro_quic_tunnel.options import QuicOptions

from micro_core.contract import DriverContext, Link, LinkDriver
from micro_core.contract.names import split_host_port
from micro_core.testing import DriverUnderTest, Faults, TunnelConformance
from micro_core.testing.kit.conformance import requirements_of


class TestQuicTunnel(TunnelConformance):
    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[LinkDriver]:
        return DriverUnderTest(driver=micro_tunnel())


class Relay(asyncio.DatagramProtocol):
    """Forwards datagrams between one dialling node and a listener, as long as `path` allows it."""

    def __init__(self, path: Path, target: tuple[str, int]) -> None:
        self._path = path
        self._target = target
        self._dialler: tuple[str, int] | None = None
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.12, asyncio's datagram transport is not a subclass of DatagramTransport.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr != self._target:
            self._dialler = addr
        to = self._dialler if addr == self._target else self._target
        if to is not None and self.transport is not None:
            self._path.carry(self.transport, data, to)


class Path(Faults):
    """A network path between both ends. It drops all datagrams while it is paused, and forever after `kill`."""

    def __init__(self) -> None:
        self._passes = True
        self._relays: list[asyncio.DatagramTransport] = []

    async def through(self, address: str) -> str:
        """Return an address to dial whose datagrams are forwarded to `address` on this path."""
        loop = asyncio.get_running_loop()
        target = split_host_port(address.removeprefix("quic://"))
        transport, _ = await loop.create_datagram_endpoint(lambda: Relay(self, target), local_addr=("127.0.0.1", 0))
        self._relays.append(transport)
        return f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"

    def carry(self, transport: asyncio.DatagramTransport, data: bytes, to: tuple[str, int]) -> None:
        if self._passes:
            transport.sendto(data, to)

    async def kill(self) -> None:
        self._passes = False

    async def pause(self) -> None:
        self._passes = False

    async def resume(self) -> None:
        self._passes = True

    def close(self) -> None:
        for transport in self._relays:
            transport.close()


class TestQuicTunnelWithFaults(TunnelConformance):
    """The checks that inject faults into the path. TestQuicTunnel runs the others over loopback."""

    @pytest.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[LinkDriver]]:
        path = Path()

        def create_remote(options: QuicOptions, context: DriverContext) -> LinkDriver:
            driver = create(options, context)
            dial = driver.dial

            async def dial_through(address: str, *, timeout_s: float) -> Link:
                return await dial(await path.through(address), timeout_s=timeout_s)

            driver.dial = dial_through  # type: ignore[method-assign]  # all links use the path
            return driver

        driver = dataclasses.replace(micro_tunnel(), create=create_remote)
        yield DriverUnderTest(driver=driver, options=QuicOptions(idle_timeout_s=2.0), faults=path)
        path.close()

    @pytest.fixture(autouse=True)
    def only_faults(self, request: pytest.FixtureRequest) -> None:
        if not requirements_of(request.function).faults:
            pytest.skip("run over loopback by TestQuicTunnel")
