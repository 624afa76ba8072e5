"""Checks of the registry kit for watches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from micro_core.contract import Registry
from micro_core.testing.kit.conformance import requires
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import within
from micro_core.testing.kit.watch_recorder import WatchRecorder
from micro_core.testing.registry.support import (
    CREATED,
    DELETED,
    GREETER,
    LONG_LEASE_S,
    OTHER,
    UPDATED,
    RegistryKit,
    by_id,
)


class RegistryWatchChecks(RegistryKit):
    """Checks that watches report existing records and then all changes in order, also to a slow watcher."""

    async def test_watch_starts_with_existing_records_then_reports_changes(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, GREETER)
        async with self.watching(reader) as recorder:
            changes_of = recorder.changes_of
            clause = "a watch starts with one CREATED event for each existing record"
            await recorder.wait_until(lambda: changes_of(GREETER.id), clause)
            changed = replace(GREETER, metadata={"zone": "b"})
            await writer.register(changed, lease_s=LONG_LEASE_S)
            await recorder.wait_until(lambda: len(changes_of(GREETER.id)) >= 2, "watchers receive UPDATED")
            await writer.deregister(changed)
            await recorder.wait_until(lambda: len(changes_of(GREETER.id)) >= 3, "watchers receive DELETED")
            expected = [(CREATED, GREETER), (UPDATED, changed), (DELETED, changed)]
            assert changes_of(GREETER.id) == expected, "CREATED, UPDATED and DELETED arrive once each, with the record"

    async def test_events_of_an_instance_arrive_in_order(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            last = 30
            for number in range(last + 1):
                await writer.register(replace(GREETER, metadata={"n": str(number)}), lease_s=LONG_LEASE_S)

            def numbers() -> list[int]:
                return [int(instance.metadata["n"]) for _, instance in recorder.changes_of(GREETER.id)]

            await recorder.wait_until(lambda: last in numbers(), "watchers receive the latest state of a record")
            # A driver may combine changes that follow each other quickly, but an older state never follows a newer one.
            assert numbers() == sorted(set(numbers())), f"events of an instance arrive in order and once: {numbers()}"
            assert recorder.changes_of(GREETER.id)[0][0] is CREATED, "the first event of an instance is CREATED"

    async def test_watch_of_a_service_reports_only_that_service(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(OTHER, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, OTHER)
        async with self.watching(reader, GREETER.service) as recorder:
            await writer.deregister(OTHER)
            await writer.register(replace(OTHER, id="other-2"), lease_s=LONG_LEASE_S)
            await writer.register(GREETER, lease_s=LONG_LEASE_S)
            await recorder.wait_until(
                lambda: GREETER.id in recorder.records, "watchers receive CREATED for a new record"
            )
            others = {event.instance.service for event in recorder.events if event.instance} - {GREETER.service}
            assert not others, "a watch of one service reports no other service"

    async def test_slow_watcher_converges_to_the_latest_state(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        watch = await within(self.timeout_s, reader.watch(), "watch returns")
        instances = [replace(GREETER, id=f"greeter-{number}") for number in range(4)]
        async with asyncio.timeout(6 * self.timeout_s):
            for number in range(self.burst_changes):
                instance = replace(instances[number % 4], metadata={"n": str(number)})
                instances[number % 4] = instance
                await writer.register(instance, lease_s=LONG_LEASE_S)
        recorder = WatchRecorder(reader, None, self.timeout_s).read(watch)
        clause = "a slow watcher arrives at the latest state, if necessary through RESYNC"
        await recorder.wait_until(lambda: by_id(recorder.records.values()) == by_id(instances), clause)
        await recorder.close()

    async def test_closed_watch_ends_its_iteration(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        recorder = await WatchRecorder(registry, None, self.timeout_s).start()
        await registry.register(GREETER, lease_s=LONG_LEASE_S)
        await recorder.wait_until(lambda: recorder.records, "watchers receive CREATED for a new record")
        await recorder.close()
        await within(self.timeout_s, recorder.watch.close(), "close of a watch is safe to call twice")

    @requires(capability="watch")
    async def test_change_reaches_watchers_within_one_second(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            durations_s = []
            for number in range(7):
                instance = replace(GREETER, id=f"greeter-{number}")
                await writer.register(instance, lease_s=LONG_LEASE_S)
                began = time.monotonic()
                await recorder.wait_until(lambda: len(recorder.records) > number, "watchers receive a change")  # noqa: B023
                durations_s.append(time.monotonic() - began)
            median_s = sorted(durations_s)[len(durations_s) // 2]
            assert median_s < 1.0, f"watchers receive a change within one second: the median was {median_s:.2f} s"
