"""A client that sends more calls to one node than it can forward: `python -m benchmarks.wan.flood ADDRESS SERVICE SECONDS`.

Prints `ready` before the first call, and a line of JSON with the numbers of answered and failed calls at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from micro_core import Client
from micro_core.contract.errors import MicroError

IN_FLIGHT = 200


async def run(address: str, service: str, seconds: float) -> None:
    """Keep `IN_FLIGHT` calls open, all through the node at `address`."""
    counts: Counter[str] = Counter()

    async def worker(client: Client, end: float) -> None:
        while time.monotonic() < end:
            try:
                await client.call(service, "Wan.Echo", {"padding": "x" * 100}, timeout_s=2.0, retries=0)
                counts["answered"] += 1
            except MicroError as error:
                counts[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    async with Client(proxy=address, name="flood") as client:
        print("ready", flush=True)
        end = time.monotonic() + seconds
        await asyncio.gather(*(worker(client, end) for _ in range(IN_FLIGHT)))
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3])))
