"""A client that sends more calls to one node than it can forward: `python -m benchmarks.wan.flood ADDRESS SERVICE SECONDS`."""

from __future__ import annotations

import asyncio
import sys
import time

from micro_core import Client
from micro_core.contract.errors import MicroError

IN_FLIGHT = 200


async def run(address: str, service: str, seconds: float) -> None:
    """Keep `IN_FLIGHT` calls open, all through the node at `address`."""
    end = time.monotonic() + seconds

    async def worker(client: Client) -> None:
        while time.monotonic() < end:
            try:
                await client.call(service, "Wan.Echo", {"padding": "x" * 100}, timeout_s=2.0, retries=0)
            except MicroError:
                await asyncio.sleep(0.05)

    async with Client(proxy=address, name="flood") as client:
        await asyncio.gather(*(worker(client) for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3])))
