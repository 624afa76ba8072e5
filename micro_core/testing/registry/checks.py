"""The kit of the registry role: records, leases, watches, faults.

A record that one registry writes does not have to be visible in another registry immediately, only within `timeout_s`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from micro_core.contract import BadRequest, Instance, Registry, TooLarge, Unreachable
from micro_core.testing.kit.faults import cpu_wait_s
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import fail, within
from micro_core.testing.kit.watch_recorder import WatchRecorder
from micro_core.testing.registry.faults import RegistryFaultChecks
from micro_core.testing.registry.support import CREATED, DELETED, GREETER, LONG_LEASE_S, OTHER, large_record, renewed
from micro_core.testing.registry.watches import RegistryWatchChecks

ATTEMPTS = 3


class RegistryConformance(RegistryWatchChecks, RegistryFaultChecks):
    """The kit of the registry role. Inherit it and supply the fixture `driver_under_test`."""

    # --------------------------------------------------------------------- records

    async def test_registered_instance_is_listed_across_the_site(self, harness: Harness[Registry]) -> None:
        one, other = await harness.open(), await harness.open()
        assert await other.instances() == [], "instances returns an empty list if there are no records"
        await one.register(GREETER, lease_s=LONG_LEASE_S)
        await self.expect_instances(one, GREETER)
        await self.expect_instances(other, GREETER)

    async def test_sites_and_networks_are_isolated(self, harness: Harness[Registry]) -> None:
        here, there = await harness.open(), await harness.open(site="us")
        beyond = await harness.open(network=f"{harness.network}.other")
        for registry, name in ((here, "here"), (there, "there"), (beyond, "beyond")):
            await registry.register(replace(GREETER, id=name), lease_s=LONG_LEASE_S)
        await self.expect_instances(here, replace(GREETER, id="here"))
        await self.expect_instances(there, replace(GREETER, id="there"))
        await self.expect_instances(beyond, replace(GREETER, id="beyond"))

    async def test_instances_are_filtered_by_service(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        for instance in (GREETER, OTHER):
            await writer.register(instance, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, GREETER, OTHER)
        await self.expect_instances(reader, GREETER, service=GREETER.service)
        assert await reader.instances("go.micro.srv.unknown") == []

    async def test_instances_and_versions_of_a_service_coexist(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        instances = [replace(GREETER, id=f"greeter-{number}", version=f"{number}.0") for number in range(10)]
        instances.append(Instance(service=GREETER.service, id="bare", address="unix:///run/bare.sock"))
        for instance in instances:
            await writer.register(instance, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, *instances)

    async def test_record_with_the_same_id_is_replaced(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        changed = replace(GREETER, address="tcp://127.0.0.1:4002", metadata={"zone": "b"}, endpoints=())
        await writer.register(changed, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, changed)

    async def test_record_is_replaced_atomically(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        first = large_record(0, self.large_record_bytes)
        await writer.register(first, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, first)
        writing = asyncio.create_task(self.replace_repeatedly(writer))
        try:
            while not writing.done():
                found = await reader.instances(GREETER.service)
                assert len(found) == 1, "a record is replaced atomically: it was temporarily missing"
                number = int(found[0].metadata["n"])
                is_complete = found[0] == large_record(number, self.large_record_bytes)
                assert is_complete, "a record is replaced atomically: it was read half-written"
                await asyncio.sleep(0)
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def test_instance_can_move_to_another_service(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        async with self.watching(reader, GREETER.service) as recorder:
            await recorder.wait_until(lambda: recorder.records, "a watch starts with the existing records")
            moved = replace(GREETER, service="go.micro.srv.moved")
            await writer.register(moved, lease_s=LONG_LEASE_S)
            await self.expect_instances(reader, moved)
            await recorder.wait_until(lambda: not recorder.records, "watchers of the previous service receive DELETED")

    async def test_deregistered_record_stays_removed(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            await writer.register(GREETER, lease_s=self.lease_s)
            await recorder.wait_until(
                lambda: GREETER.id in recorder.records, "watchers receive CREATED for a new record"
            )
            await writer.deregister(GREETER)
            await recorder.wait_until(
                lambda: GREETER.id not in recorder.records, "watchers receive DELETED after deregister"
            )
            await self.expect_instances(reader)
            await self.wait_for_a_lease(writer, 2 * self.lease_s)
            kinds = [kind for kind, _ in recorder.changes_of(GREETER.id)]
            assert kinds == [CREATED, DELETED], "deregister removes a record, and it does not reappear"
            await self.expect_instances(reader)

    async def test_deregistering_an_unknown_instance_is_ignored(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.deregister(GREETER)
        await registry.register(OTHER, lease_s=LONG_LEASE_S)
        await registry.deregister(GREETER)
        await self.expect_instances(registry, OTHER)

    @pytest.mark.parametrize(
        "instance_id", ["../../escape", "/etc/passwd", "..", "a\\b:c*?[x]", "x" * 253, "ünï-日本 x"]
    )
    async def test_printable_ids_are_kept_distinct(self, harness: Harness[Registry], instance_id: str) -> None:
        writer, reader = await harness.open(), await harness.open()
        unusual = replace(GREETER, id=instance_id)
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await writer.register(unusual, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, GREETER, unusual)
        await writer.deregister(unusual)
        await self.expect_instances(reader, GREETER)

    async def test_invalid_record_is_rejected(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        with pytest.raises(BadRequest):
            await registry.register(replace(GREETER, service="no spaces"), lease_s=LONG_LEASE_S)
        large = {f"key-{number}": "x" * 4_000 for number in range(20)}
        with pytest.raises(TooLarge, match=r"\d"):
            await registry.register(replace(GREETER, metadata=large), lease_s=LONG_LEASE_S)
        await self.expect_instances(registry)

    async def test_record_is_independent_of_the_callers_metadata(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        metadata = {"zone": "a"}
        await registry.register(replace(GREETER, metadata=metadata), lease_s=LONG_LEASE_S)
        metadata["zone"] = "b"
        await self.expect_instances(registry, replace(GREETER, metadata={"zone": "a"}))

    # ---------------------------------------------------------------------- leases

    async def test_unrenewed_record_expires_within_one_second_of_its_lease(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            began = time.monotonic()
            await writer.register(GREETER, lease_s=self.lease_s)
            registered, waited_s = time.monotonic(), cpu_wait_s()
            await recorder.wait_until(
                lambda: recorder.changes_of(GREETER.id), "watchers receive CREATED for a new record"
            )
            clause = "a record whose owner stops renewing it expires, and watchers receive DELETED"
            await recorder.wait_until(lambda: GREETER.id not in recorder.records, clause)
            now = time.monotonic()
            assert recorder.changes_of(GREETER.id)[-1] == (DELETED, GREETER), "DELETED carries the last known record"
            lived_s = now - began
            assert lived_s >= 0.9 * self.lease_s, (
                f"a record exists for its whole lease: it was removed after {lived_s:.2f} s"
            )
            # Allow half a second more, and subtract the time for which this thread waited for a CPU.
            late_s = now - registered - (cpu_wait_s() - waited_s) - self.lease_s
            assert late_s <= 1.5, f"a record expires within one second of its lease: it took {late_s:.2f} s"
            await self.expect_instances(reader)
            await self.expect_instances(writer)

    async def test_renewed_record_outlives_its_initial_lease(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        for number in range(ATTEMPTS):
            record = replace(GREETER, id=f"greeter-{number}")
            async with self.watching(reader) as recorder, renewed(writer, record, self.lease_s) as renewal:
                await recorder.wait_until(lambda: recorder.records, "watchers receive CREATED for a new record")
                await self.wait_for_a_lease(writer, 3 * self.lease_s)
                kinds = [kind for kind, _ in recorder.changes_of(record.id)]
                if kinds == [CREATED] and record in await reader.instances(record.service):
                    return
            # If this process renewed too late because the machine is busy, try again.
            if renewal.max_gap_s < 0.8 * self.lease_s:
                break
        fail(f"a renewed record does not expire: the longest interval between renewals was {renewal.max_gap_s:.2f} s")

    async def test_equal_record_renews_without_an_event(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            for lease_s in (LONG_LEASE_S, LONG_LEASE_S, 2 * LONG_LEASE_S):
                await writer.register(replace(GREETER), lease_s=lease_s)
                await recorder.wait_until(lambda: recorder.records, "watchers receive CREATED for a new record")
            await writer.register(OTHER, lease_s=LONG_LEASE_S)
            await recorder.wait_until(lambda: OTHER.id in recorder.records, "watchers receive CREATED for a new record")
            kinds = [kind for kind, _ in recorder.changes_of(GREETER.id)]
            assert kinds == [CREATED], "registering an equal record renews its lease without an event"

    async def test_expired_record_can_be_registered_again(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.watching(reader) as recorder:
            await writer.register(GREETER, lease_s=self.lease_s)
            await recorder.wait_until(
                lambda: len(recorder.changes_of(GREETER.id)) == 2, "watchers receive CREATED, then DELETED"
            )
            await writer.register(GREETER, lease_s=LONG_LEASE_S)
            await recorder.wait_until(
                lambda: GREETER.id in recorder.records, "an expired record can be registered again"
            )
            await self.expect_instances(reader, GREETER)

    # --------------------------------------------------------------------- closing

    async def test_close_withdraws_own_records_and_ends_watches(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        kept = replace(GREETER, id="kept")
        await reader.register(kept, lease_s=LONG_LEASE_S)
        await writer.register(GREETER, lease_s=LONG_LEASE_S)
        await self.expect_instances(reader, kept, GREETER)
        ended_watch = await WatchRecorder(writer, None, self.timeout_s).start()
        async with self.watching(reader) as recorder:
            await recorder.wait_until(lambda: len(recorder.records) == 2, "a watch starts with the existing records")
            await harness.close(writer)
            await ended_watch.expect_end()
            await recorder.wait_until(
                lambda: set(recorder.records) == {"kept"}, "close withdraws the registry's own records"
            )
            await self.expect_instances(reader, kept)
        await within(self.timeout_s, writer.close(), "close is safe to call twice")

    async def test_close_keeps_a_record_taken_over_by_another_registry(self, harness: Harness[Registry]) -> None:
        first, second = await harness.open(), await harness.open()
        await first.register(GREETER, lease_s=LONG_LEASE_S)
        await self.expect_instances(second, GREETER)
        newer = replace(GREETER, address="tcp://127.0.0.1:4002")
        await second.register(newer, lease_s=LONG_LEASE_S)
        await self.expect_instances(first, newer)
        await harness.close(first)
        await self.expect_instances(second, newer)

    async def test_closed_registry_raises_unreachable(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await harness.close(registry)
        for call in (registry.instances(), registry.register(GREETER, lease_s=LONG_LEASE_S)):
            with pytest.raises(Unreachable):
                await within(self.timeout_s, call, "a closed registry raises Unreachable immediately")
