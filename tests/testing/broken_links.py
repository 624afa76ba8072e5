"""Link drivers that break one promise each, made from one that keeps them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import Driver, DriverContext, Link, LinkDriver, LinkLost, MicroError, Unreachable
from micro_core.contract.transport import Listener
from micro_core.testing import DriverUnderTest, Faults, TunnelConformance


class Sound(MemoryTunnel):
    """Keeps every promise; `change` is done to each of its links."""

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
        """Nothing."""


class HidesWhatItHolds(Sound):
    """Whoever asks for credit is told that there is always room."""

    def change(self, link: Any) -> None:
        link.buffered_bytes = lambda _lane: 0


class NeverTellsOfRoom(Sound):
    def change(self, link: Any) -> None:
        link._tell_writable = lambda: None


class TellsOfRoomAtOnce(Sound):
    def change(self, link: Any) -> None:
        write = link.write

        def write_and_tell(lane: int, data: bytes) -> None:
            write(lane, data)
            if link._receiver is not None:
                link._receiver.lane_writable(lane)

        link.write = write_and_tell


class ReordersBytes(Sound):
    def change(self, link: Any) -> None:
        write = link.write

        def shuffled(lane: int, data: bytes) -> None:
            write(lane, data)
            if len(link._unsent) % 5 == 4:
                link._unsent[-1], link._unsent[-2] = link._unsent[-2], link._unsent[-1]

        link.write = shuffled


class MixesLanes(Sound):
    def change(self, link: Any) -> None:
        write = link.write
        link.write = lambda lane, data: write((lane + 1) % link.lane_count if len(data) > 1_000 else lane, data)


class DeliversWithinTheCall(Sound):
    def change(self, link: Any) -> None:
        write = link.write

        def write_now(lane: int, data: bytes) -> None:
            write(lane, data)
            link._send()

        link.write = write_now


class LosesTheFirstBytes(Sound):
    def change(self, link: Any) -> None:
        start = link.start

        def start_anew(receiver: Any) -> None:
            link._early.clear()
            start(receiver)

        link.start = start_anew


class NeverReportsALoss(Sound):
    def change(self, link: Any) -> None:
        end = link.end

        def end_quietly(here: MicroError, there: MicroError) -> None:
            if isinstance(here, LinkLost):
                link._receiver = None
            end(here, there)

        link.end = end_quietly


class BindsEachEndAlone(Sound):
    def change(self, link: Any) -> None:
        link.channel_binding = self._random.getrandbits(256).to_bytes(32, "big")


class TakesAnyAddressToItself(Sound):
    async def dial(self, address: str, *, timeout_s: float) -> Link:
        try:
            return await super().dial(address, timeout_s=timeout_s)
        except Unreachable as error:
            raise OSError("connection refused") from error


class LosesWhatWasHeld(Sound):
    def change(self, link: Any) -> None:
        release = link.release

        def release_less() -> None:
            while len(link._unsent) > 1:
                lane, data = link._unsent.popleft()
                link._buffered[lane] -= len(data)
            link._unsent and link._unsent.popleft()
            release()

        link.release = release_less


class Network(Faults):
    def __init__(self) -> None:
        self.made: list[Sound] = []

    def links(self) -> list[Any]:
        return [link for made in self.made for link in [*made.links, *made.accepted_links]]

    async def kill(self) -> None:
        for made in self.made:
            for link in made.links:
                link.cut()

    async def pause(self) -> None:
        for link in self.links():
            link.hold()

    async def resume(self) -> None:
        for link in self.links():
            link.release()


class Kit(TunnelConformance):
    """The kit of one of them."""

    made: type[Sound]
    listen_at = ""
    patience_s = 1.0  # what never comes is not waited for any longer
    longest_silence_s = 1.0

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[LinkDriver]:
        network = Network()

        def create(options: MemoryTunnelOptions, context: DriverContext) -> LinkDriver:
            network.made.append(self.made(options, context))
            return network.made[-1]

        driver: Driver[LinkDriver] = Driver(
            name="memory", summary="Breaks.", options=MemoryTunnelOptions, create=create
        )
        return DriverUnderTest(driver=driver, faults=network)


class TestSound(Kit):
    made = Sound
    patience_s = 10.0


class TestHidesWhatItHolds(Kit):
    made = HidesWhatItHolds


class TestNeverTellsOfRoom(Kit):
    made = NeverTellsOfRoom


class TestTellsOfRoomAtOnce(Kit):
    made = TellsOfRoomAtOnce


class TestReordersBytes(Kit):
    made = ReordersBytes


class TestMixesLanes(Kit):
    made = MixesLanes


class TestDeliversWithinTheCall(Kit):
    made = DeliversWithinTheCall


class TestLosesTheFirstBytes(Kit):
    made = LosesTheFirstBytes


class TestNeverReportsALoss(Kit):
    made = NeverReportsALoss


class TestBindsEachEndAlone(Kit):
    made = BindsEachEndAlone


class TestTakesAnyAddressToItself(Kit):
    made = TakesAnyAddressToItself


class TestLosesWhatWasHeld(Kit):
    made = LosesWhatWasHeld
