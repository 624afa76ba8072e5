"""The body of `micro trace`: asks each node on the path of a call for its best route, then makes the call once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import typer

from micro_core.cli.client import open_client, read_body, run_command
from micro_core.cli.output import microseconds, show_json
from micro_core.config import load_settings
from micro_core.contract.errors import LoopDetected, RouteNotFound
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.rpc.client import Client
from micro_core.wire import limits

PINGS = 5
"""Calls to each node, of which the median is shown."""


def trace_service(
    service: str, endpoint: str, body: Sequence[str] | None, config: str | None, address: str | None, as_json: bool
) -> None:
    """Print the nodes on the path to a service, with the time to reach each. Raises typer.Exit on failure."""

    async def work() -> None:
        settings = load_settings(config=config)
        async with open_client(settings) as client:

            async def call_hop(node: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
                # This metadata directs a call to one node by its id.
                metadata = {"micro-router": node} if node else {}
                response: dict[str, Any] = await client.call(
                    NETWORK_SERVICE,
                    method,
                    request,
                    address=address,
                    metadata=metadata,
                    timeout_s=settings.node.timeout,
                )
                return response

            hops = await _follow(service, call_hop)
        request = read_body(body) if body else None
        async with Client(settings=settings, proxy=address or NETWORK_SERVICE, name="micro") as client:
            # The endpoint may have side effects, so it is called once.
            total_us = await _median_us(lambda: client.call(service, endpoint, request), times=1)
        _show_trace({"service": service, "endpoint": endpoint, "hops": hops, "total_us": total_us}, as_json=as_json)

    run_command(work, as_json=as_json)


async def _follow(
    service: str, call_hop: Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Follow the best route from node to node. Raises RouteNotFound, or LoopDetected if a node occurs twice."""
    hops: list[dict[str, Any]] = []
    node, visited = "", set[str]()
    while True:
        explained = await call_hop(node, "Network.Explain", {"service": service})
        best = next((one for one in explained["candidates"] if one["status"] == "best"), None)
        reach_us = await _median_us(lambda: call_hop(node, "Network.Flaps", {}))  # noqa: B023
        hops.append({"node": explained["node"], "reach_us": reach_us, "route": best})
        if best is None:
            raise RouteNotFound(f"no route to {service}", at=f"node {explained['node']}", hint="micro network services")
        if not best["gateway"]:
            return hops
        if best["gateway"] in visited or len(hops) > limits.MAX_HOPS:
            raise LoopDetected(f"the route to {service} forms a loop", at=f"node {explained['node']}")
        node = best["gateway"]
        visited.add(node)


async def _median_us(call: Callable[[], Awaitable[object]], times: int = PINGS) -> int:
    durations_s = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        durations_s.append(time.perf_counter() - started)
    return round(statistics.median(durations_s) * 1e6)


def _show_trace(trace: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json("micro.trace/1", trace)
        return
    previous_us = 0
    for number, hop in enumerate(trace["hops"], 1):
        route = hop["route"]
        next_hop = (
            f"to {route['gateway_name'] or short_id(route['gateway'])}, expected {microseconds(route['link_us'])}"
            if route["gateway"]
            else f"to the instance at {route['address']}"
        )
        added_us = max(0, hop["reach_us"] - previous_us)
        reach, added = microseconds(hop["reach_us"]), microseconds(added_us)
        typer.echo(f"{number:>2}  {hop['node']:<16} {reach:>10}  +{added:<10} {next_hop}")
        previous_us = hop["reach_us"]
    added_us = max(0, trace["total_us"] - previous_us)
    typer.echo(f"    {trace['endpoint']:<16} {microseconds(trace['total_us']):>10}  +{microseconds(added_us)}")
