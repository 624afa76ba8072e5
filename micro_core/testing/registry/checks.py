"""The kit of the registry role: records, leases, watches, faults.

What one registry wrote, another sees in time (`patience_s`), not in the same moment: back ends differ in that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from micro_core.contract import BadRequest, Instance, Registry, TooLarge, Unreachable
from micro_core.testing.kit.faults import waited_for_a_processor_s
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import fail, within
from micro_core.testing.kit.watch_recorder import Follower
from micro_core.testing.registry.faults import RegistryFaultParts
from micro_core.testing.registry.support import CREATED, DELETED, GREETER, LONG_S, OTHER, large_record, renewed
from micro_core.testing.registry.watches import RegistryWatchParts

TRIES = 3


class RegistryConformance(RegistryWatchParts, RegistryFaultParts):
    """Inherit it, supply `driver_under_test`."""

    # --------------------------------------------------------------------- records

    async def test_a_record_is_seen_by_every_registry_of_the_site(self, harness: Harness[Registry]) -> None:
        one, other = await harness.open(), await harness.open()
        assert await other.instances() == [], "instances is empty when there are none"
        await one.register(GREETER, lease_s=LONG_S)
        await self.stands(one, GREETER)
        await self.stands(other, GREETER)

    async def test_sites_and_networks_do_not_see_each_other(self, harness: Harness[Registry]) -> None:
        here, there = await harness.open(), await harness.open(site="us")
        beyond = await harness.open(network=f"{harness.network}.other")
        for registry, name in ((here, "here"), (there, "there"), (beyond, "beyond")):
            await registry.register(replace(GREETER, id=name), lease_s=LONG_S)
        await self.stands(here, replace(GREETER, id="here"))
        await self.stands(there, replace(GREETER, id="there"))
        await self.stands(beyond, replace(GREETER, id="beyond"))

    async def test_instances_of_one_service_are_found_by_its_name(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        for instance in (GREETER, OTHER):
            await writer.register(instance, lease_s=LONG_S)
        await self.stands(reader, GREETER, OTHER)
        await self.stands(reader, GREETER, service=GREETER.service)
        assert await reader.instances("go.micro.srv.nobody") == []

    async def test_several_instances_and_versions_stand_side_by_side(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        instances = [replace(GREETER, id=f"greeter-{number}", version=f"{number}.0") for number in range(10)]
        instances.append(Instance(service=GREETER.service, id="bare", address="unix:///run/bare.sock"))
        for instance in instances:
            await writer.register(instance, lease_s=LONG_S)
        await self.stands(reader, *instances)

    async def test_a_record_replaces_the_one_with_its_id(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_S)
        changed = replace(GREETER, address="tcp://127.0.0.1:4002", metadata={"zone": "b"}, endpoints=())
        await writer.register(changed, lease_s=LONG_S)
        await self.stands(reader, changed)

    async def test_a_record_is_whole_whenever_it_is_read(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        first = large_record(0, self.large_record_bytes)
        await writer.register(first, lease_s=LONG_S)
        await self.stands(reader, first)
        writing = asyncio.create_task(self.replace_often(writer))
        try:
            while not writing.done():
                found = await reader.instances(GREETER.service)
                assert len(found) == 1, "a record stands while another replaces it: it was not there"
                number = int(found[0].metadata["n"])
                is_whole = found[0] == large_record(number, self.large_record_bytes)
                assert is_whole, "a record is read whole while another replaces it: it was half written"
                await asyncio.sleep(0)
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def test_an_instance_that_moves_to_another_service_leaves_the_first(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        await writer.register(GREETER, lease_s=LONG_S)
        async with self.following(reader, GREETER.service) as follower:
            await follower.heard(lambda: follower.standing, "a watch begins with the records that stand")
            moved = replace(GREETER, service="go.micro.srv.moved")
            await writer.register(moved, lease_s=LONG_S)
            await self.stands(reader, moved)
            await follower.heard(lambda: not follower.standing, "watchers of the first service hear that it is gone")

    async def test_a_record_is_gone_once_it_is_deregistered_and_stays_gone(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            await writer.register(GREETER, lease_s=self.lease_s)
            await follower.heard(lambda: GREETER.id in follower.standing, "watchers hear of a new record")
            await writer.deregister(GREETER)
            await follower.heard(lambda: GREETER.id not in follower.standing, "watchers hear DELETED after deregister")
            await self.stands(reader)
            await self.a_mayfly_passes(writer, 2 * self.lease_s)
            kinds = [kind for kind, _ in follower.changes_of(GREETER.id)]
            assert kinds == [CREATED, DELETED], "deregister removes the record, and nothing brings it back"
            await self.stands(reader)

    async def test_deregistering_what_is_not_there_is_ignored(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await registry.deregister(GREETER)
        await registry.register(OTHER, lease_s=LONG_S)
        await registry.deregister(GREETER)
        await self.stands(registry, OTHER)

    @pytest.mark.parametrize(
        "instance_id", ["../../escape", "/etc/passwd", "..", "a\\b:c*?[x]", "x" * 253, "ünï-日本 x"]
    )
    async def test_any_printable_id_is_kept_apart(self, harness: Harness[Registry], instance_id: str) -> None:
        writer, reader = await harness.open(), await harness.open()
        odd = replace(GREETER, id=instance_id)
        await writer.register(GREETER, lease_s=LONG_S)
        await writer.register(odd, lease_s=LONG_S)
        await self.stands(reader, GREETER, odd)
        await writer.deregister(odd)
        await self.stands(reader, GREETER)

    async def test_a_record_that_others_would_refuse_is_refused_at_once(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        with pytest.raises(BadRequest):
            await registry.register(replace(GREETER, service="no spaces"), lease_s=LONG_S)
        large = {f"key-{number}": "x" * 4_000 for number in range(20)}
        with pytest.raises(TooLarge, match=r"\d"):
            await registry.register(replace(GREETER, metadata=large), lease_s=LONG_S)
        await self.stands(registry)

    async def test_a_caller_that_changes_its_maps_later_changes_no_record(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        metadata = {"zone": "a"}
        await registry.register(replace(GREETER, metadata=metadata), lease_s=LONG_S)
        metadata["zone"] = "b"
        await self.stands(registry, replace(GREETER, metadata={"zone": "a"}))

    # ---------------------------------------------------------------------- leases

    async def test_a_record_that_is_not_renewed_goes_within_its_lease_and_a_second(
        self, harness: Harness[Registry]
    ) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            began = time.monotonic()
            await writer.register(GREETER, lease_s=self.lease_s)
            registered, waited_s = time.monotonic(), waited_for_a_processor_s()
            await follower.heard(lambda: follower.changes_of(GREETER.id), "watchers hear of a new record")
            clause = "a record whose owner stops renewing disappears, and watchers see DELETED"
            await follower.heard(lambda: GREETER.id not in follower.standing, clause)
            now = time.monotonic()
            assert follower.changes_of(GREETER.id)[-1] == (DELETED, GREETER), "DELETED carries the last known record"
            stood_s = now - began
            assert stood_s >= 0.9 * self.lease_s, (
                f"a record stands for its whole lease: it was gone after {stood_s:.2f} s"
            )
            # Half a second more, and what the machine took, for whoever runs the test.
            late_s = now - registered - (waited_for_a_processor_s() - waited_s) - self.lease_s
            assert late_s <= 1.5, f"a record goes within its lease and a second: it went {late_s:.2f} s after the lease"
            await self.stands(reader)
            await self.stands(writer)

    async def test_renewing_keeps_a_record_beyond_its_first_lease(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        for number in range(TRIES):
            record = replace(GREETER, id=f"greeter-{number}")
            async with self.following(reader) as follower, renewed(writer, record, self.lease_s) as renewal:
                await follower.heard(lambda: follower.standing, "watchers hear of a new record")
                await self.a_mayfly_passes(writer, 3 * self.lease_s)
                kinds = [kind for kind, _ in follower.changes_of(record.id)]
                if kinds == [CREATED] and record in await reader.instances(record.service):
                    return
            # A machine so busy that it was us who renewed too late gets another chance.
            if renewal.longest_gap_s < 0.8 * self.lease_s:
                break
        fail(f"a record that is renewed stands: it was renewed every {renewal.longest_gap_s:.2f} s at least")

    async def test_an_equal_record_renews_silently(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            for lease_s in (LONG_S, LONG_S, 2 * LONG_S):
                await writer.register(replace(GREETER), lease_s=lease_s)
                await follower.heard(lambda: follower.standing, "watchers hear of a new record")
            await writer.register(OTHER, lease_s=LONG_S)
            await follower.heard(lambda: OTHER.id in follower.standing, "watchers hear of a new record")
            kinds = [kind for kind, _ in follower.changes_of(GREETER.id)]
            assert kinds == [CREATED], "a record equal to the one that stands renews silently: no event"

    async def test_a_record_that_has_expired_can_be_registered_again(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        async with self.following(reader) as follower:
            await writer.register(GREETER, lease_s=self.lease_s)
            await follower.heard(lambda: len(follower.changes_of(GREETER.id)) == 2, "CREATED, then DELETED")
            await writer.register(GREETER, lease_s=LONG_S)
            await follower.heard(
                lambda: GREETER.id in follower.standing, "an expired record comes back when registered"
            )
            await self.stands(reader, GREETER)

    # --------------------------------------------------------------------- closing

    async def test_closing_withdraws_its_own_records_and_ends_its_watches(self, harness: Harness[Registry]) -> None:
        writer, reader = await harness.open(), await harness.open()
        kept = replace(GREETER, id="kept")
        await reader.register(kept, lease_s=LONG_S)
        await writer.register(GREETER, lease_s=LONG_S)
        await self.stands(reader, kept, GREETER)
        ended = await Follower(writer, None, self.patience_s).start()
        async with self.following(reader) as follower:
            await follower.heard(lambda: len(follower.standing) == 2, "a watch begins with the records that stand")
            await harness.close(writer)
            await ended.ended()
            await follower.heard(lambda: set(follower.standing) == {"kept"}, "close withdraws what was registered here")
            await self.stands(reader, kept)
        await within(self.patience_s, writer.close(), "close is safe to call twice")

    async def test_closing_leaves_a_record_that_another_registry_has_taken_over(
        self, harness: Harness[Registry]
    ) -> None:
        first, second = await harness.open(), await harness.open()
        await first.register(GREETER, lease_s=LONG_S)
        await self.stands(second, GREETER)
        newer = replace(GREETER, address="tcp://127.0.0.1:4002")
        await second.register(newer, lease_s=LONG_S)
        await self.stands(first, newer)
        await harness.close(first)
        await self.stands(second, newer)

    async def test_a_closed_registry_says_so(self, harness: Harness[Registry]) -> None:
        registry = await harness.open()
        await harness.close(registry)
        for call in (registry.instances(), registry.register(GREETER, lease_s=LONG_S)):
            with pytest.raises(Unreachable):
                await within(self.patience_s, call, "a closed registry answers at once")
