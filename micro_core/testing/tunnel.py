"""The kit of the tunnel role: links of ordered lanes, what they hold, and the three endings.

Core's handshake, sessions and credit stand on these promises; that a link authenticates nobody is one of them.
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
from micro_core.testing.kit.comparing import assert_same_bytes
from micro_core.testing.kit.conformance import Conformance, needs
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.receivers import LinkReader
from micro_core.testing.kit.waiting import until, within

PIECE_BYTES = 16 * 1024
LANE_COUNTS = (1, len(Priority))


@dataclass
class Door:
    """A listener, and the links it accepted."""

    driver: LinkDriver
    patience_s: float
    accepted: list[Link] = field(default_factory=list)
    listener: Listener | None = None

    async def open(self, address: str) -> Door:
        self.listener = await within(
            self.patience_s, self.driver.listen(address, self.accepted.append), "listen returns"
        )
        return self

    @property
    def address(self) -> str:
        assert self.listener is not None
        return self.listener.address

    async def connect(self, dialler: LinkDriver, *, start: bool = True) -> tuple[LinkReader, LinkReader]:
        """Both ends of a new link; `start` is about the accepted one."""
        before = len(self.accepted)
        near = LinkReader(
            await within(self.patience_s, dialler.dial(self.address, timeout_s=self.patience_s), "dial returns")
        )
        await until(lambda: len(self.accepted) > before, self.patience_s, "accept is called for each link")
        return near, LinkReader(self.accepted[-1], start=start)


class TunnelConformance(Conformance[LinkDriver]):
    """Inherit it, supply `driver_under_test`."""

    role = Role.TUNNEL

    listen_at: ClassVar[str] = "127.0.0.1:0"
    """Where drivers listen: a free place on this machine."""

    large_bytes: ClassVar[int] = 2_000_000
    """What one lane must carry."""

    async def exercise(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        near.link.write(0, bytes(PIECE_BYTES))
        await self.received(far, 0, bytes(PIECE_BYTES))
        await near.link.close()
        await until(lambda: far.error is not None, self.patience_s, "the other end hears the end")

    async def door(self, driver: LinkDriver) -> Door:
        """A driver that listens."""
        return await Door(driver, self.patience_s).open(self.listen_at)

    async def lost(self, reader: LinkReader, seconds: float) -> None:
        """Wait for the end of a connection that broke."""
        await until(lambda: reader.error is not None, seconds, "link_lost is called when the link broke")

    async def pair(self, harness: Harness[LinkDriver], *, start: bool = True) -> tuple[LinkReader, LinkReader]:
        """Both ends of a link between two drivers."""
        here, there = await harness.open(), await harness.open()
        return await (await self.door(there)).connect(here, start=start)

    async def received(
        self, reader: LinkReader, lane: int, expected: bytes, clause: str = "each lane is in order, and whole"
    ) -> None:
        """Wait for what was written, and compare."""
        await until(lambda: len(reader.lanes[lane]) >= len(expected), self.patience_s, clause)
        assert_same_bytes(reader.lanes[lane], expected, f"{clause} (lane {lane})")
        assert reader.broken == []

    # ------------------------------------------------------------------------ lanes

    async def test_each_lane_is_in_order_and_whole_both_ways(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        assert near.link.lane_count == far.link.lane_count, "both ends have the same lanes"
        assert near.link.lane_count in LANE_COUNTS, f"a link has {LANE_COUNTS[0]} or {LANE_COUNTS[1]} lanes"
        sent = [random.Random(lane).randbytes(self.large_bytes // 4) for lane in range(near.link.lane_count)]  # noqa: S311
        for start in range(0, len(sent[0]), PIECE_BYTES):
            for lane, content in enumerate(sent):
                near.link.write(lane, content[start : start + PIECE_BYTES])
                far.link.write(lane, content[start : start + PIECE_BYTES])
            await asyncio.sleep(0)
        for reader in (near, far):
            for lane, content in enumerate(sent):
                await self.received(reader, lane, content)

    async def test_small_writes_stay_in_order(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        expected = b"".join(b"%d," % number for number in range(2_000))
        for number in range(2_000):
            near.link.write(0, b"%d," % number)
        await self.received(far, 0, expected)

    async def test_what_is_written_arrives_later_and_never_within_the_call(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        near.link.write(0, b"x")
        assert far.lanes[0] == b"", "write queues; receivers are called from the event loop"
        await self.received(far, 0, b"x")

    async def test_nothing_is_lost_that_comes_before_the_start(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        near, far = await door.connect(here, start=False)
        near.link.write(0, b"early")
        other, other_far = await door.connect(here)
        other.link.write(0, b"later")
        await self.received(other_far, 0, b"later")
        far.start()
        await self.received(far, 0, b"early", "nothing is lost that arrived before start")

    async def test_a_large_transfer_arrives(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        lane = near.link.lane_count - 1
        sent = random.Random(7).randbytes(self.large_bytes)  # noqa: S311 - a pattern, not a secret
        near.link.write(lane, sent)
        await self.received(far, lane, sent)

    @needs(capability="lanes")
    async def test_a_large_transfer_holds_up_no_other_lane(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        assert near.link.lane_count == len(Priority), "a link with `lanes` has one a priority"
        near.link.write(Priority.BULK, bytes(8 * self.large_bytes))
        await until(lambda: far.lanes[Priority.BULK], self.patience_s, "each lane carries")
        near.link.write(Priority.CONTROL, b"urgent")
        await self.received(far, Priority.CONTROL, b"urgent")
        assert len(far.lanes[Priority.BULK]) < 8 * self.large_bytes, "nobody waits behind a large transfer"

    # ----------------------------------------------------------------- backpressure

    async def test_a_link_says_what_it_holds_and_when_there_is_room_again(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        lane = near.link.lane_count - 1
        assert near.link.buffered_bytes(lane) == 0, "buffered_bytes is zero where nothing waits"
        size = 2 * self.large_bytes
        near.link.write(lane, bytes(size))
        assert near.link.buffered_bytes(lane) > 0, "buffered_bytes: bytes accepted and not yet handed to the network"
        await self.received(far, lane, bytes(size))
        await until(lambda: near.link.buffered_bytes(lane) == 0, self.patience_s, "buffered_bytes falls to zero")
        clause = "lane_writable is called once buffered_bytes has fallen below the low mark"
        await until(lambda: lane in near.writable, self.patience_s, clause)

    async def test_a_lane_that_never_was_full_is_not_told_of_room(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        near.link.write(0, b"little")
        await self.received(far, 0, b"little")
        assert near.writable == [], "lane_writable is called after the lane has been above its low mark"

    @needs(faults=("pause", "resume"))
    async def test_a_network_that_takes_nothing_fills_the_lane_and_loses_nothing(
        self, harness: Harness[LinkDriver]
    ) -> None:
        near, far = await self.pair(harness)
        lane, size = near.link.lane_count - 1, 8 * self.large_bytes
        await self.faults(harness).pause()
        near.link.write(lane, bytes(size))
        await asyncio.sleep(0.2)
        assert near.link.buffered_bytes(lane) > 0, "buffered_bytes counts what the network does not take"
        assert near.writable == [], "lane_writable is not called while the lane is full"
        await self.faults(harness).resume()
        await self.received(far, lane, bytes(size), "nothing is lost by a pause of the network")
        await until(lambda: lane in near.writable, self.patience_s, "lane_writable is called when there is room again")

    # --------------------------------------------------------------------- identity

    async def test_both_ends_share_a_channel_binding(self, harness: Harness[LinkDriver]) -> None:
        here, there, elsewhere = await harness.open(), await harness.open(), await harness.open()
        near, far = await (await self.door(there)).connect(here)
        assert near.link.channel_binding == far.link.channel_binding, "both ends share the channel binding"
        assert len(near.link.channel_binding) >= 32, "a channel binding has 32 bytes or more"
        other, _ = await (await self.door(elsewhere)).connect(here)
        assert other.link.channel_binding != near.link.channel_binding, "another listener has another channel binding"

    async def test_ends_know_where_they_are(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        assert door.address.startswith(f"{there.scheme}://"), "a listener's address has its scheme"
        for reader in await door.connect(here):
            assert reader.link.driver == harness.driver_under_test.driver.name, "a link names its driver"
            assert reader.link.local, "a link names its own end"
            assert reader.link.remote, "a link names the other end"
            rtt_s = reader.link.transport_rtt_s()
            assert rtt_s is None or 0 <= rtt_s < self.patience_s, "the round trip is in seconds, or None"

    async def test_an_address_may_be_dialled_without_its_scheme(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        bare = door.address.removeprefix(f"{there.scheme}://")
        near = LinkReader(
            await within(self.patience_s, here.dial(bare, timeout_s=self.patience_s), "dial takes host:port")
        )
        await until(lambda: door.accepted, self.patience_s, "accept is called for each link")
        LinkReader(door.accepted[0]).link.write(0, b"here")
        await self.received(near, 0, b"here")

    # ---------------------------------------------------------------------- endings

    async def test_each_end_hears_the_right_ending_once_after_the_last_bytes(
        self, harness: Harness[LinkDriver]
    ) -> None:
        near, far = await self.pair(harness)
        near.link.write(0, b"last words")
        await within(self.patience_s, asyncio.gather(near.link.close(), near.link.close()), "close returns")
        await within(self.patience_s, near.link.close(), "close is safe to call twice")
        await until(lambda: near.error is not None, self.patience_s, "link_lost is called when this end closed")
        await until(lambda: far.error is not None, self.patience_s, "link_lost is called when the other end closed")
        assert isinstance(near.error, Closed), f"the end that closed hears Closed: {near.error!r}"
        assert isinstance(far.error, Ended), f"the other end hears Ended: {far.error!r}"
        assert far.lanes[0] == b"last words", "close sends what is queued, then ends"
        near.link.write(0, b"ignored")
        far.link.write(0, b"ignored")
        await asyncio.sleep(0.02)
        assert near.broken == far.broken == []

    async def test_an_end_that_comes_before_the_start_is_told_after_what_was_written(
        self, harness: Harness[LinkDriver]
    ) -> None:
        near, far = await self.pair(harness, start=False)
        near.link.write(0, b"early")
        closing = asyncio.create_task(near.link.close())
        await asyncio.sleep(0)
        far.start()
        await until(lambda: far.error is not None, self.patience_s, "link_lost is called when the other end closed")
        await within(self.patience_s, closing, "close returns")
        assert far.lanes[0] == b"early", "nothing is lost that arrived before start"
        assert isinstance(far.error, Ended), f"the other end hears Ended: {far.error!r}"

    @needs(faults=("kill",))
    async def test_a_link_that_breaks_is_told_as_lost_at_both_ends(self, harness: Harness[LinkDriver]) -> None:
        near, far = await self.pair(harness)
        await self.faults(harness).kill()
        for reader in (near, far):
            reader.link.write(0, b"nobody")
        for reader in (near, far):
            await self.lost(reader, self.longest_silence_s)
            assert isinstance(reader.error, LinkLost), f"a link that broke is LinkLost: {reader.error!r}"

    longest_silence_s: ClassVar[float] = 30.0
    """How long a driver may take to give up a path that is silent."""

    async def test_a_driver_closes_what_it_dialled_and_what_it_accepted(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        near, far = await door.connect(here)
        await harness.close(there)
        await until(lambda: far.error is not None, self.patience_s, "close ends every link made here")
        await until(lambda: near.error is not None, self.patience_s, "the other end hears of it")
        with pytest.raises(Unreachable):
            await within(self.patience_s, here.dial(door.address, timeout_s=1.0), "dial fails within timeout_s")

    # ------------------------------------------------------------- dialling, listening

    async def test_a_dial_to_nobody_is_unreachable_and_says_why(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        assert door.listener is not None
        await within(self.patience_s, door.listener.close(), "close of a listener returns")
        with pytest.raises(Unreachable) as caught:
            await within(self.patience_s, here.dial(door.address, timeout_s=1.0), "dial fails within timeout_s")
        assert caught.value.detail.strip(), "Unreachable tells why"

    async def test_what_is_no_address_is_an_error_and_no_crash(self, harness: Harness[LinkDriver]) -> None:
        here = await harness.open()
        for address in (f"{here.scheme}://", f"{here.scheme}://a\0b:80", "x" * 5_000):
            with pytest.raises(MicroError):
                await within(self.patience_s, here.dial(address, timeout_s=2.0), "dial fails within timeout_s")

    async def test_a_place_is_listened_on_once_and_free_again_after(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        with pytest.raises(Conflict):
            await here.listen(door.address, lambda _: None)
        assert door.listener is not None
        await within(self.patience_s, door.listener.close(), "close of a listener returns")
        again = await Door(here, self.patience_s).open(door.address)
        near, far = await again.connect(there)
        near.link.write(0, b"here")
        await self.received(far, 0, b"here")

    async def test_many_diallers_at_once_are_all_accepted(self, harness: Harness[LinkDriver]) -> None:
        here, there = await harness.open(), await harness.open()
        door = await self.door(there)
        dials = asyncio.gather(*(here.dial(door.address, timeout_s=self.patience_s) for _ in range(10)))
        near = [LinkReader(link) for link in await within(self.patience_s, dials, "dial returns")]
        await until(lambda: len(door.accepted) == 10, self.patience_s, "accept is called for each link")
        far = [LinkReader(link) for link in door.accepted]
        for number, reader in enumerate(near):
            reader.link.write(0, b"%d" % number)
        await until(lambda: all(reader.lanes[0] for reader in far), self.patience_s, "bytes arrive")
        assert sorted(int(reader.lanes[0]) for reader in far) == list(range(10)), "each link carries its own bytes"
