"""The end of connections that loses no call: GOAWAY, and the wait until it, and the last answers, have been read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from micro_core.rpc.connection import Connection

FLUSH_TIMEOUT_S = 1.0
"""How long peers are given to read a GOAWAY, and then the last answers; one that does not loses its own calls only."""


async def send_goaway_and_flush(connections: Iterable[Connection]) -> None:
    """Send GOAWAY on each; return when all have read it, or have had their time.

    Whoever closes before loses the calls that were on their way: they would be lost, where those that arrive after
    the GOAWAY are refused with Draining, which promises that nothing was begun.
    """
    told = list(connections)
    for connection in told:
        connection.send_goaway()
    await flush_all(told)


async def flush_all(connections: Iterable[Connection]) -> None:
    """Return when all have read what was sent to them, or have had their time.

    Before what overtakes it: a node's farewell to its network travels on a lane of its own, and ends the link.
    """
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await asyncio.gather(*(connection.round_trip() for connection in connections))
    except TimeoutError:
        pass
