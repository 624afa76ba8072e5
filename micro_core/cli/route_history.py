"""The bodies of `micro network events`, and of `micro network routes --at` and `--diff`: changes of the route table."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from typing import Any

import typer

from micro_core.cli.client import run_command
from micro_core.cli.network import call_node
from micro_core.cli.output import UsageError, microseconds, show_json, show_table
from micro_core.contract.names import short_id

FOLLOW_INTERVAL_S = 0.5
"""Seconds between two queries of `--follow` for new changes."""

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_ROUTE_COLUMNS = ["service", "gateway", "router", "metric", "link"]


def show_events(follow: bool, count: int, config: str | None, address: str | None, as_json: bool) -> None:
    """Print the last `count` changes, and new ones until a signal if `follow` is set. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Events", {"limit": count}, config, address)
        while True:
            for event in response["events"]:
                _show_event(event, as_json=as_json)
            if not follow:
                return
            last = response["events"][-1]["number"] if response["events"] else response.get("last", 0)
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            newer = await call_node("Network.Events", {"after": last, "limit": 1_000}, config, address)
            response = {"last": last, **newer}

    run_command(work, as_json=as_json)


def _show_event(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json("micro.route-event/1", event)
        return
    when = datetime.fromtimestamp(event["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    via = event["gateway_name"] or short_id(event["gateway"]) or event["address"]
    metric = microseconds(event["metric"])
    if event["kind"] == "updated":
        metric = f"{microseconds(event['metric_before'])} -> {metric}"
    origin = event["router_name"] or short_id(event["router"])
    typer.echo(f"{when}  {event['kind']:<8} {event['service']} at {origin} via {via}  {metric}")


def show_past_table(at: str, diff: str, service: str, config: str | None, address: str | None, as_json: bool) -> None:
    """Print the routes at the time `at`, or the changes since the time `diff`. Raises typer.Exit on failure."""

    async def work() -> None:
        if at and diff:
            raise UsageError(
                "--at and --diff cannot be combined", hint="--diff compares an earlier table with the current one"
            )
        ago_s = seconds_ago(diff or at, time.time())
        response = await call_node("Network.Past", {"ago_s": ago_s, "service": service}, config, address)
        if as_json:
            keys = ("added", "removed", "changed") if diff else ("routes",)
            schema = "micro.routes-diff/1" if diff else "micro.routes/1"
            show_json(schema, {"at": response["at"], **{key: response[key] for key in keys}})
            return
        if not diff:
            show_table(_ROUTE_COLUMNS, [_row(route) for route in response["routes"]], "no routes")
            return
        rows = [["+", *_row(route)] for route in response["added"]]
        rows += [["-", *_row(route)] for route in response["removed"]]
        for pair in response["changed"]:
            row = _row(pair["after"])
            row[3] = f"{pair['before']['metric']} -> {row[3]}"
            rows.append(["~", *row])
        show_table(["", *_ROUTE_COLUMNS], rows, "no changes")

    run_command(work, as_json=as_json)


def _row(route: dict[str, Any]) -> list[Any]:
    return [
        route["service"],
        route["gateway_name"] or short_id(route["gateway"]) or route["address"],
        route["router_name"] or short_id(route["router"]),
        route["metric"],
        f"{route['link']}, stale" if route["stale"] else route["link"],
    ]


def seconds_ago(text: str, now: float) -> float:
    """Return how many seconds before `now` a time is: `30s`, `5m`, `2h`, `1d`, or a time in ISO 8601.

    Raises UsageError if `text` is not a time, or is in the future.
    """
    span = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])(?: ago)?", text.strip())
    if span:
        return float(span[1]) * _UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is not a time", hint="use e.g. 5m, 2h, or 2026-05-01T12:00:00") from None
    ago_s = now - moment.astimezone().timestamp()
    if ago_s < 0:
        raise UsageError(f"{text} is in the future")
    return ago_s
