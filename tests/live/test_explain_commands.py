"""Tests of `micro network explain`, `flaps`, `events`, `routes --at` and `--diff`, and `micro trace` with real nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

GREETER = "go.micro.srv.greeter"
GREETER_SOURCE = (Path(__file__).parents[2] / "examples" / "greeter.py").read_text()
FLAPPING = """
import asyncio
from micro_core import Client, Service

NAME = "go.micro.srv.flapping"
NODE = "go.micro.network"

async def has_route(client):
    return bool((await client.call(NODE, "Network.Explain", {"service": NAME}))["candidates"])

async def losses(client):
    flaps = (await client.call(NODE, "Network.Flaps"))["flaps"]
    return sum(flap["losses"] for flap in flaps if flap["service"] == NAME)

async def main():
    async with Client() as client:
        for number in range(9):
            service = Service(NAME)
            await service.start()
            # The node must notice each registration and each withdrawal.
            while not await has_route(client):
                await asyncio.sleep(0.02)
            if number < 8:
                await service.stop()
                while await losses(client) <= number:
                    await asyncio.sleep(0.02)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

pytestmark = pytest.mark.timeout(180)


def output(done: Any) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_routes_of_three_nodes_in_a_line_are_explained(lab: Any) -> None:
    # Otherwise a and c would link to each other.
    seeds_only = "links_site = 0\nlinks_remote = 0"
    a = lab.site("a", extra=seeds_only)
    b = lab.site("b", joins=[a], extra=seeds_only)
    c = lab.site("c", joins=[b], extra=seeds_only)
    for site in (a, b, c):
        lab.node(site)
    lab.python("greeter", a, GREETER_SOURCE)
    lab.until(lambda: bool(lab.json(c, "network", "routes", "--service", GREETER)["routes"]), "c has a route")
    lab.until(lambda: len(lab.json(c, "network", "nodes")["nodes"]) == 3, "c knows the names of all")

    (candidate,) = lab.json(c, "network", "explain", GREETER)["candidates"]
    assert (candidate["status"], candidate["path"]) == ("best", ["a-1", "b-1"])
    parts_us = candidate["announced_us"] + candidate["link_us"] + candidate["waiting_us"]
    assert candidate["total_us"] == parts_us
    assert set(candidate["link_terms"]) == {"rtt_us", "queue_delay_us", "loss_penalty_us", "configured_us"}
    printed = output(lab.micro(c, "network", "explain", GREETER))
    assert "a-1 (a) via b-1, path b-1 < a-1" in printed
    assert "round trip" in printed
    unknown = lab.micro(c, "network", "explain", "go.micro.srv.unknown")
    assert unknown.returncode == 4
    assert "no route to go.micro.srv.unknown is known" in unknown.stderr
    as_json = lab.micro(c, "network", "explain", "go.micro.srv.unknown", "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["schema"]) == (4, "micro.error/1")

    for arguments in (
        ("--router", "a-1"),
        ("--router", candidate["router"]),
        ("--router", candidate["router"][:8]),
        ("--gateway", "b-1"),
    ):
        (route,) = lab.json(c, "network", "routes", "--service", GREETER, *arguments)["routes"]
        assert (route["router"], route["gateway"]) == (candidate["router"], candidate["gateway"])
    assert lab.json(c, "network", "routes", "--service", GREETER, "--gateway", "a-1")["routes"] == []

    trace = lab.json(c, "trace", GREETER, "Say.Hello", '{"name": "John"}')
    assert [hop["node"] for hop in trace["hops"]] == ["c-1", "b-1", "a-1"]
    assert trace["total_us"] > 0
    printed = output(lab.micro(c, "trace", GREETER, "Say.Hello", '{"name": "John"}'))
    assert [line.split()[1] for line in printed.splitlines()[:3]] == ["c-1", "b-1", "a-1"]

    follower = lab.start("follower", c, [sys.executable, "-m", "micro_core", "network", "events", "--follow", "--json"])
    follower.wait_for(lambda lines: any(GREETER in line for line in lines))
    lab.python("another", b, GREETER_SOURCE.replace(GREETER, "go.micro.srv.another"))
    follower.wait_for(lambda lines: any("go.micro.srv.another" in line for line in lines))
    event = next(json.loads(line) for line in follower.lines if "go.micro.srv.another" in line)
    assert (event["kind"], event["router_name"]) == ("created", "b-1")
    assert "created" in output(lab.micro(c, "network", "events"))

    past = lab.json(c, "network", "routes", "--diff", "10m")
    assert "go.micro.srv.another" in {route["service"] for route in past["added"]}
    assert lab.json(c, "network", "routes", "--at", "10m")["routes"] == []
    assert lab.micro(c, "network", "routes", "--at", "noon-ish").returncode == 2


def test_flapping_service_is_suppressed_and_released_by_command(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    lab.node(a)
    lab.node(b)
    lab.until(lambda: bool(lab.json(b, "network", "connections")["connections"]), "the link is up")
    assert "no service flaps at a-1" in lab.micro(a, "network", "flaps").stderr
    lab.python("flapping", a, FLAPPING)

    (flap,) = lab.json(a, "network", "flaps")["flaps"]
    assert flap["service"] == "go.micro.srv.flapping"
    assert flap["is_suppressed"]
    assert 0 < flap["reuse_in_s"] <= 120
    assert flap["curve"][0] > flap["curve"][-1]
    printed = output(lab.micro(a, "network", "flaps"))
    assert "suppressed for" in printed
    assert "suppressed above a penalty of 4500, reused below 1500" in printed
    explained = lab.json(a, "network", "explain", "go.micro.srv.flapping")["candidates"]
    assert [candidate["status"] for candidate in explained].count("suppressed") == 1
    assert not lab.json(b, "network", "routes", "--service", "go.micro.srv.flapping")["routes"]

    output(lab.micro(a, "network", "flaps", "--release", "go.micro.srv.flapping"))
    lab.until(
        lambda: bool(lab.json(b, "network", "routes", "--service", "go.micro.srv.flapping")["routes"]),
        "b has received the route",
    )
    assert lab.micro(a, "network", "flaps", "--release", "go.micro.srv.unknown").returncode == 4
