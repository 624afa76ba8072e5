"""The client and the service of a measured path, as processes: `load.py serve|call|bulk|hold ...`.

Used by whole_path.py. `call` runs a closed loop with `in_flight` workers, each with one outstanding call. It prints one
JSON object with the calls per second, and p50 and p99 in microseconds.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

WARM_UP_S = 0.5
SERVICE = "bench.echo"
SUBJECT = "bench.echo"

Call = Callable[[bytes], Awaitable[bytes]]


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def measure(call: Call, *, size: int, in_flight: int, seconds: float) -> dict[str, float]:
    """Run the loop for `seconds` after a warm-up. Calls that started during the warm-up are not counted."""
    payload = bytes(size)
    latencies: list[float] = []
    clock = time.perf_counter
    started_at = clock() + WARM_UP_S
    end = started_at + seconds

    async def worker() -> None:
        while (started := clock()) < end:
            answer = await call(payload)
            if len(answer) != size:
                raise SystemExit(f"received {len(answer)} bytes instead of {size}")
            if started >= started_at:
                latencies.append(clock() - started)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    latencies.sort()
    return {
        "calls_per_s": len(latencies) / seconds,
        "p50_us": percentile(latencies, 0.50) * 1e6,
        "p99_us": percentile(latencies, 0.99) * 1e6,
        "calls": float(len(latencies)),
    }


async def micro_serve() -> None:
    from micro_core import Service

    service = Service(SERVICE)

    @service.endpoint("Echo.Echo")
    async def echo(body: bytes) -> bytes:
        return body

    @service.endpoint("Echo.Take")
    async def take(items: AsyncIterator[bytes]) -> int:
        total = 0
        async for item in items:
            total += len(item)
        return total

    @service.endpoint("Echo.Hold")
    async def hold(items: AsyncIterator[bytes]) -> int:
        """Read one item, and then stop reading."""
        first = await anext(items)
        await asyncio.sleep(3_600.0)
        return len(first)

    await service.start()
    print("ready", flush=True)
    await stopped()
    await service.stop()


async def nats_serve(url: str) -> None:
    import nats

    client = await nats.connect(url)

    async def echo(message) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        await message.respond(message.data)

    await client.subscribe(SUBJECT, cb=echo)
    await client.flush()
    print("ready", flush=True)
    await stopped()
    await client.close()


async def micro_call(address: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    from micro_core import Client
    from micro_core.wire.codec import BYTES

    client = Client(proxy=address)
    await client.start()

    async def call(payload: bytes) -> bytes:
        answer: bytes = await client.call(SERVICE, "Echo.Echo", payload, content_type=BYTES, timeout_s=30.0)
        return answer

    return call, client.close


async def micro_bulk(address: str, size: int, item_bytes: int) -> None:
    """Send client streams of `size` bytes one after the other until SIGTERM.

    Prints `started`, and a JSON object with the rate of each stream.
    """
    from micro_core import Client
    from micro_core.wire.codec import BYTES

    client = Client(proxy=address)
    await client.start()
    item = bytes(item_bytes)

    async def send_for_ever() -> None:
        while True:
            started_at = time.perf_counter()
            async with client.stream(SERVICE, "Echo.Take", content_type=BYTES, timeout_s=600.0) as stream:
                for _ in range(size // item_bytes):
                    await stream.send(item)
                await stream.end()
                total = await stream.receive()
            if total != size:
                raise SystemExit(f"{total} of {size} bytes arrived")
            print(json.dumps({"mib_per_s": size / 2**20 / (time.perf_counter() - started_at)}), flush=True)

    await until_stopped(send_for_ever())
    await client.close()


async def micro_hold(address: str, size: int) -> None:
    """Try to send `size` bytes to a handler that stops reading.

    Prints `started`, and at SIGTERM the number of bytes that could be sent.
    """
    from micro_core import Client
    from micro_core.wire.codec import BYTES

    client = Client(proxy=address)
    await client.start()
    item = bytes(64 * 1024)
    sent = 0

    async def send_for_ever() -> None:
        nonlocal sent
        async with client.stream(SERVICE, "Echo.Hold", content_type=BYTES, timeout_s=600.0) as stream:
            for _ in range(size // len(item)):
                await stream.send(item)
                sent += len(item)

    await until_stopped(send_for_ever())
    print(json.dumps({"sent_mib": sent / 2**20}), flush=True)
    await client.close()


async def until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until SIGTERM. Raises its error if it fails before."""
    task = asyncio.ensure_future(work)
    print("started", flush=True)
    stop = asyncio.ensure_future(stopped())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    for one in (task, stop):
        one.cancel()
    results = await asyncio.gather(task, stop, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def nats_call(url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    import nats

    client = await nats.connect(url)

    async def call(payload: bytes) -> bytes:
        return (await client.request(SUBJECT, payload, timeout=30.0)).data

    return call, client.close


async def stopped() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", "micro"]:
            await micro_serve()
        case ["serve", "nats", url]:
            await nats_serve(url)
        case ["call", system, address, size, in_flight, seconds]:
            opener = micro_call if system == "micro" else nats_call
            call, close = await opener(address)
            figures = await measure(call, size=int(size), in_flight=int(in_flight), seconds=float(seconds))
            await close()
            print(json.dumps(figures))
        case ["bulk", address, size, item_bytes]:
            await micro_bulk(address, int(size), int(item_bytes))
        case ["hold", address, size]:
            await micro_hold(address, int(size))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
