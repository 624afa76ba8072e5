"""Link drivers that each violate one clause of the contract, derived from a correct one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import Driver, DriverContext, Link, LinkDriver, LinkLost, MicroError, Unreachable
from micro_core.contract.transport import Listener
from micro_core.testing import DriverUnderTest, Faults, TunnelConformance


class Correct(MemoryTunnel):
    """Fulfils the contract. Subclasses override `change`, which modifies each link."""

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        link = await super().dial(address, timeout_s=timeout_s)
        self.change(link)
        return link

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        def changed(link: Link) -> None:
            self.change(link)
            accept(link)

        return await super().listen(address, changed)

    def change(self, link: Any) -> None:
        """Change nothing."""


class ReportsNoBufferedBytes(Correct):
    def change(self, link: Any) -> None:
        link.buffered_bytes = lambda _lane: 0


class NeverReportsWritable(Correct):
    def change(self, link: Any) -> None:
        link._report_writable = lambda: None


class ReportsWritableOnEveryWrite(Correct):
    def change(self, link: Any) -> None:
        write = link.write

        def write_and_report(lane: int, data: bytes) -> None:
            write(lane, data)
            if link._receiver is not None:
                link._receiver.lane_writable(lane)

        link.write = write_and_report


class ReordersBytes(Correct):
    def change(self, link: Any) -> None:
        write = link.write

        def shuffled(lane: int, data: bytes) -> None:
            write(lane, data)
            if len(link._unsent) % 5 == 4:
                link._unsent[-1], link._unsent[-2] = link._unsent[-2], link._unsent[-1]

        link.write = shuffled


class MixesLanes(Correct):
    def change(self, link: Any) -> None:
        write = link.write
        link.write = lambda lane, data: write((lane + 1) % link.lane_count if len(data) > 1_000 else lane, data)


class DeliversWithinWrite(Correct):
    def change(self, link: Any) -> None:
        write = link.write

        def write_now(lane: int, data: bytes) -> None:
            write(lane, data)
            link._send()

        link.write = write_now


class LosesDataBeforeStart(Correct):
    def change(self, link: Any) -> None:
        start = link.start

        def start_without_early_data(receiver: Any) -> None:
            link._early.clear()
            start(receiver)

        link.start = start_without_early_data


class DoesNotReportALoss(Correct):
    def change(self, link: Any) -> None:
        end = link.end

        def end_quietly(here: MicroError, there: MicroError) -> None:
            if isinstance(here, LinkLost):
                link._receiver = None
            end(here, there)

        link.end = end_quietly


class HasDifferentChannelBindings(Correct):
    def change(self, link: Any) -> None:
        link.channel_binding = self._random.getrandbits(256).to_bytes(32, "big")


class LeaksOSError(Correct):
    async def dial(self, address: str, *, timeout_s: float) -> Link:
        try:
            return await super().dial(address, timeout_s=timeout_s)
        except Unreachable as error:
            raise OSError("connection refused") from error


class LosesBufferedData(Correct):
    def change(self, link: Any) -> None:
        release = link.release

        def release_without_data() -> None:
            while len(link._unsent) > 1:
                lane, data = link._unsent.popleft()
                link._buffered[lane] -= len(data)
            link._unsent and link._unsent.popleft()
            release()

        link.release = release_without_data


class Network(Faults):
    def __init__(self) -> None:
        self.drivers: list[Correct] = []

    def links(self) -> list[Any]:
        return [link for driver in self.drivers for link in [*driver.links, *driver.accepted_links]]

    async def kill(self) -> None:
        for driver in self.drivers:
            for link in driver.links:
                link.cut()

    async def pause(self) -> None:
        for link in self.links():
            link.hold()

    async def resume(self) -> None:
        for link in self.links():
            link.release()


class Kit(TunnelConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    listen_address = ""
    timeout_s = 1.0  # short, because broken drivers never do what is awaited
    max_silence_s = 1.0

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[LinkDriver]:
        network = Network()

        def create(options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
            network.drivers.append(self.driver_class(options, context))
            return network.drivers[-1]

        driver: Driver[LinkDriver] = Driver(
            name="memory", summary="A driver that violates the contract.", options=MemoryTunnelOptions, create=create
        )
        return DriverUnderTest(driver=driver, faults=network)


class TestCorrect(Kit):
    driver_class = Correct
    timeout_s = 10.0


class TestReportsNoBufferedBytes(Kit):
    driver_class = ReportsNoBufferedBytes


class TestNeverReportsWritable(Kit):
    driver_class = NeverReportsWritable


class TestReportsWritableOnEveryWrite(Kit):
    driver_class = ReportsWritableOnEveryWrite


class TestReordersBytes(Kit):
    driver_class = ReordersBytes


class TestMixesLanes(Kit):
    driver_class = MixesLanes


class TestDeliversWithinWrite(Kit):
    driver_class = DeliversWithinWrite


class TestLosesDataBeforeStart(Kit):
    driver_class = LosesDataBeforeStart


class TestDoesNotReportALoss(Kit):
    driver_class = DoesNotReportALoss


class TestHasDifferentChannelBindings(Kit):
    driver_class = HasDifferentChannelBindings


class TestLeaksOSError(Kit):
    driver_class = LeaksOSError


class TestLosesBufferedData(Kit):
    driver_class = LosesBufferedData
