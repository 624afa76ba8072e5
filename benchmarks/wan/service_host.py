"""A process with several services of one cloud: `python -m benchmarks.wan.service_host CLOUD [SERVICE ...]`.

With `--recycle PERIOD_S` it has the instances of the recycling scenario instead: two of each of ten services, of which one
after the other is stopped and replaced by a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from typing import Any

from micro_core import Service
from micro_core.drivers.runtime import Runtime, build_runtime

RECYCLED_SERVICES = 10
INSTANCES = 2
PAUSE_S = 1.0
"""Seconds between the end of an instance and the start of its successor."""


def create(name: str, cloud: int, runtime: Runtime) -> Service:
    """Return an instance whose answers contain its cloud and the size of the request."""
    service = Service(name, registry=runtime.registry, transport=runtime.transport)

    @service.endpoint("Wan.Echo")
    async def echo(request: dict[str, Any]) -> dict[str, Any]:
        return {"cloud": cloud, "size": len(request.get("padding", ""))}

    return service


async def recycle(cloud: int, period_s: float, runtime: Runtime) -> None:
    """Replace one instance every `period_s` seconds, between one SIGUSR1 and the next, until cancelled."""
    names = [f"wan.recycled{number}" for number in range(RECYCLED_SERVICES)] * INSTANCES
    running = [create(name, cloud, runtime) for name in names]
    active = asyncio.Event()
    toggle = lambda: active.clear() if active.is_set() else active.set()  # noqa: E731
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    try:
        await asyncio.gather(*(service.start() for service in running))
        print("ready", flush=True)
        index = 0
        while True:
            await active.wait()
            await asyncio.sleep(period_s - PAUSE_S)
            await running[index].stop()
            await asyncio.sleep(PAUSE_S)
            running[index] = create(names[index], cloud, runtime)
            await running[index].start()
            index = (index + 1) % len(running)
    finally:
        await asyncio.gather(*(service.stop(drain_s=0.5) for service in running), return_exceptions=True)


async def serve(cloud: int, names: list[str], runtime: Runtime) -> None:
    """Serve `names` until cancelled."""
    running = [create(name, cloud, runtime) for name in names]
    try:
        await asyncio.gather(*(service.start() for service in running))
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.gather(*(service.stop(drain_s=0.5) for service in running), return_exceptions=True)


async def run(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM."""
    runtime = await build_runtime()
    task = asyncio.ensure_future(
        recycle(arguments.cloud, arguments.recycle, runtime)
        if arguments.recycle
        else serve(arguments.cloud, arguments.services, runtime)
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await runtime.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cloud", type=int)
    parser.add_argument("services", nargs="*")
    parser.add_argument("--recycle", type=float, default=0.0)
    asyncio.run(run(parser.parse_args()))
