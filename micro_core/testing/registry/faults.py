"""Checks of the registry kit that inject faults into the back end. They need a fault handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from micro_core.contract import Instance, Registry, Unreachable
from micro_core.testing.kit.conformance import requires
from micro_core.testing.kit.faults import back_end_killed, back_end_slowed, loop_not_blocked
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import until, within
from micro_core.testing.kit.watch_recorder import WatchRecorder
from micro_core.testing.registry.support import GREETER, LONG_LEASE_S, OTHER, RegistryKit, by_id, renewed

LATE_GREETER = replace(GREETER, id="greeter-later")


class RegistryFaultChecks(RegistryKit):
    """Checks that calls end in time during a fault, and that records and watches recover after it."""

    pause_s: ClassVar[float] = 2.0
    """Seconds for which the back end is paused."""

    async def expect_instances_after_recovery(self, registry: Registry, *expected: Instance) -> None:
        """Wait until the driver has reconnected to its back end and `instances` returns exactly these records."""

        async def is_connected() -> bool:
            try:
                await registry.instances()
            except Unreachable:
                return False
            return True

        await until(is_connected, self.timeout_s, "the driver reconnects to an available back end")
        await self.expect_instances(registry, *expected)

    async def register_until_accepted(self, registry: Registry) -> None:
        """Register another record repeatedly until the driver has reconnected to its back end."""

        async def is_accepted() -> bool:
            try:
                await registry.register(LATE_GREETER, lease_s=LONG_LEASE_S)
            except Unreachable:
                return False
            return True

        await until(is_accepted, self.timeout_s, "the driver reconnects to an available back end")

    @requires(faults=("kill", "restart"))
    async def test_unavailable_back_end_raises_unreachable_in_time(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.register(GREETER, lease_s=LONG_LEASE_S)
        async with back_end_killed(self.faults(harness)):
            calls: list[Awaitable[Any]] = [registry.register(OTHER, lease_s=LONG_LEASE_S), registry.instances()]
            for call in calls:
                with pytest.raises(Unreachable) as caught:
                    await within(self.timeout_s, call, "Unreachable is raised in time if the back end is not available")
                assert caught.value.detail.strip(), "Unreachable contains the reason"

    @requires(faults=("kill", "restart"))
    async def test_watch_continues_after_a_back_end_outage(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder, renewed(writer, GREETER, max(self.lease_s, 1.0)):
            await recorder.wait_until(lambda: recorder.records, "watchers receive CREATED for a new record")
            async with back_end_killed(self.faults(harness)):
                await asyncio.sleep(0.2)
            await self.register_until_accepted(writer)
            clause = "a watch continues when the back end is available again, and reports the live records"
            await recorder.wait_until(lambda: set(recorder.records) == {GREETER.id, LATE_GREETER.id}, clause)
            await self.expect_instances_after_recovery(reader, GREETER, LATE_GREETER)

    @requires(faults=("kill", "wipe"))
    async def test_records_are_restored_by_renewal_after_data_loss(self, harness: Harness[Registry]) -> None:
        writer, reader, not_renewing = await harness.open(), await harness.open(), await harness.open()
        async with self.watching(reader) as recorder, renewed(writer, GREETER, max(self.lease_s, 1.0)):
            # This record is not renewed, so it must not remain after the data loss.
            await not_renewing.register(OTHER, lease_s=max(2 * self.lease_s, 2.0))
            await recorder.wait_until(lambda: len(recorder.records) == 2, "watchers receive CREATED for a new record")
            async with back_end_killed(self.faults(harness), empty=True):
                await asyncio.sleep(0.1)
            await self.register_until_accepted(writer)
            await self.expect_instances_after_recovery(reader, GREETER, LATE_GREETER)
            clause = "a watch reports the live records after the back end lost its data"
            await recorder.wait_until(
                lambda: by_id(recorder.records.values()) == by_id([GREETER, LATE_GREETER]), clause
            )

    @requires(capability="persistent", faults=("kill", "restart"))
    async def test_record_survives_a_back_end_restart(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, GREETER)
        async with back_end_killed(self.faults(harness)):
            await asyncio.sleep(0)

        async def is_listed() -> bool:
            try:
                return GREETER in await reader.instances()
            except Unreachable:
                return False

        await until(is_listed, self.timeout_s, "a record survives a restart of the back end until its lease ends")

    @requires(faults=("kill", "restart"))
    async def test_close_does_not_wait_for_an_unavailable_back_end(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.register(GREETER, lease_s=self.lease_s)
        recorder = await WatchRecorder(registry, None, self.timeout_s).start()
        async with back_end_killed(self.faults(harness)):
            await within(
                self.timeout_s, harness.close(registry), "close returns although the back end is not available"
            )
            await recorder.expect_end()

    @requires(faults=("pause", "resume"))
    async def test_paused_back_end_does_not_block_the_event_loop(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            await writer.register(GREETER, lease_s=LONG_LEASE_S)
            await recorder.wait_until(lambda: recorder.records, "watchers receive CREATED for a new record")
            faults = self.faults(harness)
            await faults.pause()
            try:
                async with loop_not_blocked(self.pause_s / 2, "a paused back end does not block the event loop"):
                    calls = [asyncio.create_task(self.register_with_retries(writer)) for _ in range(5)]
                    await asyncio.sleep(self.pause_s)
            finally:
                await faults.resume()
            await within(
                self.timeout_s, asyncio.gather(*calls), "a call to a paused back end succeeds or raises Unreachable"
            )
            await self.register_until_accepted(writer)
            await self.expect_instances_after_recovery(reader, GREETER, OTHER, LATE_GREETER)
            await recorder.wait_until(
                lambda: LATE_GREETER.id in recorder.records, "a watch continues after the back end was paused"
            )

    async def register_with_retries(self, registry: Registry) -> None:
        """Register a record, and try again after Unreachable."""
        while True:
            try:
                await registry.register(OTHER, lease_s=LONG_LEASE_S)
            except Unreachable:
                await asyncio.sleep(0.05)
            else:
                return

    @requires(faults=("pause", "resume"))
    async def test_slow_back_end_only_delays_operations(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        instances = [replace(GREETER, id=f"greeter-{number}") for number in range(10)]
        async with self.watching(reader) as recorder, back_end_slowed(self.faults(harness)):
            for instance in instances:
                await within(
                    self.timeout_s,
                    writer.register(instance, lease_s=LONG_LEASE_S),
                    "register completes on a slow back end",
                )
            await self.expect_instances(reader, *instances)
            clause = "a watch reports the live records of a slow back end"
            await recorder.wait_until(lambda: by_id(recorder.records.values()) == by_id(instances), clause)

    @requires(faults=("garbage",))
    async def test_garbage_is_counted_and_hides_no_record(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await self.faults(harness).garbage(harness.context())
        new_reader = await harness.open()
        await self.expect_instances(new_reader, GREETER)
        async with self.watching(new_reader) as fresh, self.watching(reader) as recorder:
            await self.faults(harness).garbage(harness.context())
            await writer.register(OTHER, lease_s=LONG_LEASE_S)
            for each in (fresh, recorder):
                await self.expect_watched(each, GREETER, OTHER)
            await self.expect_instances(reader, GREETER, OTHER)
            assert harness.counters_of(new_reader) or harness.counters_of(reader), (
                "dropped garbage is counted (context.counters)"
            )
