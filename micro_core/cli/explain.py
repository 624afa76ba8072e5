"""`micro network explain|flaps|events`, past tables, and `micro trace`: why things are as they are."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import typer

from micro_core.cli.client import client_of, read_body, run_command
from micro_core.cli.network import ask
from micro_core.cli.output import UsageError, microseconds, note, show_json, show_table
from micro_core.config import load_settings
from micro_core.contract.errors import LoopDetected, RouteNotFound
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.rpc.client import Client
from micro_core.wire import limits

FOLLOW_S = 0.5
PINGS = 5
_BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def explain_service(service: str, config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Explain", {"service": service}, config, address)
        if not answer["ways"]:
            raise RouteNotFound(
                f"no way to {service} is known", at=f"node {answer['node']}", hint="micro network services"
            )
        if as_json:
            show_json("micro.explain/1", answer)
            return
        for way in answer["ways"]:
            typer.echo(f"{way['standing']:<11} {_where(way)}")
            typer.echo(f"            cost {_cost(way)}")
            if way["why"]:
                typer.echo(f"            {way['why']}")
            if way["stale_for_s"] is not None:
                typer.echo(
                    "            stale: kept from before the node began again, and told by nobody since; "
                    f"goes in {way['stale_for_s']:.0f} s"
                )

    run_command(work, as_json=as_json)


def _where(way: dict[str, Any]) -> str:
    origin = f"{way['router_name'] or short_id(way['router'])} ({way['site']})"
    if not way["gateway"]:
        return f"{origin}, here: {way['address'] or 'neighbours'}"
    path = f", path {' < '.join(reversed(way['path']))}" if way["path"] else ""
    return f"{origin} via {way['gateway_name'] or short_id(way['gateway'])}{path}"


def _cost(way: dict[str, Any]) -> str:
    if not way["gateway"]:
        waits = _waits(way)
        return f"{microseconds(way['total_us'])}{waits}" if waits else "nothing: it is on this site"
    if way["stale_for_s"] is not None:
        return f"{microseconds(way['total_us'])}, as it was"
    terms = way["link_terms"] or {}
    parts = [
        f"{word} {microseconds(terms[key])}"
        for key, word in (
            ("rtt_us", "round trip"),
            ("queue_delay_us", "queue"),
            ("loss_penalty_us", "loss"),
            ("configured_us", "configured"),
        )
        if terms.get(key)
    ]
    measured = f" (now: {', '.join(parts)})" if parts else ""
    return (
        f"{microseconds(way['total_us'])} = {microseconds(way['announced_us'])} from the neighbour on "
        f"+ {microseconds(way['link_us'])} to the neighbour{measured}{_waits(way)}"
    )


def _waits(way: dict[str, Any]) -> str:
    """The part of the cost that is load: told by the origin, and seen by calls of this node."""
    told = f"; {microseconds(way['load_us'])} of it is load at the instances" if way["load_us"] else ""
    seen = f"; {microseconds(way['waiting_us'])} is waiting seen from here" if way["waiting_us"] else ""
    return told + seen


def show_flaps(release: str, config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        if release:
            await ask("Network.Release", {"service": release}, config, address)
            note(f"{release} is let out")
        answer = await ask("Network.Flaps", {}, config, address)
        if as_json:
            show_json("micro.flaps/1", answer)
            return
        policy = answer["policy"]
        rows = [
            [
                flap["service"],
                flap["penalty"],
                _curve(flap["curve"], policy["suppress"]),
                flap["losses"],
                f"held for {flap['held_for_s']:.0f} s" if flap["is_held"] else "told",
                "-" if flap["release_in_s"] is None else f"in {max(0.0, flap['release_in_s']):.0f} s",
            ]
            for flap in answer["flaps"]
        ]
        show_table(
            ["service", "penalty", "next 2 min", "losses", "state", "release"],
            rows,
            f"nothing flaps at {answer['origin']}",
        )
        if rows:
            typer.echo(
                f"held from {policy['suppress']:.0f} on, let out at {policy['reuse']:.0f}; halves every "
                f"{policy['half_life_s']:.0f} s; held for {policy['max_suppress_s']:.0f} s at most"
                + ("; dry run: nothing is held" if policy["dry_run"] else "")
            )
        if answer["elsewhere"]:
            typer.echo("\nseen of other origins, which alone can hold it:")
            show_table(
                ["origin", "service", "penalty", "losses"],
                [
                    [flap["router_name"] or short_id(flap["router"]), flap["service"], flap["penalty"], flap["losses"]]
                    for flap in answer["elsewhere"]
                ],
                "",
            )

    run_command(work, as_json=as_json)


def _curve(penalties: Sequence[int], suppress: float) -> str:
    """A penalty's decay in a row of blocks; a full block is what is held back."""
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(penalty / suppress * len(_BLOCKS)))] for penalty in penalties)


def show_events(follow: bool, count: int, config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Events", {"limit": count}, config, address)
        while True:
            for event in answer["events"]:
                _show_event(event, as_json=as_json)
            if not follow:
                return
            last = answer["events"][-1]["number"] if answer["events"] else answer.get("last", 0)
            await asyncio.sleep(FOLLOW_S)
            answer = {"last": last, **await ask("Network.Events", {"after": last, "limit": 1_000}, config, address)}

    run_command(work, as_json=as_json)


def _show_event(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json("micro.route-event/1", event)
        return
    when = datetime.fromtimestamp(event["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    via = event["gateway_name"] or short_id(event["gateway"]) or event["address"]
    change = microseconds(event["metric"])
    if event["kind"] == "updated":
        change = f"{microseconds(event['metric_before'])} -> {change}"
    at = event["router_name"] or short_id(event["router"])
    typer.echo(f"{when}  {event['kind']:<8} {event['service']} at {at} via {via}  {change}")


def show_past(at: str, diff: str, service: str, config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        if at and diff:
            raise UsageError("--at and --diff exclude each other", hint="--diff compares the past with the present")
        ago_s = seconds_ago(diff or at, time.time())
        answer = await ask("Network.Past", {"ago_s": ago_s, "service": service}, config, address)
        if as_json:
            keys = ("come", "gone", "changed") if diff else ("routes",)
            show_json(
                "micro.routes-diff/1" if diff else "micro.routes/1",
                {"at": answer["at"], **{k: answer[k] for k in keys}},
            )
            return
        if not diff:
            show_table(
                ["service", "gateway", "router", "metric", "link"], [_row(r) for r in answer["routes"]], "no routes"
            )
            return
        rows = [["+", *_row(route)] for route in answer["come"]] + [["-", *_row(route)] for route in answer["gone"]]
        for pair in answer["changed"]:
            row = _row(pair["after"])
            row[3] = f"{pair['before']['metric']} -> {row[3]}"
            rows.append(["~", *row])
        show_table(["", "service", "gateway", "router", "metric", "link"], rows, "nothing has changed")

    run_command(work, as_json=as_json)


def _row(route: dict[str, Any]) -> list[Any]:
    gateway = route["gateway_name"] or short_id(route["gateway"]) or route["address"]
    return [
        route["service"],
        gateway,
        route["router_name"] or short_id(route["router"]),
        route["metric"],
        f"{route['link']}, stale" if route["stale"] else route["link"],
    ]


def seconds_ago(text: str, now: float) -> float:
    """`5m`, `30s`, `2h`, or a time in ISO 8601, as seconds before `now`. Raises UsageError."""
    span = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])(?: ago)?", text.strip())
    if span:
        return float(span[1]) * _UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is no time", hint="as in 5m, 2h, or 2026-05-01T12:00:00") from None
    ago_s = now - moment.astimezone().timestamp()
    if ago_s < 0:
        raise UsageError(f"{text} is not yet")
    return ago_s


# ------------------------------------------------------------------------------------- trace


def trace_service(
    service: str, endpoint: str, body: Sequence[str] | None, config: str | None, address: str | None, as_json: bool
) -> None:
    async def work() -> None:
        settings = load_settings(config=config)
        async with client_of(settings) as client:

            async def at(node: str, asked: str, request: dict[str, Any]) -> dict[str, Any]:
                pinned = {"micro-router": node} if node else {}
                answer: dict[str, Any] = await client.call(
                    NETWORK_SERVICE, asked, request, address=address, metadata=pinned, timeout_s=settings.node.timeout
                )
                return answer

            hops: list[dict[str, Any]] = []
            node, passed = "", set[str]()
            while True:
                explained = await at(node, "Network.Explain", {"service": service})
                best = next((way for way in explained["ways"] if way["standing"] == "best"), None)
                reach_us = await _median_us(lambda: at(node, "Network.Flaps", {}))  # noqa: B023
                hops.append({"node": explained["node"], "reach_us": reach_us, "way": best})
                if best is None:
                    raise RouteNotFound(f"no way to {service} from here", at=f"node {explained['node']}")
                if not best["gateway"]:
                    break
                if best["gateway"] in passed or len(hops) > limits.MAX_HOPS:
                    raise LoopDetected(f"the way to {service} goes in a circle", at=f"node {explained['node']}")
                node = best["gateway"]
                passed.add(node)
        request = read_body(body) if body else None
        async with Client(settings=settings, proxy=address or NETWORK_SERVICE, name="micro") as client:
            # Once: what it does it must not do five times.
            total_us = await _median_us(lambda: client.call(service, endpoint, request), times=1)
        _show_trace({"service": service, "endpoint": endpoint, "hops": hops, "total_us": total_us}, as_json=as_json)

    run_command(work, as_json=as_json)


async def _median_us(call: Callable[[], Awaitable[object]], times: int = PINGS) -> int:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        spent.append(time.perf_counter() - began)
    return round(statistics.median(spent) * 1e6)


def _show_trace(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json("micro.trace/1", answer)
        return
    before_us = 0
    for number, hop in enumerate(answer["hops"], 1):
        way = hop["way"]
        onward = (
            f"to {way['gateway_name'] or short_id(way['gateway'])}, expected {microseconds(way['link_us'])}"
            if way["gateway"]
            else f"to the instance at {way['address']}"
        )
        added_us = max(0, hop["reach_us"] - before_us)
        typer.echo(
            f"{number:>2}  {hop['node']:<16} {microseconds(hop['reach_us']):>10}  +{microseconds(added_us):<10} {onward}"
        )
        before_us = hop["reach_us"]
    added_us = max(0, answer["total_us"] - before_us)
    typer.echo(f"    {answer['endpoint']:<16} {microseconds(answer['total_us']):>10}  +{microseconds(added_us)}")
