"""The kit of the transport role: sockets, backpressure, and the three ways in which a socket ends."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from micro_core.contract import (
    Closed,
    Conflict,
    Ended,
    LinkLost,
    Listener,
    MicroError,
    Role,
    Socket,
    Transport,
    Unreachable,
)
from micro_core.testing.kit.comparison import assert_same_bytes
from micro_core.testing.kit.conformance import Conformance, requires
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.receivers import SocketReader
from micro_core.testing.kit.waiting import until, within

CHUNK_BYTES = 64 * 1024


@dataclass
class AcceptingServer:
    """A transport that listens, with the sockets that it accepted."""

    transport: Transport
    timeout_s: float
    accepted: list[Socket] = field(default_factory=list)
    listener: Listener | None = None

    async def open(self, address: str = "") -> AcceptingServer:
        """Listen at `address`, and return this object."""
        self.listener = await within(
            self.timeout_s, self.transport.listen(address, self.accepted.append), "listen returns"
        )
        return self

    @property
    def address(self) -> str:
        """The address of the listener."""
        assert self.listener is not None
        return self.listener.address

    async def connect(self, dialler: Transport, *, start: bool = True) -> tuple[SocketReader, SocketReader]:
        """Connect and return both ends, the dialling end first. If `start` is false, the accepted end does not read yet."""
        before = len(self.accepted)
        near = await within(self.timeout_s, dialler.dial(self.address, timeout_s=self.timeout_s), "dial returns")
        await until(lambda: len(self.accepted) > before, self.timeout_s, "accept is called once per socket")
        return SocketReader(near), SocketReader(self.accepted[-1], start=start)


class TransportConformance(Conformance[Transport]):
    """The kit of the transport role. Inherit it and supply the fixture `driver_under_test`."""

    role = Role.TRANSPORT

    large_bytes: ClassVar[int] = 8_000_000
    """Number of bytes that a connection must transfer."""

    max_buffered_bytes: ClassVar[int] = 64 * 1024 * 1024
    """Maximum number of bytes that a writer can write to a peer that does not read before `pause_writing` is called."""

    async def exercise(self, harness: Harness[Transport]) -> None:
        """Connect, transfer data and close the connection."""
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        near, far = await server.connect(here)
        near.socket.write(bytes(CHUNK_BYTES))
        await self.expect_bytes(far, bytes(CHUNK_BYTES))
        await near.socket.close()
        await until(
            lambda: far.error is not None,
            self.timeout_s,
            "socket_lost is called at the end whose peer closed the socket",
        )

    async def expect_bytes(
        self, reader: SocketReader, expected: bytes, clause: str = "bytes arrive complete and in order"
    ) -> None:
        """Wait for the expected bytes and compare."""
        await until(lambda: len(reader.data) >= len(expected), self.timeout_s, clause)
        assert_same_bytes(reader.data, expected, clause)
        assert reader.violations == []

    async def expect_lost(self, reader: SocketReader, seconds: float) -> None:
        """Wait for the report of a broken connection."""
        await until(lambda: reader.error is not None, seconds, "socket_lost is called when a connection breaks")

    async def connect_pair(
        self, harness: Harness[Transport], *, start: bool = True
    ) -> tuple[SocketReader, SocketReader]:
        """Connect two transports and return both ends."""
        here, there = await harness.open(), await harness.open()
        return await (await AcceptingServer(there, self.timeout_s).open()).connect(here, start=start)

    # ------------------------------------------------------------------------- data

    async def test_bytes_arrive_complete_and_in_order_both_ways(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        sent = random.Random(1).randbytes(self.large_bytes)  # noqa: S311 - test data, not a secret
        for start in range(0, len(sent), CHUNK_BYTES):
            near.socket.write(sent[start : start + CHUNK_BYTES])
            far.socket.write(sent[start : start + CHUNK_BYTES])
            await asyncio.sleep(0)
        await self.expect_bytes(far, sent)
        await self.expect_bytes(near, sent)

    async def test_small_writes_arrive_in_order(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        expected = b"".join(b"%d," % number for number in range(2_000))
        for number in range(2_000):
            near.socket.write(b"%d," % number)
        await self.expect_bytes(far, expected)

    async def test_data_received_before_start_is_delivered(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        near, far = await server.connect(here, start=False)
        near.socket.write(b"early")
        # When later data has arrived on another connection, the early data has arrived too.
        other, other_far = await server.connect(here)
        other.socket.write(b"later")
        await self.expect_bytes(other_far, b"later")
        far.start()
        await self.expect_bytes(far, b"early", "data received before start is delivered")

    async def test_sockets_have_local_and_remote_addresses(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        assert server.address.startswith(f"{there.scheme}://"), "the address of a listener has a scheme"
        near, far = await server.connect(here)
        for reader in (near, far):
            assert reader.socket.local, "a socket has the address of its own end in local"
            assert reader.socket.remote, "a socket has the address of the other end in remote"

    async def test_address_without_scheme_can_be_dialled(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        without_scheme = server.address.removeprefix(f"{there.scheme}://")
        socket = await within(
            self.timeout_s,
            here.dial(without_scheme, timeout_s=self.timeout_s),
            "dial accepts an address without scheme",
        )
        reader = SocketReader(socket)
        await until(lambda: server.accepted, self.timeout_s, "accept is called once per socket")
        SocketReader(server.accepted[0]).socket.write(b"here")
        await self.expect_bytes(reader, b"here")

    # ----------------------------------------------------------------- backpressure

    async def test_paused_reader_receives_nothing_and_pauses_the_writer(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        far.socket.pause_reading()
        far.socket.pause_reading()
        received = len(far.data)
        written = 0
        while not near.is_paused and written < self.max_buffered_bytes:
            near.socket.write(bytes(CHUNK_BYTES))
            written += CHUNK_BYTES
            await asyncio.sleep(0)
        assert near.is_paused, f"a slow reader pauses the writer: {written} bytes were accepted without pause_writing"
        # A chunk whose delivery had started when reading was paused may still arrive.
        assert len(far.data) - received <= CHUNK_BYTES, "no data is delivered between pause_reading and resume_reading"
        far.socket.resume_reading()
        await until(lambda: len(far.data) == written, self.timeout_s, "all written data arrives after resume_reading")
        await until(
            lambda: not near.is_paused, self.timeout_s, "resume_writing is called when the buffer is below its low mark"
        )

    async def test_reading_paused_before_start_stays_paused(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        near, far = await server.connect(here, start=False)
        far.socket.pause_reading()
        far.start()
        near.socket.write(b"wait")
        other, other_far = await server.connect(here)
        other.socket.write(b"later")
        await self.expect_bytes(other_far, b"later")
        assert far.data == b"", "no data is delivered between pause_reading and resume_reading"
        far.socket.resume_reading()
        await self.expect_bytes(far, b"wait")

    # --------------------------------------------------------------------- closing

    async def test_close_is_reported_once_at_both_ends_after_the_data(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        near.socket.write(b"final data")
        await within(self.timeout_s, near.socket.close(), "close returns")
        await within(self.timeout_s, near.socket.close(), "close is safe to call twice")
        await until(
            lambda: near.error is not None, self.timeout_s, "socket_lost is called at the end that closed the socket"
        )
        await until(
            lambda: far.error is not None,
            self.timeout_s,
            "socket_lost is called at the end whose peer closed the socket",
        )
        assert isinstance(near.error, Closed), f"the end that closes reports Closed: {near.error!r}"
        assert isinstance(far.error, Ended), f"the end whose peer closes reports Ended: {far.error!r}"
        assert far.data == b"final data", "close sends queued data before it closes the connection"
        near.socket.write(b"ignored")
        far.socket.write(b"ignored")
        await asyncio.sleep(0.02)
        assert near.violations == far.violations == []

    async def test_close_before_start_is_reported_after_the_data(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness, start=False)
        near.socket.write(b"early")
        closing = asyncio.create_task(near.socket.close())
        await asyncio.sleep(0)
        far.start()
        await until(
            lambda: far.error is not None,
            self.timeout_s,
            "socket_lost is called at the end whose peer closed the socket",
        )
        await within(self.timeout_s, closing, "close returns")
        assert far.data == b"early", "data received before start is delivered"
        assert isinstance(far.error, Ended), f"the end whose peer closes reports Ended: {far.error!r}"

    async def test_both_ends_can_close_at_the_same_time(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        closing = asyncio.gather(near.socket.close(), far.socket.close(), near.socket.close())
        await within(self.timeout_s, closing, "close returns")
        await until(lambda: near.error and far.error, self.timeout_s, "socket_lost is called at both ends")
        for reader in (near, far):
            assert isinstance(reader.error, Closed | Ended), (
                f"both ends report Closed or Ended, not LinkLost: {reader.error!r}"
            )
            assert reader.violations == []

    async def test_close_waits_at_most_one_second_for_a_slow_peer(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        far.socket.pause_reading()
        near.socket.write(bytes(self.large_bytes))
        await within(3.0, near.socket.close(), "close sends queued data for at most one second")
        await until(
            lambda: near.error is not None, self.timeout_s, "socket_lost is called at the end that closed the socket"
        )
        assert isinstance(near.error, Closed), f"the end that closes reports Closed: {near.error!r}"

    @requires(faults=("kill",))
    async def test_broken_connection_is_reported_as_link_lost_at_both_ends(self, harness: Harness[Transport]) -> None:
        near, far = await self.connect_pair(harness)
        await self.faults(harness).kill()
        near.socket.write(b"lost")
        far.socket.write(b"lost")
        for reader in (near, far):
            await self.expect_lost(reader, self.timeout_s)
            assert isinstance(reader.error, LinkLost), (
                f"both ends of a broken connection report LinkLost: {reader.error!r}"
            )

    # ---------------------------------------------------------- dialling and listening

    async def test_dial_without_a_listener_raises_unreachable(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        assert server.listener is not None
        await within(self.timeout_s, server.listener.close(), "close of a listener returns")
        with pytest.raises(Unreachable) as caught:
            await within(self.timeout_s, here.dial(server.address, timeout_s=2.0), "dial fails within timeout_s")
        assert caught.value.detail.strip(), "Unreachable contains the reason"

    async def test_invalid_address_raises_micro_error(self, harness: Harness[Transport]) -> None:
        here = await harness.open()
        for address in (f"{here.scheme}://", f"{here.scheme}://a\0b:80", "x" * 5_000):
            with pytest.raises(MicroError):
                await within(self.timeout_s, here.dial(address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_address_has_one_listener_and_is_free_after_close(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        for transport in (here, there):
            with pytest.raises(Conflict):
                await transport.listen(server.address, lambda _: None)
        assert server.listener is not None
        await within(self.timeout_s, server.listener.close(), "close of a listener returns")
        again = await AcceptingServer(here, self.timeout_s).open(server.address)
        assert again.address == server.address, "an address is free again after its listener is closed"
        near, far = await again.connect(there)
        near.socket.write(b"here")
        await self.expect_bytes(far, b"here")

    async def test_accepted_sockets_outlive_their_listener(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        near, far = await server.connect(here)
        assert server.listener is not None
        await within(self.timeout_s, server.listener.close(), "close of a listener returns")
        near.socket.write(b"still")
        await self.expect_bytes(far, b"still", "accepted sockets stay open when their listener is closed")

    async def test_transport_close_closes_all_sockets_and_listeners(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        near, far = await server.connect(here)
        await harness.close(there)
        await until(lambda: far.error is not None, self.timeout_s, "close closes all sockets of the transport")
        await until(lambda: near.error is not None, self.timeout_s, "the peers of a closed driver notice the end")
        with pytest.raises(Unreachable):
            await within(self.timeout_s, here.dial(server.address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_concurrent_connections_are_independent(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await AcceptingServer(there, self.timeout_s).open()
        dials = asyncio.gather(*(here.dial(server.address, timeout_s=self.timeout_s) for _ in range(50)))
        near = [SocketReader(socket) for socket in await within(self.timeout_s, dials, "dial returns")]
        await until(lambda: len(server.accepted) == 50, self.timeout_s, "accept is called once per socket")
        far = [SocketReader(socket) for socket in server.accepted]
        for number, reader in enumerate(near):
            reader.socket.write(b"%d" % number)
        await until(lambda: all(reader.data for reader in far), self.timeout_s, "bytes arrive complete and in order")
        assert sorted(int(reader.data) for reader in far) == list(range(50)), "each connection carries its own data"
