"""Parts of the registry's kit: watches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from micro_core.contract import Registry
from micro_core.testing.kit.conformance import needs
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import within
from micro_core.testing.kit.watch_recorder import Follower
from micro_core.testing.registry.support import CREATED, DELETED, GREETER, LONG_S, OTHER, UPDATED, RegistryKit, by_id


class RegistryWatchParts(RegistryKit):
    """A watch begins with what stands, goes on with changes in order, and never holds up anybody."""

    async def test_a_watch_begins_with_what_stands_and_goes_on_with_changes(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_S)
        await self.stands(reader, GREETER)
        async with self.following(reader) as follower:
            told = follower.changes_of
            await follower.heard(
                lambda: told(GREETER.id), "a watch begins with one CREATED for each record that stands"
            )
            changed = replace(GREETER, metadata={"zone": "b"})
            await writer.register(changed, lease_s=LONG_S)
            await follower.heard(lambda: len(told(GREETER.id)) >= 2, "watchers hear UPDATED")
            await writer.deregister(changed)
            await follower.heard(lambda: len(told(GREETER.id)) >= 3, "watchers hear DELETED")
            expected = [(CREATED, GREETER), (UPDATED, changed), (DELETED, changed)]
            assert told(GREETER.id) == expected, "CREATED, UPDATED, DELETED, each once, with its record"

    async def test_events_of_an_instance_come_in_order(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            last = 30
            for number in range(last + 1):
                await writer.register(replace(GREETER, metadata={"n": str(number)}), lease_s=LONG_S)

            def numbers() -> list[int]:
                return [int(instance.metadata["n"]) for _, instance in follower.changes_of(GREETER.id)]

            await follower.heard(lambda: last in numbers(), "watchers hear of the latest state")
            # Changes that follow each other quickly may be told as one; older news never comes after newer.
            assert numbers() == sorted(set(numbers())), f"per instance, events arrive in order, each once: {numbers()}"
            assert follower.changes_of(GREETER.id)[0][0] is CREATED, "the first event of a record is CREATED"

    async def test_a_watch_of_one_service_hears_of_no_other(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(OTHER, lease_s=LONG_S)
        await self.stands(reader, OTHER)
        async with self.following(reader, GREETER.service) as follower:
            await writer.deregister(OTHER)
            await writer.register(replace(OTHER, id="other-2"), lease_s=LONG_S)
            await writer.register(GREETER, lease_s=LONG_S)
            await follower.heard(lambda: GREETER.id in follower.standing, "watchers hear of a new record")
            strangers = {event.instance.service for event in follower.events if event.instance} - {GREETER.service}
            assert not strangers, "a watch of one service hears of no other"

    async def test_a_watcher_that_falls_behind_still_learns_what_stands(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        watch = await within(self.patience_s, reader.watch(), "watch returns")
        instances = [replace(GREETER, id=f"greeter-{number}") for number in range(4)]
        async with asyncio.timeout(6 * self.patience_s):
            for number in range(self.changes_in_a_storm):
                instance = replace(instances[number % 4], metadata={"n": str(number)})
                instances[number % 4] = instance
                await writer.register(instance, lease_s=LONG_S)
        follower = Follower(reader, None, self.patience_s).read(watch)
        clause = "a watcher that does not keep up learns of the latest state all the same, if need be by RESYNC"
        await follower.heard(lambda: by_id(follower.standing.values()) == by_id(instances), clause)
        await follower.close()

    async def test_closing_a_watch_ends_its_iteration(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        follower = await Follower(registry, None, self.patience_s).start()
        await registry.register(GREETER, lease_s=LONG_S)
        await follower.heard(lambda: follower.standing, "watchers hear of a new record")
        await follower.close()
        await within(self.patience_s, follower.watch.close(), "close of a watch is safe to call twice")

    @needs(capability="watch")
    async def test_watchers_hear_of_a_change_within_a_second(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            took = []
            for number in range(7):
                instance = replace(GREETER, id=f"greeter-{number}")
                await writer.register(instance, lease_s=LONG_S)
                began = time.monotonic()
                await follower.heard(lambda instance=instance: instance.id in follower.standing, "watchers hear")  # type: ignore[misc]
                took.append(time.monotonic() - began)
            middle = sorted(took)[len(took) // 2]
            assert middle < 1.0, f"watchers hear of a change within one second: it took {middle:.2f} s"
