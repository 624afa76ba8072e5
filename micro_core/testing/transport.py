"""The kit of the transport role: sockets over whatever the driver speaks, backpressure, and the three endings."""

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
from micro_core.testing.kit.comparing import assert_same_bytes
from micro_core.testing.kit.conformance import Conformance, needs
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.receivers import SocketReader
from micro_core.testing.kit.waiting import until, within

CHUNK_BYTES = 64 * 1024


@dataclass
class Door:
    """A listener, and what it accepted."""

    transport: Transport
    patience_s: float
    accepted: list[Socket] = field(default_factory=list)
    listener: Listener | None = None

    async def open(self, address: str = "") -> Door:
        self.listener = await within(
            self.patience_s, self.transport.listen(address, self.accepted.append), "listen returns"
        )
        return self

    @property
    def address(self) -> str:
        assert self.listener is not None
        return self.listener.address

    async def connect(self, dialler: Transport, *, start: bool = True) -> tuple[SocketReader, SocketReader]:
        """Both ends of a new connection; `start` is about the accepted one."""
        before = len(self.accepted)
        near = await within(self.patience_s, dialler.dial(self.address, timeout_s=self.patience_s), "dial returns")
        await until(lambda: len(self.accepted) > before, self.patience_s, "accept is called once a socket")
        return SocketReader(near), SocketReader(self.accepted[-1], start=start)


class TransportConformance(Conformance[Transport]):
    """Inherit it, supply `driver_under_test`."""

    role = Role.TRANSPORT

    large_bytes: ClassVar[int] = 8_000_000
    """What a connection must carry."""

    most_buffered_bytes: ClassVar[int] = 64 * 1024 * 1024
    """What may be written against a reader that does not read, before the writer is told to pause."""

    async def exercise(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        near, far = await door.connect(here)
        near.socket.write(bytes(CHUNK_BYTES))
        await self.received(far, bytes(CHUNK_BYTES))
        await near.socket.close()
        await until(lambda: far.error is not None, self.patience_s, "the other end hears the end")

    async def received(
        self, reader: SocketReader, expected: bytes, clause: str = "bytes arrive whole and in order"
    ) -> None:
        """Wait for what was written, and compare."""
        await until(lambda: len(reader.data) >= len(expected), self.patience_s, clause)
        assert_same_bytes(reader.data, expected, clause)
        assert reader.broken == []

    async def lost(self, reader: SocketReader, seconds: float) -> None:
        """Wait for the end of a connection that broke."""
        await until(lambda: reader.error is not None, seconds, "socket_lost is called when the connection broke")

    async def pair(self, harness: Harness[Transport], *, start: bool = True) -> tuple[SocketReader, SocketReader]:
        """Both ends of a connection between two transports."""
        here, there = await harness.open(), await harness.open()
        return await (await Door(there, self.patience_s).open()).connect(here, start=start)

    # ------------------------------------------------------------------------ bytes

    async def test_bytes_arrive_whole_and_in_order_both_ways(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        sent = random.Random(1).randbytes(self.large_bytes)  # noqa: S311 - a pattern, not a secret
        for start in range(0, len(sent), CHUNK_BYTES):
            near.socket.write(sent[start : start + CHUNK_BYTES])
            far.socket.write(sent[start : start + CHUNK_BYTES])
            await asyncio.sleep(0)
        await self.received(far, sent)
        await self.received(near, sent)

    async def test_small_writes_arrive_in_order(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        expected = b"".join(b"%d," % number for number in range(2_000))
        for number in range(2_000):
            near.socket.write(b"%d," % number)
        await self.received(far, expected)

    async def test_nothing_is_lost_that_comes_before_the_start(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        near, far = await door.connect(here, start=False)
        near.socket.write(b"early")
        # What went over another connection since, has been behind it.
        other, other_far = await door.connect(here)
        other.socket.write(b"later")
        await self.received(other_far, b"later")
        far.start()
        await self.received(far, b"early", "nothing is lost that arrived before start")

    async def test_ends_know_where_they_are(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        assert door.address.startswith(f"{there.scheme}://"), "a listener's address has its scheme"
        near, far = await door.connect(here)
        for reader in (near, far):
            assert reader.socket.local, "a socket names its own end"
            assert reader.socket.remote, "a socket names the other end"

    async def test_an_address_may_be_dialled_without_its_scheme(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        bare = door.address.removeprefix(f"{there.scheme}://")
        socket = await within(self.patience_s, here.dial(bare, timeout_s=self.patience_s), "dial takes host:port")
        reader = SocketReader(socket)
        await until(lambda: door.accepted, self.patience_s, "accept is called once a socket")
        SocketReader(door.accepted[0]).socket.write(b"here")
        await self.received(reader, b"here")

    # ----------------------------------------------------------------- backpressure

    async def test_a_reader_that_pauses_is_delivered_nothing_and_its_writer_pauses(
        self, harness: Harness[Transport]
    ) -> None:
        near, far = await self.pair(harness)
        far.socket.pause_reading()
        far.socket.pause_reading()
        heard = len(far.data)
        written = 0
        while not near.is_paused and written < self.most_buffered_bytes:
            near.socket.write(bytes(CHUNK_BYTES))
            written += CHUNK_BYTES
            await asyncio.sleep(0)
        assert near.is_paused, f"a slow peer pauses the writer: {written} bytes were taken without pause_writing"
        # What was on its way to the receiver when it paused may still come, and no more.
        assert len(far.data) - heard <= CHUNK_BYTES, "pause_reading: deliver nothing until resume_reading"
        far.socket.resume_reading()
        await until(lambda: len(far.data) == written, self.patience_s, "what was written arrives after resume_reading")
        await until(lambda: not near.is_paused, self.patience_s, "resume_writing is called when the buffer has emptied")

    async def test_reading_that_is_paused_before_the_start_stays_paused(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        near, far = await door.connect(here, start=False)
        far.socket.pause_reading()
        far.start()
        near.socket.write(b"wait")
        other, other_far = await door.connect(here)
        other.socket.write(b"later")
        await self.received(other_far, b"later")
        assert far.data == b"", "pause_reading: deliver nothing until resume_reading"
        far.socket.resume_reading()
        await self.received(far, b"wait")

    # ---------------------------------------------------------------------- endings

    async def test_each_end_hears_the_right_ending_once_after_the_last_bytes(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        near.socket.write(b"last words")
        await within(self.patience_s, near.socket.close(), "close returns")
        await within(self.patience_s, near.socket.close(), "close is safe to call twice")
        await until(lambda: near.error is not None, self.patience_s, "socket_lost is called when this end closed")
        await until(lambda: far.error is not None, self.patience_s, "socket_lost is called when the other end closed")
        assert isinstance(near.error, Closed), f"the end that closed hears Closed: {near.error!r}"
        assert isinstance(far.error, Ended), f"the other end hears Ended: {far.error!r}"
        assert far.data == b"last words", "close sends what is queued, then ends"
        near.socket.write(b"ignored")
        far.socket.write(b"ignored")
        await asyncio.sleep(0.02)
        assert near.broken == far.broken == []

    async def test_an_end_that_comes_before_the_start_is_told_after_what_was_written(
        self, harness: Harness[Transport]
    ) -> None:
        near, far = await self.pair(harness, start=False)
        near.socket.write(b"early")
        closing = asyncio.create_task(near.socket.close())
        await asyncio.sleep(0)
        far.start()
        await until(lambda: far.error is not None, self.patience_s, "socket_lost is called when the other end closed")
        await within(self.patience_s, closing, "close returns")
        assert far.data == b"early", "nothing is lost that arrived before start"
        assert isinstance(far.error, Ended), f"the other end hears Ended: {far.error!r}"

    async def test_both_ends_may_close_at_once(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        closing = asyncio.gather(near.socket.close(), far.socket.close(), near.socket.close())
        await within(self.patience_s, closing, "close returns")
        await until(lambda: near.error and far.error, self.patience_s, "socket_lost is called at both ends")
        for reader in (near, far):
            assert isinstance(reader.error, Closed | Ended), f"Closed or Ended, and no loss: {reader.error!r}"
            assert reader.broken == []

    async def test_a_close_waits_for_a_clogged_peer_a_second_at_most(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        far.socket.pause_reading()
        near.socket.write(bytes(self.large_bytes))
        await within(3.0, near.socket.close(), "close sends what is queued for at most one second")
        await until(lambda: near.error is not None, self.patience_s, "socket_lost is called when this end closed")
        assert isinstance(near.error, Closed), f"the end that closed hears Closed: {near.error!r}"

    @needs(faults=("kill",))
    async def test_a_connection_that_breaks_is_told_as_lost_at_both_ends(self, harness: Harness[Transport]) -> None:
        near, far = await self.pair(harness)
        await self.faults(harness).kill()
        near.socket.write(b"nobody")
        far.socket.write(b"nobody")
        for reader in (near, far):
            await self.lost(reader, self.patience_s)
            assert isinstance(reader.error, LinkLost), f"a connection that broke is LinkLost: {reader.error!r}"

    # ------------------------------------------------------------- dialling, listening

    async def test_a_dial_to_nobody_is_unreachable_and_says_why(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        assert door.listener is not None
        await within(self.patience_s, door.listener.close(), "close of a listener returns")
        with pytest.raises(Unreachable) as caught:
            await within(self.patience_s, here.dial(door.address, timeout_s=2.0), "dial fails within timeout_s")
        assert caught.value.detail.strip(), "Unreachable tells why"

    async def test_what_is_no_address_is_an_error_and_no_crash(self, harness: Harness[Transport]) -> None:
        here = await harness.open()
        for address in (f"{here.scheme}://", f"{here.scheme}://a\0b:80", "x" * 5_000):
            with pytest.raises(MicroError):
                await within(self.patience_s, here.dial(address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_a_place_is_listened_on_once_and_free_again_after(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        for transport in (here, there):
            with pytest.raises(Conflict):
                await transport.listen(door.address, lambda _: None)
        assert door.listener is not None
        await within(self.patience_s, door.listener.close(), "close of a listener returns")
        again = await Door(here, self.patience_s).open(door.address)
        assert again.address == door.address, "a place is free again once its listener is closed"
        near, far = await again.connect(there)
        near.socket.write(b"here")
        await self.received(far, b"here")

    async def test_sockets_outlive_the_listener_that_accepted_them(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        near, far = await door.connect(here)
        assert door.listener is not None
        await within(self.patience_s, door.listener.close(), "close of a listener returns")
        near.socket.write(b"still")
        await self.received(far, b"still", "sockets that were accepted live on")

    async def test_a_transport_closes_all_it_made(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        near, far = await door.connect(here)
        await harness.close(there)
        await until(lambda: far.error is not None, self.patience_s, "close ends every socket made here")
        await until(lambda: near.error is not None, self.patience_s, "the other end hears of it")
        with pytest.raises(Unreachable):
            await within(self.patience_s, here.dial(door.address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_many_connections_at_once(self, harness: Harness[Transport]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await Door(there, self.patience_s).open()
        dials = asyncio.gather(*(here.dial(door.address, timeout_s=self.patience_s) for _ in range(50)))
        near = [SocketReader(socket) for socket in await within(self.patience_s, dials, "dial returns")]
        await until(lambda: len(door.accepted) == 50, self.patience_s, "accept is called once a socket")
        far = [SocketReader(socket) for socket in door.accepted]
        for number, reader in enumerate(near):
            reader.socket.write(b"%d" % number)
        await until(lambda: all(reader.data for reader in far), self.patience_s, "bytes arrive")
        assert sorted(int(reader.data) for reader in far) == list(range(50)), "each connection carries its own bytes"
