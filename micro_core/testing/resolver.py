"""The kit of the resolver role: from a network's name to candidates, in time, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from micro_core.contract import Candidate, MicroError, Resolver, Role, Unreachable
from micro_core.testing.kit.conformance import Conformance, needs
from micro_core.testing.kit.harness import Harness
from micro_core.testing.kit.waiting import fail, within

SOON = Candidate(address="127.0.0.1:7001", priority=1, weight=1)
LATER = Candidate(address="127.0.0.1:7002", priority=5, weight=1)
LAST = Candidate(address="127.0.0.1:7003", priority=9, weight=1)


class ResolverConformance(Conformance[Resolver]):
    """Inherit it, supply `driver_under_test`, and write `publish` where the source can be told what to answer."""

    role = Role.RESOLVER

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        """Have the source answer exactly `candidates` for `harness.network`, from now on.

        What the source cannot carry is left out: declare `priorities` and `weights` where it can.
        """
        del harness, candidates
        pytest.skip("the author wrote no `publish`: what the source answers cannot be chosen")

    async def exercise(self, harness: Harness[Resolver]) -> None:
        resolver = await harness.open()
        for _ in range(3):
            try:
                await self.resolved(resolver, harness.network)
            except MicroError:
                # Nobody has said that the source is there; how long an answer takes is what counts here.
                continue

    async def resolved(self, resolver: Resolver, network: str) -> list[Candidate]:
        """The answer, checked for what every answer must be."""
        found = await within(self.patience_s, resolver.resolve(network), "resolve answers, or raises Unreachable")
        assert isinstance(found, list), "resolve returns a list"
        for candidate in found:
            assert isinstance(candidate, Candidate), "resolve returns Candidates"
            address = candidate.address.partition("://")[2] or candidate.address
            assert address.strip() == address != "", f"an address is one that a link driver takes: {candidate}"
            assert 0 <= candidate.priority <= 65_535, f"priorities are those of RFC 2782: {candidate}"
            assert 0 <= candidate.weight <= 65_535, f"weights are those of RFC 2782: {candidate}"
            assert math.isfinite(candidate.ttl_s) and candidate.ttl_s >= 0, f"ttl_s is in seconds: {candidate}"  # noqa: PT018
        priorities = [candidate.priority for candidate in found]
        assert priorities == sorted(priorities), (
            f"candidates come in the order to try, lower priority first: {priorities}"
        )
        return found

    async def test_an_answer_comes_in_time_and_in_the_order_to_try(self, harness: Harness[Resolver]) -> None:
        resolver = await harness.open()
        try:
            await self.resolved(resolver, harness.network)
        except Unreachable as error:
            says_something(error)

    async def test_what_the_source_holds_is_answered(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [SOON, LATER])
        resolver = await harness.open()
        found = await self.resolved(resolver, harness.network)
        assert {bare(candidate) for candidate in found} == {SOON.address, LATER.address}, (
            "resolve answers what the source holds"
        )
        found.clear()
        assert len(await self.resolved(resolver, harness.network)) == 2, "an answer is the caller's own"

    async def test_the_whole_answer_replaces_the_earlier_one(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [SOON, LATER])
        first = await self.resolved(await harness.open(), harness.network)
        assert len(first) == 2, "resolve answers what the source holds"
        await self.publish(harness, [LAST])
        # Another resolver: what one has learnt may be good until its ttl_s.
        found = await self.resolved(await harness.open(), harness.network)
        assert [bare(candidate) for candidate in found] == [LAST.address], "the whole answer replaces the earlier one"

    async def test_a_source_without_candidates_is_answered_by_none(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [])
        try:
            found = await self.resolved(await harness.open(), harness.network)
        except Unreachable:
            # A source may not tell "no such name" from "no nodes".
            return
        assert found == [], "possibly none"

    @needs(capability="priorities")
    async def test_lower_priorities_come_first(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [LAST, SOON, LATER])
        found = await self.resolved(await harness.open(), harness.network)
        assert [bare(candidate) for candidate in found] == [SOON.address, LATER.address, LAST.address], (
            "lower priorities are tried first"
        )
        assert [candidate.priority for candidate in found] == [1, 5, 9], "candidates carry the source's priorities"

    @needs(capability="weights")
    async def test_weights_set_the_odds_among_equals(self, harness: Harness[Resolver]) -> None:
        heavy, light = replace(SOON, weight=1_000), replace(LATER, priority=SOON.priority, weight=1)
        await self.publish(harness, [light, heavy])
        firsts = []
        for _ in range(12):
            found = await self.resolved(await harness.open(), harness.network)
            assert len(found) == 2, "resolve answers what the source holds"
            firsts.append(bare(found[0]))
        # Once in a thousand tries is the light one first: three of twelve is once in four million.
        assert firsts.count(heavy.address) >= 10, f"among equals, weight sets the odds (RFC 2782): {firsts}"

    @needs(faults=("kill", "restart"))
    async def test_a_source_that_is_away_is_told_in_time_and_found_again(self, harness: Harness[Resolver]) -> None:
        await self.publish(harness, [SOON])
        await self.faults(harness).kill()
        resolver = await harness.open()
        with pytest.raises(Unreachable):
            await self.resolved(resolver, harness.network)
        await self.faults(harness).restart()
        found = await self.resolved(await harness.open(), harness.network)
        assert [bare(candidate) for candidate in found] == [SOON.address], "a source that is back is asked again"

    @needs(faults=("garbage",))
    async def test_garbage_from_the_source_is_an_error_and_no_crash(self, harness: Harness[Resolver]) -> None:
        await self.faults(harness).garbage(harness.context())
        resolver = await harness.open()
        try:
            await self.resolved(resolver, harness.network)
        except MicroError as error:
            says_something(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            fail(f"what the source says is checked: garbage raised {type(error).__name__}: {error}")


def says_something(error: MicroError) -> None:
    """An error is a sentence."""
    assert error.detail.strip(), "an error says what is wrong"


def bare(candidate: Candidate) -> str:
    """`host:port` of a candidate's address, without a scheme."""
    return candidate.address.partition("://")[2] or candidate.address
