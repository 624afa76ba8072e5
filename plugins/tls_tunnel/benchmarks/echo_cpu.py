# ruff: noqa: INP001, S311, T201 - a script
"""Measure the CPU time of an echo of 64 bytes over one link with both ends in this process, for TLS and for QUIC.

    python plugins/tls_tunnel/benchmarks/echo_cpu.py

CPU time is measured instead of rates, because it is also meaningful on a busy machine.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from types import ModuleType

import micro_quic_tunnel
import micro_tls_tunnel

from micro_core.contract import CountersInMemory, DriverContext, Link, LinkDriver, MicroError
from micro_core.lifecycle.system_clock import SystemClock

BYTES = 64


class Reader:
    """Calls `received` with received data."""

    def __init__(self, link: Link, received: Callable[[bytes], None]) -> None:
        self.received = received
        link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:  # noqa: ARG002 - one lane is used
        self.received(data)

    def lane_writable(self, lane: int) -> None:
        """Ignored: little data is written."""

    def link_lost(self, error: MicroError) -> None:
        """Ignored: the links are closed after the measurement."""


def driver(module: ModuleType) -> LinkDriver:
    context = DriverContext(
        node_id="bench",
        network="bench",
        site="bench",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("bench"),
        counters=CountersInMemory(),
    )
    description = module.micro_tunnel()
    created: LinkDriver = description.create(description.options(), context)
    return created


async def echo_us(near: Link, reader: Reader, in_flight: int, count: int) -> float:
    """Return the CPU time per echo in microseconds."""
    done = asyncio.Event()
    received = 0

    def echoed(data: bytes) -> None:
        nonlocal received
        received += len(data)
        if received < count * BYTES:
            near.write(0, data)
        else:
            done.set()

    reader.received = echoed
    began = time.process_time()
    for _ in range(in_flight):
        near.write(0, bytes(BYTES))
    await done.wait()
    return (time.process_time() - began) / (received / BYTES) * 1e6


async def main() -> None:
    for module in (micro_tls_tunnel, micro_quic_tunnel):
        here, there = driver(module), driver(module)
        accepted: asyncio.Queue[Link] = asyncio.Queue()
        listener = await there.listen("127.0.0.1:0", accepted.put_nowait)
        near = await here.dial(listener.address, timeout_s=10.0)
        far = await accepted.get()
        Reader(far, lambda data, far=far: far.write(0, data))  # type: ignore[misc]
        reader = Reader(near, lambda _: None)
        for in_flight, count in ((1, 3_000), (64, 50_000)):
            cost_us = await echo_us(near, reader, in_flight, count)
            print(f"{here.scheme:>5}: {cost_us:7.1f} µs per echo, {in_flight} in flight")
        await here.close()
        await there.close()


if __name__ == "__main__":
    asyncio.run(main())
