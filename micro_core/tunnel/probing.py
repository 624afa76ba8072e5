"""Probes: which node answers at an address, and how far away it is. The paths are raced as in `path_selection`.

A probe is a handshake that the dialling end leaves after the first message of the other end, so no link is made, no routes
are exchanged, and the other end keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from micro_core.contract.errors import MicroError

PROBE_TIMEOUT_S = 4.0
"""Time limit of a probe in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a node that answered a probe states about itself, without proof, and the measured round-trip time."""

    peer: str
    """Node id."""
    name: str
    site: str
    rtt_s: float


async def race(
    paths: Sequence[str], attempt: Callable[[str], Awaitable[ProbeResult]], *, delay_s: float
) -> ProbeResult:
    """Return the first result of `attempt(path)`.

    Each path but the first starts when all earlier ones have failed, or after `delay_s` without a result. When one path has
    answered, or when this call is cancelled, the other attempts are cancelled.

    Raises:
        MicroError: The error of the first path, if all have failed.
    """
    pending: dict[asyncio.Task[ProbeResult], str] = {}
    errors: dict[str, MicroError] = {}
    waiting = [*paths]
    try:
        while waiting or pending:
            if waiting:
                path = waiting.pop(0)
                pending[asyncio.ensure_future(attempt(path))] = path
            done, _ = await asyncio.wait(
                pending, timeout=delay_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            # In the order of the paths: of two that answer at the same moment, the first is used.
            for task in [task for task in pending if task in done]:
                path = pending.pop(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, MicroError):
                    raise error
                errors[path] = error
        raise errors[paths[0]]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
