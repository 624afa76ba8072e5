"""The race of the paths to one address."""

from __future__ import annotations

import asyncio

from micro_core.tunnel.probing import ProbeResult, race


async def test_first_of_two_paths_that_answer_at_the_same_moment_is_used() -> None:
    """So the same seed gives the same links, and the preferred path is the one that is used."""
    paths = [f"path {number}" for number in range(8)]
    for _ in range(20):
        is_answered = asyncio.Event()

        async def attempt(path: str, is_answered: asyncio.Event = is_answered) -> ProbeResult:
            await is_answered.wait()
            return ProbeResult(peer=path, name=path, site="", rtt_s=0.1)

        racing = asyncio.ensure_future(race(paths, attempt, delay_s=0))
        for _ in range(40):
            await asyncio.sleep(0)
        is_answered.set()
        assert (await racing).peer == "path 0"
