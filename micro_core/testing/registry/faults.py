"""Parts of the registry's kit: what must hold while the back end is hurt. They need a fault handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from micro_core.contract import Instance, Registry, Unreachable
from micro_core.testing.kit.conformance import needs
from micro_core.testing.kit.faults import away, beating, slowed
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within
from micro_core.testing.kit.watch_recorder import Follower
from micro_core.testing.registry.support import GREETER, LONG_S, OTHER, RegistryKit, by_id, renewed

LATER = replace(GREETER, id="greeter-later")


class RegistryFaultParts(RegistryKit):
    """Nothing hangs, nothing is lost that need not be, and everything is well again when the back end is."""

    pause_s: ClassVar[float] = 2.0
    """How long the back end is paused."""

    async def stands_again(self, registry: Registry, *expected: Instance) -> None:
        """Wait until the driver has found its back end again, in its own time, and these records stand."""

        async def try_it() -> bool:
            try:
                await registry.instances()
            except Unreachable:
                return False
            return True

        await until(try_it, self.patience_s, "a back end that is there again is found again")
        await self.stands(registry, *expected)

    async def accepted(self, registry: Registry) -> None:
        """Register another record, as often as it takes until the back end is found again."""

        async def try_it() -> bool:
            try:
                await registry.register(LATER, lease_s=LONG_S)
            except Unreachable:
                return False
            return True

        await until(try_it, self.patience_s, "a back end that is there again is found again")

    @needs(faults=("kill", "restart"))
    async def test_a_back_end_that_is_away_is_told_in_time(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.register(GREETER, lease_s=LONG_S)
        async with away(self.faults(harness)):
            calls: list[Awaitable[Any]] = [registry.register(OTHER, lease_s=LONG_S), registry.instances()]
            for call in calls:
                with pytest.raises(Unreachable) as caught:
                    await within(self.patience_s, call, "Unreachable is raised in time when the back end is away")
                assert caught.value.detail.strip(), "Unreachable tells why"

    @needs(faults=("kill", "restart"))
    async def test_watches_outlive_a_back_end_that_was_away(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower, renewed(writer, GREETER, max(self.lease_s, 1.0)):
            await follower.heard(lambda: follower.standing, "watchers hear of a new record")
            async with away(self.faults(harness)):
                await asyncio.sleep(0.2)
            await self.accepted(writer)
            clause = "a watch goes on when the back end is there again, and shows what stands"
            await follower.heard(lambda: set(follower.standing) == {GREETER.id, LATER.id}, clause)
            await self.stands_again(reader, GREETER, LATER)

    @needs(faults=("kill", "wipe"))
    async def test_a_back_end_that_comes_back_empty_is_told_again_by_the_owners(
        self, harness: Harness[Registry]
    ) -> None:
        writer, reader, gone = await harness.open(), await harness.open(), await harness.open()
        async with self.following(reader) as follower, renewed(writer, GREETER, max(self.lease_s, 1.0)):
            # Its owner renews no more, and its lease is not long: after the loss of all data it must not stay.
            await gone.register(OTHER, lease_s=max(2 * self.lease_s, 2.0))
            await follower.heard(lambda: len(follower.standing) == 2, "watchers hear of a new record")
            async with away(self.faults(harness), empty=True):
                await asyncio.sleep(0.1)
            await self.accepted(writer)
            await self.stands_again(reader, GREETER, LATER)
            clause = "watchers learn what stands after the back end came back empty"
            await follower.heard(lambda: by_id(follower.standing.values()) == by_id([GREETER, LATER]), clause)

    @needs(capability="persistent", faults=("kill", "restart"))
    async def test_a_record_outlives_a_restart_of_the_back_end(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_S)
        await self.stands(reader, GREETER)
        async with away(self.faults(harness)):
            await asyncio.sleep(0)

        async def is_there() -> bool:
            try:
                return GREETER in await reader.instances()
            except Unreachable:
                return False

        await until(is_there, self.patience_s, "a record outlives a restart of the back end while its lease lasts")

    @needs(faults=("kill", "restart"))
    async def test_closing_does_not_wait_for_a_back_end_that_is_away(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.register(GREETER, lease_s=self.lease_s)
        follower = await Follower(registry, None, self.patience_s).start()
        async with away(self.faults(harness)):
            await within(self.patience_s, harness.close(registry), "close returns though the back end is away")
            await follower.ended()

    @needs(faults=("pause", "resume"))
    async def test_a_back_end_that_stands_still_stops_nobody_s_loop(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            await writer.register(GREETER, lease_s=LONG_S)
            await follower.heard(lambda: follower.standing, "watchers hear of a new record")
            faults = self.faults(harness)
            await faults.pause()
            try:
                async with beating(
                    self.pause_s / 2, "the event loop is never blocked, least of all by a back end that is still"
                ):
                    calls = [asyncio.create_task(self.accepted_or_unreachable(writer)) for _ in range(5)]
                    await asyncio.sleep(self.pause_s)
            finally:
                await faults.resume()
            await within(self.patience_s, asyncio.gather(*calls), "a call ends, well or with Unreachable")
            await self.accepted(writer)
            await self.stands_again(reader, GREETER, OTHER, LATER)
            await follower.heard(
                lambda: LATER.id in follower.standing, "a watch goes on after the back end stood still"
            )

    async def accepted_or_unreachable(self, registry: Registry) -> None:
        """Register a record until it stands: each try ends, well or with Unreachable."""
        while True:
            try:
                await registry.register(OTHER, lease_s=LONG_S)
            except Unreachable:
                await asyncio.sleep(0.05)
            else:
                return

    @needs(faults=("pause", "resume"))
    async def test_a_slow_back_end_only_makes_things_slow(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        instances = [replace(GREETER, id=f"greeter-{number}") for number in range(10)]
        async with self.following(reader) as follower, slowed(self.faults(harness)):
            for instance in instances:
                await within(
                    self.patience_s, writer.register(instance, lease_s=LONG_S), "register ends on a slow back end"
                )
            await self.stands(reader, *instances)
            clause = "watchers learn what stands on a slow back end"
            await follower.heard(lambda: by_id(follower.standing.values()) == by_id(instances), clause)

    @needs(faults=("garbage",))
    async def test_garbage_hides_no_record_and_stops_no_watch(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_S)
        await self.faults(harness).garbage(harness.context())
        newcomer = await harness.open()
        await self.stands(newcomer, GREETER)
        async with self.following(newcomer) as fresh, self.following(reader) as follower:
            await self.faults(harness).garbage(harness.context())
            await writer.register(OTHER, lease_s=LONG_S)
            for each in (fresh, follower):
                await self.shows(each, GREETER, OTHER)
            await self.stands(reader, GREETER, OTHER)
            assert harness.counted(newcomer) or harness.counted(reader), "what is dropped is counted (context.counters)"
