"""Why things are as they are, asked of real nodes by the real command: explain, flaps, events, past tables, trace."""

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
from micro_core import Service

async def main():
    for number in range(9):
        service = Service("go.micro.srv.flapping")
        await service.start()
        # Long enough to be seen in the registry, where it is there as where it is not.
        await asyncio.sleep(0.6)
        if number < 8:
            await service.stop()
            await asyncio.sleep(0.6)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

pytestmark = pytest.mark.timeout(180)


def lines(done: Any) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_explanations_of_a_line_of_three(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    c = lab.site("c", joins=[b])
    for site in (a, b, c):
        lab.node(site)
    lab.python("greeter", a, GREETER_SOURCE)
    lab.until(lambda: bool(lab.json(c, "network", "routes", "--service", GREETER)["routes"]), "c has a route")
    lab.until(lambda: len(lab.json(c, "network", "nodes")["nodes"]) == 3, "c knows the names of all")

    (way,) = lab.json(c, "network", "explain", GREETER)["ways"]
    assert (way["standing"], way["path"]) == ("best", ["a-1", "b-1"])
    assert way["total_us"] == way["announced_us"] + way["link_us"] + way["waiting_us"]
    assert set(way["link_terms"]) == {"rtt_us", "queue_delay_us", "loss_penalty_us", "configured_us"}
    said = lines(lab.micro(c, "network", "explain", GREETER))
    assert "a-1 (a) via b-1, path b-1 < a-1" in said
    assert "round trip" in said
    unknown = lab.micro(c, "network", "explain", "go.micro.srv.nobody")
    assert unknown.returncode == 4
    assert "no way to go.micro.srv.nobody is known" in unknown.stderr
    for_programs = lab.micro(c, "network", "explain", "go.micro.srv.nobody", "--json")
    assert (for_programs.returncode, json.loads(for_programs.stdout)["schema"]) == (4, "micro.error/1")

    for words in (
        ("--router", "a-1"),
        ("--router", way["router"]),
        ("--router", way["router"][:8]),
        ("--gateway", "b-1"),
    ):
        (route,) = lab.json(c, "network", "routes", "--service", GREETER, *words)["routes"]
        assert (route["router"], route["gateway"]) == (way["router"], way["gateway"])
    assert lab.json(c, "network", "routes", "--service", GREETER, "--gateway", "a-1")["routes"] == []

    trace = lab.json(c, "trace", GREETER, "Say.Hello", '{"name": "John"}')
    assert [hop["node"] for hop in trace["hops"]] == ["c-1", "b-1", "a-1"]
    assert trace["total_us"] > 0
    said = lines(lab.micro(c, "trace", GREETER, "Say.Hello", '{"name": "John"}'))
    assert [line.split()[1] for line in said.splitlines()[:3]] == ["c-1", "b-1", "a-1"]

    follower = lab.start("follower", c, [sys.executable, "-m", "micro_core", "network", "events", "--follow", "--json"])
    follower.wait_for(lambda seen: any(GREETER in line for line in seen))
    lab.python("another", b, GREETER_SOURCE.replace(GREETER, "go.micro.srv.another"))
    follower.wait_for(lambda seen: any("go.micro.srv.another" in line for line in seen))
    event = next(json.loads(line) for line in follower.lines if "go.micro.srv.another" in line)
    assert (event["kind"], event["router_name"]) == ("created", "b-1")
    assert "created" in lines(lab.micro(c, "network", "events"))

    past = lab.json(c, "network", "routes", "--diff", "10m")
    assert "go.micro.srv.another" in {route["service"] for route in past["come"]}
    assert lab.json(c, "network", "routes", "--at", "10m")["routes"] == []
    assert lab.micro(c, "network", "routes", "--at", "noon-ish").returncode == 2


def test_what_flaps_is_shown_at_its_origin_and_elsewhere_and_let_out_by_hand(lab: Any) -> None:
    a = lab.site("a")
    b = lab.site("b", joins=[a])
    lab.node(a)
    lab.node(b)
    lab.until(lambda: bool(lab.json(b, "network", "connections")["connections"]), "the link is up")
    assert "nothing flaps at a-1" in lab.micro(a, "network", "flaps").stderr
    lab.python("flapping", a, FLAPPING)

    (flap,) = lab.json(a, "network", "flaps")["flaps"]
    assert flap["service"] == "go.micro.srv.flapping"
    assert flap["is_held"]
    assert 0 < flap["release_in_s"] <= 120
    assert flap["curve"][0] > flap["curve"][-1]
    said = lines(lab.micro(a, "network", "flaps"))
    assert "held for" in said
    assert "held from 4500 on, let out at 1500" in said
    explained = lab.json(a, "network", "explain", "go.micro.srv.flapping")["ways"]
    assert [way["standing"] for way in explained if way["standing"] == "held"] == ["held"]
    assert not lab.json(b, "network", "routes", "--service", "go.micro.srv.flapping")["routes"]

    lines(lab.micro(a, "network", "flaps", "--release", "go.micro.srv.flapping"))
    lab.until(
        lambda: bool(lab.json(b, "network", "routes", "--service", "go.micro.srv.flapping")["routes"]),
        "b has heard of it",
    )
    assert lab.micro(a, "network", "flaps", "--release", "go.micro.srv.nobody").returncode == 4
