"""Transports that break one promise each, made from one that keeps them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from micro_core.builtin.transport import memory as memory_transport
from micro_core.builtin.transport.memory import MemorySocket, MemoryTransport
from micro_core.contract import Driver, DriverContext, Ended, LinkLost, NoOptions, Socket, SocketReceiver, Transport
from micro_core.contract.transport import Listener
from micro_core.testing import DriverUnderTest, Faults, TransportConformance


class Sound(MemoryTransport):
    """Keeps every promise; `change` is done to each of its sockets."""

    def socket(self, local: str, remote: str) -> MemorySocket:
        made = super().socket(local, remote)
        self.change(made)
        return made

    def change(self, socket: Any) -> None:
        """Nothing."""


class SwallowsTheEnd(Sound):
    def change(self, socket: Any) -> None:
        start = socket.start

        def start_deaf(receiver: SocketReceiver) -> None:
            told = receiver.socket_lost
            receiver.socket_lost = lambda error: None if isinstance(error, Ended) else told(error)  # type: ignore[method-assign]
            start(receiver)

        socket.start = start_deaf


class TellsTheEndTwice(Sound):
    def change(self, socket: Any) -> None:
        start = socket.start

        def start_echo(receiver: SocketReceiver) -> None:
            told = receiver.socket_lost

            def twice(error: Any) -> None:
                told(error)
                told(error)

            receiver.socket_lost = twice  # type: ignore[method-assign]
            start(receiver)

        socket.start = start_echo


class CallsEveryEndALoss(Sound):
    def change(self, socket: Any) -> None:
        end = socket.end
        socket.end = lambda error: end(LinkLost(error.detail))


class NeverPausesTheWriter(Sound):
    def change(self, socket: Any) -> None:
        socket.pause_writing = lambda: None


class ReadsOnWhenPaused(Sound):
    def change(self, socket: Any) -> None:
        socket.pause_reading = lambda: None


class LosesTheFirstBytes(Sound):
    def change(self, socket: Any) -> None:
        arrive = socket.arrive
        socket.arrive = lambda data: arrive(data) if socket._receiver is not None else None


class LosesTheLastBytes(Sound):
    def change(self, socket: Any) -> None:
        end = socket.end

        def end_at_once(error: Any) -> None:
            socket._waiting.clear()
            end(error)

        socket.end = end_at_once


class Reorders(Sound):
    def change(self, socket: Any) -> None:
        arrive = socket.arrive

        def shuffled(data: bytes) -> None:
            arrive(data)
            if len(socket._waiting) % 7 == 6:
                socket._waiting.rotate(1)

        socket.arrive = shuffled


class SharesAPlace(Sound):
    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        memory_transport._doors.pop(self._place(address.removeprefix("memory://")), None)
        return await super().listen(address, accept)


class BreaksInSilence(Sound):
    """The transport's own end learns of a cut, the other end does not."""

    def change(self, socket: Any) -> None:
        def cut() -> None:
            if socket._error is None:
                socket._end(LinkLost("cut"))
            if socket.other is not None:
                socket.other._is_told = True
                socket.other._error = socket.other._error or LinkLost("cut")

        socket.cut = cut


class Cut(Faults):
    def __init__(self) -> None:
        self.made: list[Sound] = []

    async def kill(self) -> None:
        for transport in self.made:
            for socket in transport.sockets:
                socket.cut()


class Kit(TransportConformance):
    """The kit of one of them."""

    made: type[Sound]
    patience_s = 1.0  # what never comes is not waited for any longer
    most_buffered_bytes = 8_000_000

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Transport]:
        faults = Cut()

        def create(_options: NoOptions, context: DriverContext) -> Transport:
            faults.made.append(self.made(context.network, context.site, context.random))
            return faults.made[-1]

        driver: Driver[Transport] = Driver(name="broken", summary="Breaks.", options=NoOptions, create=create)
        return DriverUnderTest(driver=driver, faults=faults)


class TestSound(Kit):
    made = Sound
    patience_s = 10.0


class TestSwallowsTheEnd(Kit):
    made = SwallowsTheEnd


class TestTellsTheEndTwice(Kit):
    made = TellsTheEndTwice


class TestCallsEveryEndALoss(Kit):
    made = CallsEveryEndALoss


class TestNeverPausesTheWriter(Kit):
    made = NeverPausesTheWriter


class TestReadsOnWhenPaused(Kit):
    made = ReadsOnWhenPaused


class TestLosesTheFirstBytes(Kit):
    made = LosesTheFirstBytes


class TestLosesTheLastBytes(Kit):
    made = LosesTheLastBytes


class TestReorders(Kit):
    made = Reorders


class TestSharesAPlace(Kit):
    made = SharesAPlace


class TestBreaksInSilence(Kit):
    made = BreaksInSilence
