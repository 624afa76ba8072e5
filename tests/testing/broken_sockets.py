"""Transports that each violate one clause of the contract, derived from a correct one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from micro_core.builtin.transport import memory as memory_transport
from micro_core.builtin.transport.memory import MemorySocket, MemoryTransport
from micro_core.contract import Driver, DriverContext, Ended, LinkLost, NoOptions, Socket, SocketReceiver, Transport
from micro_core.contract.transport import Listener
from micro_core.testing import DriverUnderTest, Faults, TransportConformance


class Correct(MemoryTransport):
    """Fulfils the contract. Subclasses override `change`, which modifies each socket."""

    def new_socket(self, local: str, remote: str) -> MemorySocket:
        socket = super().new_socket(local, remote)
        self.change(socket)
        return socket

    def change(self, socket: Any) -> None:
        """Change nothing."""


class DoesNotReportEnded(Correct):
    def change(self, socket: Any) -> None:
        start = socket.start

        def start_without_ended(receiver: SocketReceiver) -> None:
            socket_lost = receiver.socket_lost
            receiver.socket_lost = lambda error: None if isinstance(error, Ended) else socket_lost(error)  # type: ignore[method-assign]
            start(receiver)

        socket.start = start_without_ended


class ReportsTheEndTwice(Correct):
    def change(self, socket: Any) -> None:
        start = socket.start

        def start_with_echo(receiver: SocketReceiver) -> None:
            socket_lost = receiver.socket_lost

            def twice(error: Any) -> None:
                socket_lost(error)
                socket_lost(error)

            receiver.socket_lost = twice  # type: ignore[method-assign]
            start(receiver)

        socket.start = start_with_echo


class ReportsEveryEndAsLoss(Correct):
    def change(self, socket: Any) -> None:
        end = socket.end
        socket.end = lambda error: end(LinkLost(error.detail))


class NeverPausesTheWriter(Correct):
    def change(self, socket: Any) -> None:
        socket.pause_writing = lambda: None


class ReadsWhilePaused(Correct):
    def change(self, socket: Any) -> None:
        socket.pause_reading = lambda: None


class LosesDataBeforeStart(Correct):
    def change(self, socket: Any) -> None:
        receive = socket.receive
        socket.receive = lambda data: receive(data) if socket._receiver is not None else None


class LosesDataBeforeClose(Correct):
    def change(self, socket: Any) -> None:
        end = socket.end

        def end_immediately(error: Any) -> None:
            socket._queued.clear()
            end(error)

        socket.end = end_immediately


class Reorders(Correct):
    def change(self, socket: Any) -> None:
        receive = socket.receive

        def shuffled(data: bytes) -> None:
            receive(data)
            if len(socket._queued) % 7 == 6:
                socket._queued.rotate(1)

        socket.receive = shuffled


class SharesAddresses(Correct):
    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        memory_transport._open_listeners.pop(self._key(address.removeprefix("memory://")), None)
        return await super().listen(address, accept)


class DoesNotReportALoss(Correct):
    """Reports a broken connection at one end only."""

    def change(self, socket: Any) -> None:
        def cut() -> None:
            if socket._error is None:
                socket._end(LinkLost("cut"))
            if socket.other is not None:
                socket.other._is_error_delivered = True
                socket.other._error = socket.other._error or LinkLost("cut")

        socket.cut = cut


class Cut(Faults):
    def __init__(self) -> None:
        self.transports: list[Correct] = []

    async def kill(self) -> None:
        for transport in self.transports:
            for socket in transport.sockets:
                socket.cut()


class Kit(TransportConformance):
    """The kit for the driver `driver_class`."""

    driver_class: type[Correct]
    timeout_s = 1.0  # short, because broken drivers never do what is awaited
    max_buffered_bytes = 8_000_000

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Transport]:
        faults = Cut()

        def create(_options: NoOptions, context: DriverContext) -> Transport:
            faults.transports.append(self.driver_class(context.network, context.site, context.random))
            return faults.transports[-1]

        driver: Driver[Transport] = Driver(
            name="broken", summary="A driver that violates the contract.", options=NoOptions, create=create
        )
        return DriverUnderTest(driver=driver, faults=faults)


class TestCorrect(Kit):
    driver_class = Correct
    timeout_s = 10.0


class TestDoesNotReportEnded(Kit):
    driver_class = DoesNotReportEnded


class TestReportsTheEndTwice(Kit):
    driver_class = ReportsTheEndTwice


class TestReportsEveryEndAsLoss(Kit):
    driver_class = ReportsEveryEndAsLoss


class TestNeverPausesTheWriter(Kit):
    driver_class = NeverPausesTheWriter


class TestReadsWhilePaused(Kit):
    driver_class = ReadsWhilePaused


class TestLosesDataBeforeStart(Kit):
    driver_class = LosesDataBeforeStart


class TestLosesDataBeforeClose(Kit):
    driver_class = LosesDataBeforeClose


class TestReorders(Kit):
    driver_class = Reorders


class TestSharesAddresses(Kit):
    driver_class = SharesAddresses


class TestDoesNotReportALoss(Kit):
    driver_class = DoesNotReportALoss
