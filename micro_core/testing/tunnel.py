"""The kit of the tunnel role: links with ordered lanes, their buffers, and the three ways in which a link ends.

The handshake, sessions and flow control of core depend on these guarantees. Links do not authenticate their peers.
"""

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
    Link,
    LinkDriver,
    LinkLost,
    Listener,
    MicroError,
    Priority,
    Role,
    Unreachable,
)
from micro_core.testing.kit.comparison import assert_same_bytes
from micro_core.testing.kit.conformance import Conformance, requires
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.receivers import LinkReader
from micro_core.testing.kit.waiting import until, within

CHUNK_BYTES = 16 * 1024
LANE_COUNTS = (1, len(Priority))


@dataclass
class AcceptingServer:
    """A link driver that listens, with the links that it accepted."""

    driver: LinkDriver
    timeout_s: float
    accepted: list[Link] = field(default_factory=list)
    listener: Listener | None = None

    async def open(self, address: str) -> AcceptingServer:
        """Listen at `address`, and return this object."""
        self.listener = await within(
            self.timeout_s, self.driver.listen(address, self.accepted.append), "listen returns"
        )
        return self

    @property
    def address(self) -> str:
        """The address of the listener."""
        assert self.listener is not None
        return self.listener.address

    async def connect(self, dialler: LinkDriver, *, start: bool = True) -> tuple[LinkReader, LinkReader]:
        """Connect and return both ends, the dialling end first. If `start` is false, the accepted end does not read yet."""
        before = len(self.accepted)
        near = LinkReader(
            await within(self.timeout_s, dialler.dial(self.address, timeout_s=self.timeout_s), "dial returns")
        )
        await until(lambda: len(self.accepted) > before, self.timeout_s, "accept is called for each link")
        return near, LinkReader(self.accepted[-1], start=start)


class TunnelConformance(Conformance[LinkDriver]):
    """The kit of the tunnel role. Inherit it and supply the fixture `driver_under_test`."""

    role = Role.TUNNEL

    listen_address: ClassVar[str] = "127.0.0.1:0"
    """The address at which drivers listen: any free port of this machine."""

    large_bytes: ClassVar[int] = 2_000_000
    """Number of bytes that one lane must transfer."""

    async def exercise(self, harness: Harness[LinkDriver]) -> None:
        """Link two drivers, transfer data and close the link."""
        near, far = await self.connect_pair(harness)
        near.link.write(0, bytes(CHUNK_BYTES))
        await self.expect_bytes(far, 0, bytes(CHUNK_BYTES))
        await near.link.close()
        await until(
            lambda: far.error is not None, self.timeout_s, "link_lost is called at the end whose peer closed the link"
        )

    async def listening(self, driver: LinkDriver) -> AcceptingServer:
        """Let a driver listen."""
        return await AcceptingServer(driver, self.timeout_s).open(self.listen_address)

    async def expect_lost(self, reader: LinkReader, seconds: float) -> None:
        """Wait for the report of a broken link."""
        await until(lambda: reader.error is not None, seconds, "link_lost is called when a link breaks")

    async def connect_pair(self, harness: Harness[LinkDriver], *, start: bool = True) -> tuple[LinkReader, LinkReader]:
        """Link two drivers and return both ends."""
        here, there = await harness.open(), await harness.open()
        return await (await self.listening(there)).connect(here, start=start)

    async def expect_bytes(
        self,
        reader: LinkReader,
        lane: int,
        expected: bytes,
        clause: str = "the bytes of a lane arrive complete and in order",
    ) -> None:
        """Wait for the expected bytes and compare."""
        await until(lambda: len(reader.lanes[lane]) >= len(expected), self.timeout_s, clause)
        assert_same_bytes(reader.lanes[lane], expected, f"{clause} (lane {lane})")
        assert reader.violations == []

    # ------------------------------------------------------------------------ lanes

    async def test_lanes_are_complete_and_in_order_both_ways(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        assert near.link.lane_count == far.link.lane_count, "both ends have the same number of lanes"
        assert near.link.lane_count in LANE_COUNTS, f"a link has {LANE_COUNTS[0]} or {LANE_COUNTS[1]} lanes"
        sent = [random.Random(lane).randbytes(self.large_bytes // 4) for lane in range(near.link.lane_count)]  # noqa: S311
        for start in range(0, len(sent[0]), CHUNK_BYTES):
            for lane, content in enumerate(sent):
                near.link.write(lane, content[start : start + CHUNK_BYTES])
                far.link.write(lane, content[start : start + CHUNK_BYTES])
            await asyncio.sleep(0)
        for reader in (near, far):
            for lane, content in enumerate(sent):
                await self.expect_bytes(reader, lane, content)

    async def test_small_writes_arrive_in_order(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        expected = b"".join(b"%d," % number for number in range(2_000))
        for number in range(2_000):
            near.link.write(0, b"%d," % number)
        await self.expect_bytes(far, 0, expected)

    async def test_data_is_never_delivered_within_write(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        near.link.write(0, b"x")
        assert far.lanes[0] == b"", "write only queues data; receivers are called later from the event loop"
        await self.expect_bytes(far, 0, b"x")

    async def test_data_received_before_start_is_delivered(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        near, far = await server.connect(here, start=False)
        near.link.write(0, b"early")
        other, other_far = await server.connect(here)
        other.link.write(0, b"later")
        await self.expect_bytes(other_far, 0, b"later")
        far.start()
        await self.expect_bytes(far, 0, b"early", "data received before start is delivered")

    async def test_large_transfer_arrives(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        lane = near.link.lane_count - 1
        sent = random.Random(7).randbytes(self.large_bytes)  # noqa: S311 - test data, not a secret
        near.link.write(lane, sent)
        await self.expect_bytes(far, lane, sent)

    @requires(capability="lanes")
    async def test_large_transfer_does_not_block_other_lanes(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        assert near.link.lane_count == len(Priority), "a link of a driver with `lanes` has one lane per priority"
        near.link.write(Priority.BULK, bytes(8 * self.large_bytes))
        await until(lambda: far.lanes[Priority.BULK], self.timeout_s, "data arrives on each lane")
        near.link.write(Priority.CONTROL, b"urgent")
        await self.expect_bytes(far, Priority.CONTROL, b"urgent")
        assert len(far.lanes[Priority.BULK]) < 8 * self.large_bytes, (
            "a lane does not wait for a large transfer on another lane"
        )

    # ----------------------------------------------------------------- backpressure

    async def test_link_reports_buffered_bytes_and_writability(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        lane = near.link.lane_count - 1
        assert near.link.buffered_bytes(lane) == 0, "buffered_bytes is zero if no data is queued"
        size = 2 * self.large_bytes
        near.link.write(lane, bytes(size))
        assert near.link.buffered_bytes(lane) > 0, (
            "buffered_bytes counts accepted bytes that are not yet handed to the network"
        )
        await self.expect_bytes(far, lane, bytes(size))
        await until(
            lambda: near.link.buffered_bytes(lane) == 0,
            self.timeout_s,
            "buffered_bytes becomes zero when all data is sent",
        )
        clause = "lane_writable is called when buffered_bytes falls below the low mark"
        await until(lambda: lane in near.writable, self.timeout_s, clause)

    async def test_lane_below_its_low_mark_gets_no_writable_event(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        near.link.write(0, b"little")
        await self.expect_bytes(far, 0, b"little")
        assert near.writable == [], "lane_writable is only called after buffered_bytes was above the low mark"

    @requires(faults=("pause", "resume"))
    async def test_paused_network_fills_the_lane_and_loses_nothing(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        lane, size = near.link.lane_count - 1, 8 * self.large_bytes
        await self.faults(harness).pause()
        near.link.write(lane, bytes(size))
        await asyncio.sleep(0.2)
        assert near.link.buffered_bytes(lane) > 0, "buffered_bytes counts the bytes that the network does not accept"
        assert near.writable == [], "lane_writable is not called while the lane is full"
        await self.faults(harness).resume()
        await self.expect_bytes(far, lane, bytes(size), "no data is lost by a pause of the network")
        await until(
            lambda: lane in near.writable, self.timeout_s, "lane_writable is called when the network accepts data again"
        )

    # --------------------------------------------------------------------- identity

    async def test_both_ends_share_a_channel_binding(self, harness: Harness[LinkDriver]) -> None:
        here, there, elsewhere = await harness.open(), await harness.open(), await harness.open()
        near, far = await (await self.listening(there)).connect(here)
        assert near.link.channel_binding == far.link.channel_binding, "both ends have the same channel binding"
        assert len(near.link.channel_binding) >= 32, "a channel binding has at least 32 bytes"
        other, _ = await (await self.listening(elsewhere)).connect(here)
        assert other.link.channel_binding != near.link.channel_binding, "listeners have different channel bindings"

    async def test_links_have_a_driver_and_addresses(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        assert server.address.startswith(f"{there.scheme}://"), "the address of a listener has a scheme"
        for reader in await server.connect(here):
            assert reader.link.driver == harness.driver_under_test.driver.name, "a link has the name of its driver"
            assert reader.link.local, "a link has the address of its own end in local"
            assert reader.link.remote, "a link has the address of the other end in remote"
            rtt_s = reader.link.transport_rtt_s()
            assert rtt_s is None or 0 <= rtt_s < self.timeout_s, (
                "transport_rtt_s returns a plausible number of seconds or None"
            )

    async def test_address_without_scheme_can_be_dialled(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        without_scheme = server.address.removeprefix(f"{there.scheme}://")
        near = LinkReader(
            await within(
                self.timeout_s,
                here.dial(without_scheme, timeout_s=self.timeout_s),
                "dial accepts an address without scheme",
            )
        )
        await until(lambda: server.accepted, self.timeout_s, "accept is called for each link")
        LinkReader(server.accepted[0]).link.write(0, b"here")
        await self.expect_bytes(near, 0, b"here")

    # --------------------------------------------------------------------- closing

    async def test_close_is_reported_once_at_both_ends_after_the_data(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        near.link.write(0, b"final data")
        await within(self.timeout_s, asyncio.gather(near.link.close(), near.link.close()), "close returns")
        await within(self.timeout_s, near.link.close(), "close is safe to call twice")
        await until(
            lambda: near.error is not None, self.timeout_s, "link_lost is called at the end that closed the link"
        )
        await until(
            lambda: far.error is not None, self.timeout_s, "link_lost is called at the end whose peer closed the link"
        )
        assert isinstance(near.error, Closed), f"the end that closes reports Closed: {near.error!r}"
        assert isinstance(far.error, Ended), f"the end whose peer closes reports Ended: {far.error!r}"
        assert far.lanes[0] == b"final data", "close sends queued data before it closes the connection"
        near.link.write(0, b"ignored")
        far.link.write(0, b"ignored")
        await asyncio.sleep(0.02)
        assert near.violations == far.violations == []

    async def test_close_before_start_is_reported_after_the_data(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness, start=False)
        near.link.write(0, b"early")
        closing = asyncio.create_task(near.link.close())
        await asyncio.sleep(0)
        far.start()
        await until(
            lambda: far.error is not None, self.timeout_s, "link_lost is called at the end whose peer closed the link"
        )
        await within(self.timeout_s, closing, "close returns")
        assert far.lanes[0] == b"early", "data received before start is delivered"
        assert isinstance(far.error, Ended), f"the end whose peer closes reports Ended: {far.error!r}"

    @requires(faults=("kill",))
    async def test_broken_link_is_reported_as_link_lost_at_both_ends(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.connect_pair(harness)
        await self.faults(harness).kill()
        for reader in (near, far):
            reader.link.write(0, b"lost")
        for reader in (near, far):
            await self.expect_lost(reader, self.max_silence_s)
            assert isinstance(reader.error, LinkLost), f"both ends of a broken link report LinkLost: {reader.error!r}"

    max_silence_s: ClassVar[float] = 30.0
    """Seconds after which a driver must report a link as lost if it receives no data from the peer."""

    async def test_driver_close_closes_all_links_and_listeners(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        near, far = await server.connect(here)
        await harness.close(there)
        await until(lambda: far.error is not None, self.timeout_s, "close closes all links of the driver")
        await until(lambda: near.error is not None, self.timeout_s, "the peers of a closed driver notice the end")
        with pytest.raises(Unreachable):
            await within(self.timeout_s, here.dial(server.address, timeout_s=1.0), "dial fails within timeout_s")

    # ---------------------------------------------------------- dialling and listening

    async def test_dial_without_a_listener_raises_unreachable(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        assert server.listener is not None
        await within(self.timeout_s, server.listener.close(), "close of a listener returns")
        with pytest.raises(Unreachable) as caught:
            await within(self.timeout_s, here.dial(server.address, timeout_s=1.0), "dial fails within timeout_s")
        assert caught.value.detail.strip(), "Unreachable contains the reason"

    async def test_invalid_address_raises_micro_error(self, harness: Harness[LinkDriver]) -> None:
        here = await harness.open()
        for address in (f"{here.scheme}://", f"{here.scheme}://a\0b:80", "x" * 5_000):
            with pytest.raises(MicroError):
                await within(self.timeout_s, here.dial(address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_address_has_one_listener_and_is_free_after_close(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        with pytest.raises(Conflict):
            await here.listen(server.address, lambda _: None)
        assert server.listener is not None
        await within(self.timeout_s, server.listener.close(), "close of a listener returns")
        again = await AcceptingServer(here, self.timeout_s).open(server.address)
        near, far = await again.connect(there)
        near.link.write(0, b"here")
        await self.expect_bytes(far, 0, b"here")

    async def test_concurrent_dials_are_all_accepted(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        server = await self.listening(there)
        dials = asyncio.gather(*(here.dial(server.address, timeout_s=self.timeout_s) for _ in range(10)))
        near = [LinkReader(link) for link in await within(self.timeout_s, dials, "dial returns")]
        await until(lambda: len(server.accepted) == 10, self.timeout_s, "accept is called for each link")
        far = [LinkReader(link) for link in server.accepted]
        for number, reader in enumerate(near):
            reader.link.write(0, b"%d" % number)
        await until(
            lambda: all(reader.lanes[0] for reader in far), self.timeout_s, "bytes arrive complete and in order"
        )
        assert sorted(int(reader.lanes[0]) for reader in far) == list(range(10)), "each link carries its own data"
