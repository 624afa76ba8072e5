"""The kit of the tunnel role: over plain loopback, and over a path that can be stopped and broken."""

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


class TestQuicTunnel(TunnelConformance):
    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[LinkDriver]:
        return DriverUnderTest(driver=micro_tunnel())


class Relay(asyncio.DatagramProtocol):
    """Carries the datagrams of one dialler to a listener and back; `flow` says what becomes of them."""

    def __init__(self, path: Path, target: tuple[str, int]) -> None:
        self._path = path
        self._target = target
        self._dialler: tuple[str, int] | None = None
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport is a DatagramTransport in name only before 3.12.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr != self._target:
            self._dialler = addr
        to = self._dialler if addr == self._target else self._target
        if to is not None and self.transport is not None:
            self._path.carry(self.transport, data, to)


class Path(Faults):
    """A network between both ends: datagrams pass, are lost (`pause`, as a queue that is full), or never pass again."""

    def __init__(self) -> None:
        self._passes = True
        self._relays: list[asyncio.DatagramTransport] = []

    async def through(self, address: str) -> str:
        """Where to dial, so that the datagrams for `address` come by here."""
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


class TestQuicTunnelOverAPath(TunnelConformance):
    """The parts that hurt the path; the others have been run over plain loopback."""

    @pytest.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[LinkDriver]]:
        path = Path()

        def create_far(options: QuicOptions, context: DriverContext) -> LinkDriver:
            made = create(options, context)
            dial = made.dial

            async def dial_through(address: str, *, timeout_s: float) -> Link:
                return await dial(await path.through(address), timeout_s=timeout_s)

            made.dial = dial_through  # type: ignore[method-assign]  # every dial goes by the path
            return made

        driver = dataclasses.replace(micro_tunnel(), create=create_far)
        yield DriverUnderTest(driver=driver, options=QuicOptions(idle_timeout_s=2.0), faults=path)
        path.close()

    @pytest.fixture(autouse=True)
    def only_faults(self, request: pytest.FixtureRequest) -> None:
        needs = getattr(request.function, "micro_needs", None)
        if needs is None or not needs.faults:
            pytest.skip("run over plain loopback by TestQuicTunnel")
