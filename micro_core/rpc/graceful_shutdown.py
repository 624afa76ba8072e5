"""Graceful shutdown of connections: send GOAWAY, and wait until the peers have read it and the final responses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from micro_core.rpc.connection import Connection

FLUSH_TIMEOUT_S = 1.0
"""Maximum time to wait until the peers have read all data. A peer that does not read loses only its own calls."""


async def send_goaway_and_flush(connections: Iterable[Connection]) -> None:
    """Send GOAWAY on each connection and wait until the peers have read it, at most `FLUSH_TIMEOUT_S`.

    Requests in flight at the time of the GOAWAY are refused with Draining, so that their clients can safely send them
    again. If the connection were closed at once, these clients could not know whether a handler had started.
    """
    draining = list(connections)
    for connection in draining:
        connection.send_goaway()
    await flush_all(draining)


async def flush_all(connections: Iterable[Connection]) -> None:
    """Wait until the peers have read all sent data, at most `FLUSH_TIMEOUT_S`.

    Call it before any action that could overtake queued responses, e.g. before a node closes its links.
    """
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await asyncio.gather(*(connection.round_trip() for connection in connections))
    except TimeoutError:
        pass
