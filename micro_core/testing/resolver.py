"""The kit of the resolver role: candidates for a network, in time and in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from micro_core.contract import Candidate, MicroError, Resolver, Role, Unreachable
from micro_core.testing.kit.conformance import Conformance, requires
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import fail, within

FIRST = Candidate(address="127.0.0.1:7001", priority=1, weight=1)
SECOND = Candidate(address="127.0.0.1:7002", priority=5, weight=1)
THIRD = Candidate(address="127.0.0.1:7003", priority=9, weight=1)


class ResolverConformance(Conformance[Resolver]):
    """The kit of the resolver role.

    Inherit it, supply the fixture `driver_under_test`, and implement `publish` if a test can set the content of the source.
    """

    role = Role.RESOLVER

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        """Let the source answer with exactly `candidates` for `harness.network` from now on.

        Omit the fields that the source cannot store. If it stores priorities or weights, declare these capabilities.
        """
        del harness, candidates
        pytest.skip("`publish` is not implemented, so the answer of the source cannot be set")

    async def exercise(self, harness: Harness[Resolver]) -> None:
        """Resolve the network three times."""
        resolver = await harness.open()
        for _ in range(3):
            try:
                await self.resolve_checked(resolver, harness.network)
            except MicroError:
                # The source may be unavailable. Only the time until the answer matters here.
                continue

    async def resolve_checked(self, resolver: Resolver, network: str) -> list[Candidate]:
        """Return the answer of the resolver, and check that it is valid, ordered and in time."""
        found = await within(self.timeout_s, resolver.resolve(network), "resolve answers or raises Unreachable")
        assert isinstance(found, list), "resolve returns a list"
        for candidate in found:
            assert isinstance(candidate, Candidate), "resolve returns Candidate objects"
            address = candidate.address.partition("://")[2] or candidate.address
            assert address.strip() == address != "", (
                f"addresses are not empty and have no spaces around them: {candidate}"
            )
            assert 0 <= candidate.priority <= 65_535, f"priorities are 0 to 65,535 (RFC 2782): {candidate}"
            assert 0 <= candidate.weight <= 65_535, f"weights are 0 to 65,535 (RFC 2782): {candidate}"
            assert math.isfinite(candidate.ttl_s), f"ttl_s is finite and not negative: {candidate}"
            assert candidate.ttl_s >= 0, f"ttl_s is finite and not negative: {candidate}"
        priorities = [candidate.priority for candidate in found]
        assert priorities == sorted(priorities), f"candidates are ordered by priority, the lowest first: {priorities}"
        return found

    async def test_answer_is_timely_and_ordered_by_priority(self, harness: Harness[Resolver]) -> None:
        resolver = await harness.open()
        try:
            await self.resolve_checked(resolver, harness.network)
        except Unreachable as error:
            expect_detail(error)

    async def test_answer_contains_all_published_candidates(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [FIRST, SECOND])
        resolver = await harness.open()
        found = await self.resolve_checked(resolver, harness.network)
        assert {without_scheme(candidate) for candidate in found} == {FIRST.address, SECOND.address}, (
            "resolve returns all candidates of the source"
        )
        found.clear()
        assert len(await self.resolve_checked(resolver, harness.network)) == 2, (
            "changing the returned list does not change later answers"
        )

    async def test_new_answer_replaces_the_previous_one(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [FIRST, SECOND])
        first = await self.resolve_checked(await harness.open(), harness.network)
        assert len(first) == 2, "resolve returns all candidates of the source"
        await self.publish(harness, [THIRD])
        # Use another resolver, because the first may cache its answer for ttl_s.
        found = await self.resolve_checked(await harness.open(), harness.network)
        assert [without_scheme(candidate) for candidate in found] == [THIRD.address], (
            "a new answer replaces the previous one completely"
        )

    async def test_empty_source_gives_an_empty_answer(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [])
        try:
            found = await self.resolve_checked(await harness.open(), harness.network)
        except Unreachable:
            # Some sources cannot distinguish "unknown network" from "no nodes".
            return
        assert found == [], "resolve returns an empty list if the source has no candidates"

    @requires(capability="priorities")
    async def test_lower_priorities_come_first(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [THIRD, FIRST, SECOND])
        found = await self.resolve_checked(await harness.open(), harness.network)
        assert [without_scheme(candidate) for candidate in found] == [FIRST.address, SECOND.address, THIRD.address], (
            "candidates with a lower priority come first"
        )
        assert [candidate.priority for candidate in found] == [1, 5, 9], "candidates have the priorities of the source"

    @requires(capability="weights")
    async def test_weights_set_the_odds_among_equal_priorities(self, harness: Harness[Resolver]) -> None:
        heavy, light = replace(FIRST, weight=1_000), replace(SECOND, priority=FIRST.priority, weight=1)
        await self.publish(harness, [light, heavy])
        firsts = []
        for _ in range(12):
            found = await self.resolve_checked(await harness.open(), harness.network)
            assert len(found) == 2, "resolve returns all candidates of the source"
            firsts.append(without_scheme(found[0]))
        # The light candidate comes first with a probability of 1/1000: 3 times in 12 with a probability of 1 in 4 million.
        assert firsts.count(heavy.address) >= 10, (
            f"among equal priorities, the weight sets the odds (RFC 2782): {firsts}"
        )

    @requires(faults=("kill", "restart"))
    async def test_unavailable_source_raises_unreachable_until_it_returns(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [FIRST])
        await self.faults(harness).kill()
        resolver = await harness.open()
        with pytest.raises(Unreachable):
            await self.resolve_checked(resolver, harness.network)
        await self.faults(harness).restart()
        found = await self.resolve_checked(await harness.open(), harness.network)
        assert [without_scheme(candidate) for candidate in found] == [FIRST.address], (
            "a source that is available again is queried again"
        )

    @requires(faults=("garbage",))
    async def test_garbage_from_the_source_raises_only_micro_errors(self, harness: Harness[Resolver]) -> None:
        await self.faults(harness).garbage(harness.context())
        resolver = await harness.open()
        try:
            await self.resolve_checked(resolver, harness.network)
        except MicroError as error:
            expect_detail(error)
        except Exception as error:  # noqa: BLE001 - any other exception is the failure that this check looks for
            fail(f"garbage from the source raises no error other than MicroError: got {type(error).__name__}: {error}")


def expect_detail(error: MicroError) -> None:
    """Check that an error has a detail text."""
    assert error.detail.strip(), "an error contains the reason"


def without_scheme(candidate: Candidate) -> str:
    """Return the address of a candidate as `host:port`."""
    return candidate.address.partition("://")[2] or candidate.address
