"""A node in five processes: registry, broker, tunnel, router and proxy, joined with a whole node of another site."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from micro_core.testing import free_port

ROOT = Path(__file__).parents[2]
GREETER = "go.micro.srv.greeter"
GREETER_SOURCE = (ROOT / "examples" / "greeter.py").read_text()
HERE_SOURCE = GREETER_SOURCE.replace(GREETER, "go.micro.srv.here")
PROXY = {"MICRO_PROXY": "go.micro.network"}
MICRO = [sys.executable, "-m", "micro_core"]
PARTS = ("registry", "broker", "tunnel", "router", "proxy")

pytestmark = pytest.mark.timeout(300)

SUBSCRIBER = """
from micro_core import Service

service = Service("listener.{site}")

@service.subscriber("orders.created")
async def on_order(order: dict) -> None:
    print("got", order["number"], flush=True)

service.run()
"""


def split_site(lab: Any, name: str, joins: Sequence[Any] = ()) -> Any:
    table = f'\n[plugins."registry:service"]\naddress = "tcp://127.0.0.1:{free_port()}"\nretry_s = 0.2'
    return lab.site(name, joins=joins, plugins=("quic", "registry:service", "broker:service"), extra=table)


def start_part(lab: Any, site: Any, part: str) -> Any:
    process = lab.start(f"{part} {site.name}", site, [*MICRO, part])
    process.wait_ready()
    return process


def services(lab: Any, site: Any) -> set[str]:
    done = lab.micro(site, "network", "services", "--json")
    if done.returncode:
        return set()
    return {entry["service"] for entry in json.loads(done.stdout)["services"]}


def hello(lab: Any, site: Any, service: str, name: str) -> str:
    done = lab.micro(site, "call", service, "Say.Hello", json.dumps({"name": name}), **PROXY)
    return str(json.loads(done.stdout)["msg"]) if done.returncode == 0 else f"{done.returncode}: {done.stderr}"


def test_a_node_of_five_processes_makes_the_main_job_both_ways_and_outlives_each_part(lab: Any) -> None:
    us = lab.site("us")
    eu = split_site(lab, "eu", joins=[us])
    lab.node(us)
    parts = {part: start_part(lab, eu, part) for part in PARTS}
    lab.python("greeter", eu, GREETER_SOURCE)
    lab.python("here", us, HERE_SOURCE)
    lab.until(lambda: GREETER in services(lab, us), "us knows the greeter of eu")
    lab.until(lambda: "go.micro.srv.here" in services(lab, eu), "eu knows the greeter of us")

    # The main job, both ways: us is a whole node, eu is five processes.
    assert hello(lab, us, GREETER, "John") == "Hello John"
    assert hello(lab, eu, "go.micro.srv.here", "Jane") == "Hello Jane"
    assert hello(lab, eu, GREETER, "neighbour") == "Hello neighbour"

    # All parts are services, and all that a whole node answers is answered.
    found = {entry["service"] for entry in lab.json(eu, "services")["services"]}
    assert found >= {f"go.micro.{part}" for part in PARTS} | {"go.micro.network"}
    assert {node["name"] for node in lab.json(eu, "network", "nodes")["nodes"]} == {"eu-1", "us-1"}
    (link,) = lab.json(eu, "network", "connections")["connections"]
    assert (link["name"], link["driver"]) == ("us-1", "quic")
    assert lab.json(eu, "network", "status")["links"] == 1
    explained = lab.json(eu, "network", "explain", "go.micro.srv.here")
    assert [candidate["gateway_name"] for candidate in explained["candidates"]] == ["us-1"]
    # None of them is offered to other sites.
    offered = {e["service"] for e in lab.json(us, "network", "services")["services"] if "eu" in e["sites"]}
    assert offered == {GREETER, "go.micro.network"}

    # The router is away: calls go on by the copy of its table. It comes back and knows everything again.
    parts["router"].kill()
    assert hello(lab, us, GREETER, "still") == "Hello still"
    assert hello(lab, eu, "go.micro.srv.here", "still") == "Hello still"
    refused = lab.micro(eu, "network", "routes")
    assert refused.returncode == 6
    assert "micro router" in refused.stderr
    parts["router"] = start_part(lab, eu, "router")
    lab.until(lambda: services(lab, eu) >= {GREETER, "go.micro.srv.here"}, "the router knows both sites again")
    lab.until(lambda: GREETER in services(lab, us), "us knows the greeter again")
    assert hello(lab, us, GREETER, "again") == "Hello again"

    # The tunnel is away: other sites are out of reach, and say so; the site itself goes on.
    parts["tunnel"].kill()
    assert hello(lab, eu, GREETER, "alone") == "Hello alone"
    lab.until(lambda: hello(lab, eu, "go.micro.srv.here", "gone").startswith(("4", "6")), "there is no way to us")
    parts["tunnel"] = start_part(lab, eu, "tunnel")
    lab.until(lambda: hello(lab, eu, "go.micro.srv.here", "back") == "Hello back", "eu reaches us again")
    lab.until(lambda: hello(lab, us, GREETER, "back") == "Hello back", "us reaches eu again")

    # The registry comes back empty, and is filled again by those who are there.
    parts["registry"].kill()
    parts["registry"] = start_part(lab, eu, "registry")
    lab.until(lambda: hello(lab, us, GREETER, "refilled") == "Hello refilled", "the greeter is in the new registry")
    lab.until(
        lambda: {entry["service"] for entry in lab.json(eu, "services")["services"]} >= found, "all have come back"
    )

    # The proxy comes back at its address, and takes sessions again.
    parts["proxy"].kill()
    parts["proxy"] = start_part(lab, eu, "proxy")
    lab.until(lambda: hello(lab, us, GREETER, "proxied") == "Hello proxied", "calls from us are taken again")
    assert hello(lab, eu, "go.micro.srv.here", "proxied") == "Hello proxied"

    for part in reversed(PARTS):
        assert parts[part].stop() == 0, part


def test_messages_pass_between_a_whole_node_and_one_of_five_processes(lab: Any) -> None:
    us = lab.site("us")
    eu = split_site(lab, "eu", joins=[us])
    lab.node(us)
    for part in PARTS:
        start_part(lab, eu, part)
    listeners = [lab.python(f"listener-{site.name}", site, SUBSCRIBER.format(site=site.name)) for site in (eu, us)]
    lab.until(
        lambda: all(lab.json(site, "network", "status")["topics"] == ["orders.created"] for site in (eu, us)),
        "both carry the topic",
    )
    for number, site in enumerate((eu, us)):
        done = lab.micro(site, "publish", "orders.created", json.dumps({"number": number}), **PROXY)
        assert done.returncode == 0, done.stderr
    for listener in listeners:
        listener.wait_for(lambda lines: {"got 0", "got 1"} <= set(lines))
        assert sorted(line for line in listener.lines if line.startswith("got")) == ["got 0", "got 1"]


def test_a_part_waits_for_those_it_needs_and_says_which(lab: Any) -> None:
    eu = split_site(lab, "eu")
    registry = lab.start("registry", eu, [*MICRO, "registry"])
    registry.wait_ready()
    proxy = lab.start("proxy", eu, [*MICRO, "proxy"])
    proxy.wait_for(lambda lines: any("waiting for the tunnel" in line and "micro tunnel" in line for line in lines))
    start_part(lab, eu, "tunnel")
    proxy.wait_for(lambda lines: any("waiting for the router" in line and "micro router" in line for line in lines))
    start_part(lab, eu, "router")
    proxy.wait_ready()
    # A part that still waits is ended by a signal like any other.
    lone = lab.start("lone", eu, [*MICRO, "router", "--name", "nobody"])
    lone.wait_for(
        lambda lines: any("waiting for the tunnel" in line and "there is one of eu-1" in line for line in lines)
    )
    assert lone.stop() == 0
