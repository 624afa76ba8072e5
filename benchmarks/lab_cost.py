"""Measure what the work of a node costs, for the defaults of `micro_core.lab.process.CpuModel`.

Runs workloads in the lab, where the nodes run the real code above the drivers, and fits two costs to the processor time of
this process: per chunk of data that a node receives or sends, and per byte. The time of an idle lab of the same size is
not subtracted: it consists of keepalives, which are chunks as well. The costs of a link driver are not included.

    python benchmarks/lab_cost.py
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from micro_core.lab import loop
from micro_core.lab.lab_node import LabNode
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.lab.scenarios import churn_for, serve_each
from micro_core.rpc.service import Service

Work = Callable[[Lab, list[LabNode]], Awaitable[None]]


async def idle(lab: Lab, nodes: list[LabNode]) -> None:  # noqa: ARG001 - every workload has these arguments
    await lab.advance_time(120.0)


async def routing(lab: Lab, nodes: list[LabNode]) -> None:
    await churn_for(lab, nodes, 60.0, 1.0)


def calls(size: int, count: int) -> Work:
    async def work(_lab: Lab, nodes: list[LabNode]) -> None:
        for _ in range(count):
            await asyncio.gather(*(node.call("svc.echo", "Do.Echo", bytes(size)) for node in nodes[1:]))

    return work


def echo() -> Service:
    service = Service("svc.echo")

    async def answer(body: bytes) -> bytes:
        return body

    service.endpoint("Do.Echo")(answer)
    return service


async def measure(work: Work) -> tuple[float, int, int]:
    """Return (processor time, chunks, bytes) of a workload on twelve nodes with 19 services."""
    lab = Lab(3, options=LabOptions(keep_log=False))
    nodes = await lab.random_graph(12)
    await serve_each(nodes)
    await nodes[0].serve(echo())
    await lab.converged()
    before = [(node.process.chunks, node.process.bytes) for node in nodes if node.process is not None]
    began = time.process_time()
    await work(lab, nodes)
    seconds = time.process_time() - began
    # A node that was restarted has a new process.
    after = [(node.process.chunks, node.process.bytes) for node in nodes if node.process is not None]
    pairs = list(zip(after, before, strict=True))
    await lab.close()
    return seconds, sum(max(0, a[0] - b[0]) for a, b in pairs), sum(max(0, a[1] - b[1]) for a, b in pairs)


def main() -> None:
    for name in ("micro", "micro_core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    workloads: dict[str, Work] = {
        "keepalives": idle,
        "routing": routing,
        "calls of 64 bytes": calls(64, 100),
        "calls of 16 KiB": calls(16_384, 50),
        "calls of 256 KiB": calls(262_144, 5),
    }
    xx = xy = yy = xt = yt = 0.0
    for name, work in workloads.items():
        seconds, chunks, size = loop.run(measure(work))
        print(
            f"{name:20} {seconds:6.2f} s  {chunks:8,} chunks  {size:12,} bytes  {seconds / chunks * 1e6:6.1f} µs a chunk"
        )
        # Every workload has the same weight.
        x, y = 1.0, size / chunks
        t = seconds / chunks
        xx, xy, yy, xt, yt = xx + x * x, xy + x * y, yy + y * y, xt + x * t, yt + y * t
    determinant = xx * yy - xy * xy
    per_chunk, per_byte = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
    print(f"fitted: {per_chunk * 1e6:.1f} µs per chunk, {per_byte * 1e9:.2f} ns per byte")


if __name__ == "__main__":
    main()
